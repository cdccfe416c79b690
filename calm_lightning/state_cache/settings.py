"""What a user says of a state cache."""

from dataclasses import dataclass
from typing import Literal

from calm_lightning.contracts import CalmError


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
            used and nothing more is kept.
        anchor: Keep the anchor's states at its first connection too, so that its layers below are
            not run again.

    Raises:
        CalmError: If there is no room for anything.
    """

    folder: str
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    max_gigabytes: float = 8.0
    anchor: bool = True

    def __post_init__(self) -> None:
        if not self.max_gigabytes > 0:
            raise CalmError(f"cache_states.max_gigabytes={self.max_gigabytes} must be more than 0.")
