"""What is compared: this project and its rivals, each as its users would run it."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import CompileConfig, DynamicCache
from typing_extensions import override

import calm_lightning as calm
from benchmarks.pairs import Pair
from calm_lightning.backbone import Backbone
from calm_lightning.collate import IGNORED
from calm_lightning.compiling import CompiledLayers
from calm_lightning.composed import ComposedModel
from calm_lightning.composed.head import mean_loss


def _everywhere() -> CompileConfig:
    """As transformers compiles a step; left to itself it does so on accelerators only."""
    config = CompileConfig()
    config._compile_all_devices = True
    return config


class Side(ABC):
    """One way to train a model and to generate with it.

    Args:
        pair: The models; every side builds its own.
    """

    name: str
    note = ""
    """What a reader must know about this side."""
    trains = generates = pads = grows = True
    compiled_generation: ClassVar[dict[str, Any] | None] = None
    """Options of `generate` by which it compiles its step, if it can."""

    def __init__(self, pair: Pair) -> None:
        self.anchor = pair.build_anchor()
        self.augmenting: list[Backbone] = []

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """What generates."""

    def loss(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Mean next-token loss of a batch, in nats.

        Args:
            ids: [rows, length] token ids.
            mask: [rows, length], 0 at padding.
            labels: [rows, length], -100 where nothing is asked.
        """
        return cast(Tensor, self.model(input_ids=ids, attention_mask=mask, labels=labels).loss)

    def generate(self, ids: Tensor, mask: Tensor, new_tokens: int) -> Any:
        """Greedy continuations, with caches."""
        return self._write(ids, mask, new_tokens, {})

    def _write(self, ids: Tensor, mask: Tensor, new_tokens: int, options: dict[str, Any]) -> Any:
        options = {"max_new_tokens": new_tokens, "do_sample": False, **options}
        generating: Any = self.model
        with torch.no_grad():
            return generating.generate(input_ids=ids, attention_mask=mask, **options)

    def everything(self) -> nn.Module:
        """All that runs, for profiles."""
        return self.model

    def trained(self) -> list[nn.Parameter]:
        """The weights that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]


class Composed(Side):
    """This project: cross-attention, from every tapped layer."""

    name = "calm-lightning"
    compiled_generation: ClassVar[dict[str, Any] | None] = {"cache_implementation": "static"}

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.augmenting = [pair.build_augmenting(number) for number in range(pair.models)]
        composition = calm.CrossAttention(pair.wiring, num_heads=pair.heads)
        composed = calm.compose(self.anchor, self.augmenting, composition)
        assert isinstance(composed, ComposedModel)
        self.composed = composed.train()

    @property
    @override
    def model(self) -> nn.Module:
        return self.composed


class Alone(Side):
    """The frozen anchor: what its own forward pass, and its own generation, take."""

    name = "anchor alone"
    note = "anchor alone trains nothing: its training step is one forward pass."
    compiled_generation: ClassVar[dict[str, Any] | None] = {
        "cache_implementation": "static",
        "compile_config": _everywhere(),
    }

    @property
    @override
    def model(self) -> nn.Module:
        return self.anchor.model


class Full(Alone):
    """Full fine-tuning of the anchor."""

    name = "full fine-tuning"
    note = ""
    generates = False  # it is the anchor alone
    compiled_generation = None

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.anchor.model.requires_grad_(True).train()


class Floor(Alone):
    """The cheapest frozen composition: both models run, and one linear map is trained.

    It adds to the output of the first connected anchor layer, so that the gradient goes as far
    down as in any composition with this wiring. There is no attention to pay for, and no logits
    either: its loss is ours, the cheapest that there is.
    """

    name = "floor"
    note = (
        "floor: both models run, one linear map is trained at the first connected anchor layer; "
        "its loss is taken without logits, as ours is."
    )

    compiled_generation = None

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.augmenting = [pair.build_augmenting(number) for number in range(pair.models)]
        widths = pair.augmenting[0], pair.anchor[0]
        self.map = nn.Linear(*widths, bias=False)
        self.caches: list[DynamicCache | None] = [None] * pair.models
        self.anchor.decoder.register_forward_pre_hook(self._read, with_kwargs=True)
        self.anchor.layers[pair.wiring[0][1]].register_forward_hook(self._add)

    @override
    def loss(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        read = self.anchor.decoder(input_ids=ids, attention_mask=mask, use_cache=False)
        targets = labels[:, 1:]
        asked = targets != IGNORED
        head: Any = self.anchor.model.get_output_embeddings()
        return mean_loss(read.last_hidden_state[:, :-1][asked], head, targets[asked])

    @override
    def everything(self) -> nn.Module:
        read = nn.ModuleList(backbone.model for backbone in self.augmenting)
        return nn.ModuleDict({"anchor": self.model, "augmenting": read, "map": self.map})

    @override
    def trained(self) -> list[nn.Parameter]:
        return list(self.map.parameters())

    def _read(self, module: nn.Module, args: Any, given: dict[str, Any]) -> None:
        cache = given.get("past_key_values")
        if cache is None or not cache.get_seq_length():
            fresh = [None if cache is None else DynamicCache() for _ in self.augmenting]
            self.caches = fresh
        states = []
        for model, own in zip(self.augmenting, self.caches, strict=True):
            with torch.no_grad():
                read = model.decoder(
                    input_ids=given["input_ids"],
                    attention_mask=given.get("attention_mask"),
                    position_ids=given.get("position_ids"),
                    past_key_values=own,
                    use_cache=own is not None,
                )
            states.append(read.last_hidden_state)
        self.states = sum(states)

    def _add(self, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + self.map(self.states)


class LoRA(Side):
    """Low-rank adapters of rank 8 on every linear layer of the anchor, by peft."""

    name = "LoRA"
    note = "LoRA: peft, rank 8 on every linear layer, not merged."

    def __init__(self, pair: Pair) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__(pair)
        config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        self.adapted = get_peft_model(self.anchor.model, config).train()

    @property
    @override
    def model(self) -> nn.Module:
        return self.adapted


class CalmPytorch(Side):
    """CALM-pytorch (https://github.com/lucidrains/CALM-pytorch), with the same wiring and heads."""

    name = "CALM-pytorch"
    note = (
        "CALM-pytorch: its cross-attention has no causal mask and it has no cache; it samples, "
        "for it cannot be greedy. Its recorders keep every anchor layer's states of every step."
    )
    pads = False  # the anchor is given no mask

    def __init__(self, pair: Pair) -> None:
        from CALM_pytorch import CALM, AugmentParams

        super().__init__(pair)
        self.augmenting = [pair.build_augmenting(number) for number in range(pair.models)]
        self.composed = CALM(
            Logits(self.anchor.model),
            [
                AugmentParams(
                    Logits(backbone.model),
                    transformer_blocks=list(backbone.layers),
                    connections=tuple((source + 1, target + 1) for source, target in pair.wiring),
                )
                for backbone in self.augmenting
            ],
            attn_kwargs={
                "linear_project_context": True,
                "pre_rmsnorm": True,
                "flash": True,
                "heads": pair.heads,
                "dim_head": pair.anchor[0] // pair.heads,
            },
            anchor_transformer_blocks=list(self.anchor.layers),
        )

    @property
    @override
    def model(self) -> nn.Module:
        return self.composed

    @override
    def loss(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        return cast(Tensor, self.composed(ids, prompt=ids))

    @override
    def generate(self, ids: Tensor, mask: Tensor, new_tokens: int) -> Any:
        return self.composed.generate(ids, seq_len=ids.shape[1] + new_tokens)


class Logits(nn.Module):
    """A Hugging Face model as CALM-pytorch takes it: ids in, logits out.

    Args:
        model: It.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @override
    def forward(self, ids: Tensor) -> Tensor:
        return cast(Tensor, self.model(ids).logits)


PLAIN: dict[str, type[Side]] = {
    "calm": Composed,
    "floor": Floor,
    "anchor": Alone,
    "lora": LoRA,
    "calm_pytorch": CalmPytorch,
    "full": Full,
}


def compiled(kind: type[Side]) -> type[Side]:
    """The same side with what torch compiles.

    In training that is each layer, as `model.compile` has it. In generation it is the whole step
    from one token to the next, in a cache of a fixed size, of the sides that can.
    """

    class Compiled(kind):  # type: ignore[valid-type, misc]
        name = f"{kind.name}, compiled"
        note = ""
        generates = kind.compiled_generation is not None
        grows = False  # its cache has one size for all tokens of an answer

        def __init__(self, pair: Pair) -> None:
            super().__init__(pair)
            self.compiled_layers = CompiledLayers([self.anchor, *self.augmenting])

        @override
        def loss(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
            with self.compiled_layers.at_work():
                return cast(Tensor, super().loss(ids, mask, labels))

        @override
        def generate(self, ids: Tensor, mask: Tensor, new_tokens: int) -> Any:
            return self._write(ids, mask, new_tokens, kind.compiled_generation)

    return Compiled


SIDES = PLAIN | {f"{name}_compiled": compiled(kind) for name, kind in PLAIN.items()}


def build(names: list[str], pair: Pair) -> tuple[dict[str, Side], list[str]]:
    """The sides, and a sentence for each that cannot be had."""
    sides: dict[str, Side] = {}
    missing = []
    for name in names:
        try:
            sides[name] = SIDES[name](pair)
        except ModuleNotFoundError as error:
            missing.append(
                f"{SIDES[name].name} is left out: there is no package {error.name!r}. "
                "pip install 'calm-lightning[bench]' installs all that is compared."
            )
    return sides, missing
