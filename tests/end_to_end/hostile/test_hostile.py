"""Whatever is wrong with an input: one clear message, status 2, no code run, nothing lost.

Each case is data (see `Case`): what lies on the disk, a command, and what its message must name.
"""

from collections.abc import Callable

import pytest

from calm_lightning.cli import OWN_COMMANDS, TRAINER_COMMANDS

from . import bad_checkpoints, bad_comparisons, bad_configs, bad_data, bad_models, bad_options
from .ground import Case

KINDS = (bad_configs, bad_data, bad_models, bad_checkpoints, bad_comparisons, bad_options)
CASES = [case for kind in KINDS for case in kind.CASES]


@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "_") for case in CASES])
def test_hostile_input_is_refused(case: Case, refuse: Callable[[Case], None]) -> None:
    refuse(case)


def test_every_command_has_a_case() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60
    tried = {case.words[0] for case in CASES}
    assert tried >= {*TRAINER_COMMANDS, *OWN_COMMANDS} - {"plugins"}  # it takes nothing
