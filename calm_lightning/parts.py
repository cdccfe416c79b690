"""A model beside what it is made of: the composed model, its anchor and augmenting models alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from calm_lightning.contracts import CalmError
from calm_lightning.language_model import PlainModel, TextModel

COMPOSED = "composed"


class Part(NamedTuple):
    """One that can be asked."""

    label: str
    model: TextModel
    context: Callable[[], AbstractContextManager[Any]]
    """In which it answers as what the label says."""

    def answer(self, prompts: Sequence[str], **options: Any) -> list[str] | None:
        """What it says to each prompt, greedily; None if it cannot read them.

        Args:
            prompts: What is asked.
            options: Of `generate_text`.
        """
        try:
            with self.context():
                return self.model.generate_text(prompts, do_sample=False, num_beams=1, **options)
        except CalmError:  # an empty prompt, a context that is too short
            return None


def parts_of(model: TextModel) -> Iterator[Part]:
    """The model, and what it is made of as far as that can answer on its own.

    Args:
        model: The composed model.
    """
    yield Part(COMPOSED, model, nullcontext)
    backbones = model.frozen_backbones
    if backbones:
        yield Part("anchor alone", model, model.anchor_only)
    for number, backbone in enumerate(backbones[1:]):
        label = "augmenting model" if len(backbones) == 2 else f"augmenting model {number}"
        yield Part(f"{label} alone", PlainModel(backbone, _no_save), nullcontext)


def _no_save(folder: Path) -> None:
    raise AssertionError(f"a model that is only asked is not saved ({folder})")
