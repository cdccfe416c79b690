"""Setting a threshold so that a wanted share of prompts goes to an augmenting model.

As the released code of `RouteLLM <https://arxiv.org/abs/2406.18665>`_ does: the threshold is a
quantile of the scores of some prompts. Nothing but prompts is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from calm_lightning.contracts import CalmError
from calm_lightning.plain_data import parse_json


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it does on the prompts that it was found on.

    Attributes:
        threshold: A prompt with a higher score goes to an augmenting model.
        share: Share of the prompts that do. It misses the wanted one where scores are equal.
    """

    threshold: float
    share: float


def check_share(share: float) -> None:
    """Refuse what is no share.

    Raises:
        CalmError: If it is not between 0 and 1, both left out.
    """
    if not 0 < share < 1:
        raise CalmError(
            f"share={share}: the share of prompts that an augmenting model answers is between 0 "
            "and 1, both left out. For all or none, compare with Single."
        )


def check_threshold(threshold: float) -> None:
    """Refuse what is no threshold.

    Raises:
        CalmError: If it is not between 0 and 1.
    """
    if not 0 <= threshold <= 1:
        raise CalmError(
            f"threshold={threshold}: a score is between 0 and 1, and so is its threshold. At 1 "
            "the anchor answers everything, at 0 it answers nothing."
        )


def calibrate(scores: Tensor, share: float) -> Calibration:
    """The threshold that `share` of these scores are above.

    Raises:
        CalmError: If the share is none, or there are no scores.
    """
    check_share(share)
    if not len(scores):
        raise CalmError("There are no prompts to calibrate with.")
    threshold = float(torch.quantile(scores.double(), 1 - share))
    return Calibration(threshold, float((scores.double() > threshold).double().mean()))


def read_prompts(file: Path) -> Sequence[str]:
    """Prompts of a file: JSON lines with `prompt` (`.jsonl`), or one a line.

    Raises:
        CalmError: If the file is missing, not as it should be, or empty; with the line.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # U+2028 is no end of a line
    except (OSError, UnicodeDecodeError) as error:
        raise CalmError(f"calibration={file}: its prompts cannot be read: {error}") from None
    prompts = [
        _prompt(line, f"{file}, line {number}") if file.suffix == ".jsonl" else line
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise CalmError(f"calibration={file}: there is no prompt in it.")
    return prompts


def _prompt(line: str, where: str) -> str:
    expected = 'expected an object such as {"prompt": "2+2="}'
    try:
        prompt = parse_json(line)["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise CalmError(f"{where}: {expected} ({error!r}).") from None
    if not isinstance(prompt, str):
        raise CalmError(f"{where}: {expected}, and `prompt` is {prompt!r}.")
    return prompt
