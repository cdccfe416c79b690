"""LoRA on the anchor alone, by `peft`: a control with as many trained weights as a composition.

The paper (section 4.4, Table 5) compares CALM with LoRA "with the same number of added parameters"
and does not say which matrices were adapted; here it is every linear layer of the decoder.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.checkpoint import save
from calm_lightning.composed import HiddenStateComposition
from calm_lightning.contracts import CalmError, Composition
from calm_lightning.language_model import PlainModel


class LoRA(Composition):
    """Low-rank adapters on every linear layer of the anchor; augmenting models are not used.

    Args:
        rank: Of every adapter; null takes the rank whose number of weights is nearest to that of
            `match`, and warns where even rank 1 is far above it.
        match: A composition whose number of trained weights is to be met.
        alpha: Scale of the adapters; null is twice the rank.
        dropout: On the adapters' input.
        dora: Train size and direction of the weights apart (https://arxiv.org/abs/2402.09353).
        rslora: Divide `alpha` by the root of the rank (https://arxiv.org/abs/2312.03732).
    """

    exempt = {  # noqa: RUF012
        "augmenting_used": "LoRA has no augmenting model to use",
    }

    def __init__(
        self,
        rank: int | None = None,
        match: Composition | None = None,
        alpha: float | None = None,
        dropout: float = 0.0,
        dora: bool = False,
        rslora: bool = False,
    ) -> None:
        if (rank is None) == (match is None):
            raise CalmError("LoRA needs either a rank, or a composition to match; not both.")
        if rank is not None and rank < 1:
            raise CalmError(f"rank={rank} must be at least 1.")
        self.rank = rank
        self.match = match
        self.alpha = alpha
        self.dropout = dropout
        self.dora = dora
        self.rslora = rslora

    @override
    def compose(self, anchor: Backbone, augmenting: Sequence[Backbone]) -> PlainModel:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise CalmError(
                "LoRA needs the package peft: pip install 'calm-lightning[lora]'."
            ) from None
        rank = self.rank or self._matching_rank(anchor, augmenting)
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank if self.alpha is None else self.alpha,
            lora_dropout=self.dropout,
            use_dora=self.dora,
            use_rslora=self.rslora,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(anchor.model, config)  # puts the adapters into the anchor itself
        own = (self.alpha, self.dropout, self.dora, self.rslora)
        found = LoRA(rank, None, *own)  # builds the same, whatever is matched

        def write(folder: Path) -> None:
            save(model, found, folder)

        model = AdaptedModel(AdaptedBackbone(anchor), write, adapted.disable_adapter)
        model.composition = found
        model.save_adapter = adapted.save_pretrained
        return model

    def _matching_rank(self, anchor: Backbone, augmenting: Sequence[Backbone]) -> int:
        assert self.match is not None
        if not isinstance(self.match, HiddenStateComposition):
            raise CalmError(
                f"LoRA can match a composition of hidden states, such as CrossAttention; "
                f"{type(self.match).__name__} would change the anchor itself. Give a rank instead."
            )
        composed = self.match.compose(anchor, augmenting)
        wanted = sum(p.numel() for _, p in composed.trainable_parameters())
        composed.detach()
        layers = [m for m in anchor.layers.modules() if isinstance(m, nn.Linear | Conv1D)]
        if not layers:
            raise CalmError(
                f"LoRA finds no linear layer to adapt in {anchor.name!r}, so no rank matches."
            )
        per_rank = sum(sum(layer.weight.shape) for layer in layers)
        # DoRA has one magnitude for each output of a layer beside the two matrices.
        beside = sum(map(_outputs, layers)) if self.dora else 0
        rank = max(1, round((wanted - beside) / per_rank))
        found = rank * per_rank + beside
        if abs(found - wanted) > per_rank / 2:
            rank_zero_warn(
                f"LoRA cannot match {type(self.match).__name__}: it trains {wanted:,} weights, and "
                f"at rank {rank}, the least, the adapters of {anchor.name!r} have {found:,}. This "
                "row will have more trained weights than the one that it is compared with."
            )
        return rank


class AdaptedBackbone(Backbone):
    """The anchor with adapters inside: its own weights stay frozen, the adapters do not.

    Args:
        anchor: The anchor, after `peft` put adapters into it.
    """

    def __init__(self, anchor: Backbone) -> None:
        super().__init__(anchor.model, anchor.tokenizer, anchor.name, anchor.source)

    @override
    def freeze(self) -> None:
        self.model.eval()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(_is_adapter(name))

    @override
    def weights(self) -> dict[str, Tensor]:
        return {
            name.replace(".base_layer.", "."): weight
            for name, weight in self.model.state_dict().items()
            if not _is_adapter(name)
        }


class AdaptedModel(PlainModel):
    """The adapted anchor as one language model.

    Attributes:
        composition: What builds it again; saved with it.
        save_adapter: Writes the adapters into a folder in peft's own format, for other programs.
    """

    composition: "LoRA"
    save_adapter: Callable[..., None]

    @property
    @override
    def frozen_backbones(self) -> tuple[Backbone, ...]:
        return (self.backbone,)

    @override
    def train(self, mode: bool = True) -> "AdaptedModel":
        super().train(mode)  # the anchor goes into eval mode, and its adapters with it
        for name, module in self.model.named_modules():
            if _is_adapter(name):
                module.train(mode)
        return self


def _outputs(layer: nn.Linear | Conv1D) -> int:
    return int(layer.weight.shape[0 if isinstance(layer, nn.Linear) else 1])


def _is_adapter(name: str) -> bool:
    return ".lora_" in name
