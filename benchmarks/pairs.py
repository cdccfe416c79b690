"""The models that are measured: random weights, for time and memory do not depend on them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from calm_lightning.backbone import Backbone


@dataclass(frozen=True)
class Pair:
    """An anchor, its augmenting models, how they are joined, and a batch."""

    anchor: tuple[int, int]
    """Width and layers."""
    augmenting: tuple[int, int]
    connections: int = 4
    models: int = 1
    """Number of augmenting models."""
    heads: int = 4
    vocabulary: int = 4096
    batch: int = 8
    length: int = 128

    @property
    def wiring(self) -> list[tuple[int, int]]:
        """(augmenting layer, anchor layer), evenly spaced, the last of each model among them."""
        count = self.connections
        places = range(1, count + 1)
        return [
            (k * self.augmenting[1] // count - 1, k * self.anchor[1] // count - 1) for k in places
        ]

    def build_anchor(self) -> Backbone:
        """A fresh anchor; always the same weights."""
        return self._build(self.anchor, seed=0)

    def build_augmenting(self, number: int = 0) -> Backbone:
        """A fresh augmenting model; always the same weights."""
        return self._build(self.augmenting, seed=1 + number)

    def tokens(self, rows: int, length: int) -> Tensor:
        """Random token ids, [rows, length]; none of them is padding."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(2, self.vocabulary, (rows, length), generator=generator)

    def _build(self, shape: tuple[int, int], seed: int) -> Backbone:
        width, layers = shape
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=self.heads,
            max_position_embeddings=4096,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,  # answers never end early, so all sides write as many tokens
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Backbone(AutoModelForCausalLM.from_config(config), name=f"{width} x {layers}")


PAIRS = {
    # 10.5 M and 2.1 M parameters: what other implementations were first measured on
    "small": Pair((256, 8), (128, 4)),
    "larger": Pair((512, 8), (256, 4)),
    # The augmenting model's layers hold half of what the anchor's hold
    "half": Pair((384, 8), (384, 4)),
    # 113 M and 10.6 M parameters without the vocabulary; connected as by default
    "hundred": Pair((768, 12), (288, 8), connections=2, vocabulary=8192, batch=4),
    # Seconds: do the commands work at all?
    "tiny": Pair((32, 4), (16, 4), vocabulary=97, batch=2, length=16),
}
