"""What every way of joining frozen backbones into one language model has in common."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from typing_extensions import override

from calm_lightning.auto import ComposedConfig
from calm_lightning.backbone import Backbone
from calm_lightning.contracts import CalmError, Composition
from calm_lightning.generation_settings import asked
from calm_lightning.language_model import TextModel

Disturbance = Literal["zero", "shuffle"]

OTHER_CACHE = (
    "Several models remember together, in a cache of their own: it cannot be offloaded or "
    "quantized, nor be a static one of transformers. Leave out cache_implementation; joined layer "
    "by layer, models take cache_implementation='static'."
)


class JoinedModel(PreTrainedModel, GenerationMixin, TextModel):
    """An anchor and augmenting models, frozen, as one model that transformers can generate with.

    A subclass says `forward`, registers what it trains, and then calls `_ready`.

    Args:
        anchor: The frozen model whose tokens are written.
        augmenting: The other frozen models.
        composition: What built it; saved with it.

    Raises:
        CalmError: If a backbone cannot be kept in step with another one.
    """

    config_class = ComposedConfig
    base_model_prefix = "anchor"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(
        self, anchor: Backbone, augmenting: Sequence[Backbone], composition: Composition
    ) -> None:
        for backbone in (anchor, *augmenting):
            _require_keys_and_values(backbone)
        super().__init__(
            ComposedConfig(
                anchor=anchor.model.config.to_dict(),
                augmenting=[model.model.config.to_dict() for model in augmenting],
            )
        )
        self.anchor = anchor.model
        self.augmenting = nn.ModuleList(model.model for model in augmenting)
        self.composition = composition
        # Plain objects: their modules are registered above.
        self.backbones: tuple[Backbone, ...] = (anchor, *augmenting)
        self._switched_off = False
        self._disturbance: dict[int, Disturbance] = {}
        self._prompt_length: int | None = None  # while `generate` is under way

    def _ready(self) -> None:
        """Finish what `PreTrainedModel` begins, once every part is registered."""
        self.post_init()
        self.generation_config = copy.deepcopy(self.backbones[0].model.generation_config)
        self.freeze()

    # ------------------------------------------------------------------ what never moves

    @override
    def init_weights(self) -> None:
        """Draw nothing: the backbones are trained, and what is added starts itself."""

    def freeze(self) -> None:
        """Freeze the backbones and put them into eval mode; what is added stays trainable."""
        for backbone in self.backbones:
            backbone.freeze()

    @override
    def train(self, mode: bool = True) -> "JoinedModel":
        super().train(mode)
        for backbone in self.backbones:
            backbone.model.eval()
        return self

    @property
    @override
    def anchor_backbone(self) -> Backbone:
        return self.backbones[0]

    @property
    @override
    def frozen_backbones(self) -> tuple[Backbone, ...]:
        return self.backbones

    @override
    def get_input_embeddings(self) -> nn.Module:
        return self.anchor.get_input_embeddings()

    @override
    def get_output_embeddings(self) -> nn.Module:
        return self.anchor.get_output_embeddings()

    @override
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. See `transformers.GenerationMixin.generate`."""
        if asked(self, kwargs, "cache_implementation") not in (None, "dynamic"):
            raise CalmError(OTHER_CACHE)
        return GenerationMixin.generate(self, *args, **kwargs)

    # ------------------------------------------------------------------ switches

    @contextmanager
    @override
    def anchor_only(self) -> Iterator[None]:
        before, self._switched_off = self._switched_off, True
        try:
            yield
        finally:
            self._switched_off = before

    @contextmanager
    def disturbed(self, how: Disturbance, augmenting: int | None = None) -> Iterator[None]:
        """While it is active what augmenting models give is spoilt: is it used at all?

        Args:
            how: `zero`: it is all zero. `shuffle`: each row gets that of the row half a batch
                away; zeros in a batch of one.
            augmenting: Number of the only model that is disturbed; by default all are.

        Raises:
            CalmError: If there is no such model, or no such disturbance.
        """
        if how not in get_args(Disturbance):
            raise CalmError(f"States are disturbed by zero or shuffle, not by {how!r}.")
        numbers = range(len(self.augmenting)) if augmenting is None else [augmenting]
        self._check_numbers(numbers)
        before = self._disturbance
        self._disturbance = before | dict.fromkeys(numbers, how)
        try:
            yield
        finally:
            self._disturbance = before

    @property
    @override
    def mixes_rows(self) -> bool:
        return "shuffle" in self._disturbance.values()

    def _check_numbers(self, augmenting: Iterable[int]) -> None:
        if strange := sorted(set(augmenting) - set(range(len(self.augmenting)))):
            raise CalmError(
                f"There is no augmenting model {strange}; there are {len(self.augmenting)}, "
                "counted from 0."
            )

    # ------------------------------------------------------------------ saving

    def saved_composition(self) -> Composition:
        """The composition that builds this model again."""
        return self.composition

    @override
    def save_pretrained(
        self, save_directory: str | Path, full: bool = False, **kwargs: Any
    ) -> None:
        """Write what is trained, and where the backbones are; see `calm_lightning.checkpoint.save`.

        Args:
            save_directory: Where to.
            full: Write the backbones too, so that the folder can be moved and needs no other file.
            kwargs: Refused.

        Raises:
            CalmError: If an option is unknown, or a backbone's weights cannot be written.
        """
        from calm_lightning.checkpoint import save, save_pretrained

        write = partial(save, self, self.saved_composition())
        save_pretrained(self, write, save_directory, full, **kwargs)


def refuse_other_caches(empty: Cache | None) -> None:
    """Refuse an empty cache that is more than an empty one, for ours is taken in its place.

    Raises:
        CalmError: If it is not the default one.
    """
    if empty is not None and (type(empty) is not DynamicCache or empty.offloading):
        raise CalmError(OTHER_CACHE)


def spoilt(given: Tensor, how: Disturbance | None) -> Tensor:
    """What an augmenting model gives, [batch, ...], as a disturbance leaves it."""
    if how == "zero":
        return torch.zeros_like(given)
    if how != "shuffle":
        return given
    # By half of the batch, so that beams and samples of one prompt do not read one another.
    rows = len(given)
    return given.roll(rows // 2, dims=0) if rows > 1 else torch.zeros_like(given)


def _require_keys_and_values(backbone: Backbone) -> None:
    """Refuse models that remember anything else, for that cannot be reordered or cropped in step.

    Raises:
        CalmError: For recurrent and state-space models, and those with a cache of their own.
    """
    model = backbone.model
    ordinary = getattr(model, "_supports_default_dynamic_cache", None)  # transformers' own list
    if getattr(model, "_is_stateful", False) or (ordinary is not None and not ordinary()):
        raise CalmError(
            f"{backbone.name!r} ({type(model).__name__}) remembers a text in a state of its own "
            "instead of keys and values, so beams and batches could not be kept in step with "
            "another model. Only models with attention caches can be composed."
        )
