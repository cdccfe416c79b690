"""Several answers to each question of an evaluation set: how they are drawn."""

import math
from collections.abc import Mapping
from typing import Any

from calm_lightning.contracts import CalmError


def sampling(samples: int, temperature: float) -> Mapping[str, Any]:
    """Options of `generate` (`EvaluationSet.generation`) for so many answers to each question.

    Above 0, tokens are drawn from the model's whole distribution at the temperature, whatever its
    own generation settings say of top_k and top_p, so that models compare.

    Args:
        samples: Answers to each question.
        temperature: 0 takes the likeliest token each time.

    Raises:
        CalmError: If one is out of range, or all answers would be the same.
    """
    if samples < 1:
        raise CalmError(f"samples must be at least 1: got {samples}.")
    if not 0 <= temperature < math.inf:
        raise CalmError(f"temperature must not be negative: got {temperature}.")
    if samples > 1 and not temperature:
        raise CalmError(
            f"samples={samples} answers to each question are all the same at temperature=0, which "
            "takes the likeliest token each time. Give a temperature above 0, such as 0.8."
        )
    if not temperature:
        return {}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
