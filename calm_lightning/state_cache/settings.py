"""What a user says of a state cache."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from calm_lightning.contracts import CalmError

StateType = Literal["float32", "float16", "bfloat16"]


@dataclass
class StateCache:
    """Where states are kept, and how many.

    A token takes (tapped layers x augmenting width + anchor width) numbers.

    Attributes:
        folder: Any number of runs and processes may share it. It may be deleted whenever no run
            uses it; it is then filled again.
        dtype: In which the numbers are kept. Other than in the models' own type they are rounded,
            also where they are used for the first time, so that every epoch sees the same.
        max_gigabytes: How much the folder may hold (10^9 bytes). When it is full, what is there is
            used and nothing more is kept. Several processes may exceed it by a few batches each.
        anchor: Keep the anchor's states at its first connection too, so that its layers below are
            not run again.

    Raises:
        CalmError: If no folder is named, there is no such type, or the bound is none.
    """

    folder: str
    dtype: StateType = "float32"
    max_gigabytes: float = 8.0
    anchor: bool = True

    def __post_init__(self) -> None:
        if not self.folder.strip():
            raise CalmError("cache_states.folder is empty: name a folder, such as runs/states.")
        if self.dtype not in get_args(StateType):
            raise CalmError(
                f"cache_states.dtype={self.dtype!r} is none of {', '.join(get_args(StateType))}."
            )
        if not 0 < self.max_gigabytes < math.inf:
            raise CalmError(
                f"cache_states.max_gigabytes={self.max_gigabytes} must be a number above 0, such "
                "as 1000 for a terabyte."
            )
