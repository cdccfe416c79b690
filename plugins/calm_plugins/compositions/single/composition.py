"""One backbone alone: the rows that a composition is compared with.

Frozen, it is "anchor alone" or "augmenting model alone". Trained whole, it is the paper's skyline
of further training, and with `weights: random` the way to make a small backbone from nothing.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.contracts import CalmError, Composition
from calm_lightning.language_model import PlainModel


class Single(Composition):
    """One of the backbones, as it is or trained whole.

    Args:
        use: `anchor`, or the number of an augmenting model counted from 0.
        train: Train every weight of it. Otherwise nothing is trained.
        state_noise: Gaussian noise on the last layer's output while training, as a share of its
            root mean square. A model that must answer through the noise gives its last state to
            what it says rather than to how it found it, and a bridge reads such a state far better.
        save_dtype: Of the saved weights; null is that of training.
    """

    exempt = {  # noqa: RUF012
        "augmenting_used": "a single model has no augmenting model to use",
        "checkpoint": "a single model is saved whole, so that it can be a backbone",
        "reload": "a saved single model is a plain one, without hashes of others",
    }

    def __init__(
        self,
        use: Literal["anchor"] | int = "anchor",
        train: bool = False,
        state_noise: float = 0.0,
        save_dtype: Literal["float16", "bfloat16"] | None = None,
    ) -> None:
        self.use = use
        self.train = train
        self.state_noise = state_noise
        self.save_dtype = save_dtype
        if train:
            trained = "the model itself is trained"
            self.exempt = {**self.exempt, "frozen": trained, "anchor_only": trained}
        if use != "anchor":
            other = "the model is an augmenting one; the anchor is not in it"
            self.exempt = {**self.exempt, "starts_as_anchor": other, "anchor_only": other}

    @override
    def compose(self, anchor: Backbone, augmenting: Sequence[Backbone]) -> PlainModel:
        chosen = anchor
        if self.use != "anchor":
            if not 0 <= self.use < len(augmenting):
                raise CalmError(
                    f"use={self.use}: there are {len(augmenting)} augmenting models, counted "
                    "from 0."
                )
            chosen = augmenting[self.use]
        chosen.model.requires_grad_(self.train)

        def save(folder: Path) -> None:
            model = chosen.model
            if self.save_dtype is not None:
                model = copy.deepcopy(model).to(getattr(torch, self.save_dtype))
            model.save_pretrained(folder)
            if chosen.tokenizer is not None:
                chosen.tokenizer.save_pretrained(folder)

        if self.train:
            if self.state_noise:
                chosen.layers[-1].register_forward_hook(self._add_noise)
            return PlainModel(chosen, save, without_adapter=None)
        return PlainModel(chosen, save)

    def _add_noise(self, layer: nn.Module, args: Any, output: Any) -> Any:
        if not layer.training:
            return None
        state = output if isinstance(output, Tensor) else output[0]
        scale = state.detach().pow(2).mean(-1, keepdim=True).sqrt()
        noisy = state + self.state_noise * scale * torch.randn_like(state)
        return noisy if isinstance(output, Tensor) else (noisy, *output[1:])
