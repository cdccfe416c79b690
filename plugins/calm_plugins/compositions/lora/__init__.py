"""Low-rank adaptation of the anchor, the paper's rival with as many trained weights."""

from calm_plugins.compositions.lora.composition import LoRA as LoRA
