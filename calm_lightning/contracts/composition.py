"""The contract of a composition: one language model out of frozen backbones.

That is the whole contract, so cross-attention, routing, merging, LoRA and rewriting can all keep
it. `calm_lightning.testing` checks it for every installed plug-in.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

if TYPE_CHECKING:
    from calm_lightning.backbone import Backbone


class LanguageModel(ABC):
    """One language model, whatever it is made of.

    A concrete class is also a `torch.nn.Module`. Texts go in through `encode`; ids come out of
    `generate` as `transformers` returns them.
    """

    @abstractmethod
    def encode(
        self,
        texts: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        ends: bool | Sequence[bool] = True,
    ) -> dict[str, Tensor]:
        """Turn texts into the batch that `forward` and `generate` take, for every backbone.

        Args:
            texts: One prompt per row.
            targets: What should follow each prompt. With targets the rows are padded on the right
                and carry `labels` (-100 where nothing is to be learnt); without, on the left.
            ends: Whether an end-of-text token follows each target and is learnt; one for all rows,
                or one each.

        Raises:
            CalmError: If a row does not fit the model's context.
        """

    @abstractmethod
    def forward(self, **batch: Any) -> CausalLMOutputWithPast:
        """Run on a batch. With `labels`, `loss` is the mean over target tokens, in nats."""

    @abstractmethod
    def generate(self, **batch_and_options: Any) -> Any:
        """Token ids of prompt and continuation, by `transformers`' generation options."""

    @abstractmethod
    def generate_text(
        self, prompts: Sequence[str], *, stop: Sequence[str] = (), **generation_kwargs: Any
    ) -> list[str]:
        """The continuation of each prompt, as text, cut before the first of `stop`."""

    @abstractmethod
    def loglikelihood(self, prompt: str, target: str) -> float:
        """Log-probability of `target` after `prompt`, in nats, summed over its tokens."""

    @abstractmethod
    def anchor_only(self) -> AbstractContextManager[None]:
        """While it is active, the model answers as the anchor alone does, bit for bit.

        Raises:
            CalmError: If the model has no composition to switch off.
        """

    @abstractmethod
    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the trained part, and names and hashes of the backbones that it belongs to."""

    if TYPE_CHECKING:  # torch.nn.Module has it

        def __call__(self, **batch: Any) -> CausalLMOutputWithPast:  # noqa: D102
            ...

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and weight of everything that training may change."""
        assert isinstance(self, nn.Module), "a LanguageModel is also a torch.nn.Module"
        return ((n, p) for n, p in self.named_parameters() if p.requires_grad)

    @property
    def frozen_backbones(self) -> tuple["Backbone", ...]:
        """The backbones that must not change while this model is trained."""
        return ()


class Composition(ABC):
    """A way to make one language model out of frozen backbones.

    A subclass keeps every constructor argument in an attribute of the same name, so that a saved
    model can be built again from `settings()`.

    Attributes:
        exempt: Promises of the conformance suite (`calm_lightning.testing.PROMISES`) that this
            composition cannot keep by its nature, each with the reason. The suite checks the rest.
        training_only: Settings that change how weights are trained and not what they mean, so that
            a run may go on from saved weights with others.
    """

    exempt: dict[str, str] = {}  # noqa: RUF012  (a class attribute on purpose)
    training_only: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def compose(self, anchor: "Backbone", augmenting: Sequence["Backbone"]) -> LanguageModel:
        """Join the backbones.

        Args:
            anchor: The general model whose output is wanted (m_B in the paper).
            augmenting: The specialised models (m_A), possibly none.

        Raises:
            CalmError: If this composition cannot join these backbones; the message says why.
        """

    def settings(self) -> dict[str, Any]:
        """The constructor arguments that build this composition again."""
        arguments = inspect.signature(type(self)).parameters.values()
        named = [a.name for a in arguments if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
        return {name: getattr(self, name) for name in named}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"{type(self).__name__}({arguments})"
