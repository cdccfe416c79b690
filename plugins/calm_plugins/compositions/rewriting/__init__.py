"""Rewriting: a small model reads what a large one would answer, and answers better (LMCor)."""

from calm_plugins.compositions.rewriting.composition import Rewriting as Rewriting
