"""Candidates of a frozen model: its greedy answer, and some drawn at random.

Every draw has a random number generator of its own, whose seed follows from the prompt. So a prompt
has the same candidates whatever else is drawn in its batch, today and after a restart.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from typing_extensions import override

from calm_lightning.contracts import CalmError
from calm_lightning.language_model import PlainModel

_AT_A_TIME = 64
"""Candidates that are written together."""


@dataclass(frozen=True)
class Drawing:
    """How candidates are made.

    Attributes:
        sampled: How many are drawn at random, beside the greedy one.
        temperature: Of the draw.
        max_new_tokens: Longest candidate, in tokens of the model that writes it.
        few_shot: Text put before every prompt: solved examples, instructions.
        stop: Texts at which a candidate ends, itself left out.
        seed: Of the draws.

    Raises:
        CalmError: If a setting is out of range.
    """

    sampled: int = 4
    temperature: float = 0.6
    max_new_tokens: int = 64
    few_shot: str = ""
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sampled < 0:
            raise CalmError(f"sampled={self.sampled}: so many candidates cannot be drawn.")
        if not self.temperature > 0:
            raise CalmError(
                f"temperature={self.temperature} must be above 0; the greedy candidate is there "
                "in any case."
            )
        if self.max_new_tokens < 1:
            raise CalmError(f"max_new_tokens={self.max_new_tokens} must be at least 1.")

    @property
    def count(self) -> int:
        """Candidates of each prompt."""
        return 1 + self.sampled


def batches(prompts: Sequence[str], drawing: Drawing) -> list[Sequence[str]]:
    """Prompts in the portions in which their candidates are made."""
    size = max(1, _AT_A_TIME // drawing.count)
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def draw(model: PlainModel, prompts: Sequence[str], drawing: Drawing) -> list[tuple[str, ...]]:
    """The candidates of each prompt, the greedy one first.

    Args:
        model: Who writes them.
        prompts: What is asked.
        drawing: How.

    Raises:
        CalmError: If a prompt does not fit the model's context.
    """
    noise = GumbelNoise(
        [
            _generator(prompt, number, drawing.seed) if number else None
            for prompt in prompts
            for number in range(drawing.count)
        ],
        drawing.temperature,
    )
    written = model.generate_text(
        [drawing.few_shot + prompt for prompt in prompts for _ in range(drawing.count)],
        stop=drawing.stop,
        max_new_tokens=drawing.max_new_tokens,
        do_sample=False,
        num_beams=1,
        logits_processor=LogitsProcessorList([noise]),
    )
    starts = range(0, len(written), drawing.count)
    return [tuple(written[start : start + drawing.count]) for start in starts]


class GumbelNoise(LogitsProcessor):
    """Makes the likeliest token of some rows a random one, drawn by that row's own generator.

    The largest of logits / temperature + Gumbel noise is distributed as a sample at that
    temperature (the Gumbel-max trick).

    Args:
        generators: One for each row; None leaves a row greedy.
        temperature: Of the draw.
    """

    def __init__(self, generators: Sequence[torch.Generator | None], temperature: float) -> None:
        self.generators = generators
        self.temperature = temperature

    @override
    def __call__(
        self, input_ids: Int[Tensor, "rows tokens"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        noisy = scores.clone()
        for row, generator in enumerate(self.generators):
            if generator is None:
                continue
            uniform = torch.rand(scores.shape[-1], generator=generator).clamp(min=1e-20)
            noisy[row] = scores[row] / self.temperature - (-uniform.log()).log().to(scores)
        return noisy


def _generator(prompt: str, number: int, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}\n{number}\n{prompt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
