"""Composition by cross-attention, as in the CALM paper."""

from calm_plugins.compositions.cross_attention.composition import CrossAttention as CrossAttention
