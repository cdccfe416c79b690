"""The conformance suite: what every composition promises, checked on tiny models.

A plug-in in another package needs three lines in its own tests:

    from calm_lightning.testing import ConformanceSuite

    class TestMine(ConformanceSuite):
        composition = MyComposition(rank=2)

Answers are read in one pass and, piece by piece, through a cache; all frozen models are of one
family, with one and with two augmenting models. `PROMISES` says each promise in one sentence.

A composition that cannot keep a promise names it in `Composition.exempt`, with the reason; the rest
is checked. Without pytest: `check(Case(MyComposition(rank=2)))`.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from calm_lightning.contracts import Composition
from calm_lightning.testing.case import Case
from calm_lightning.testing.generating import (
    check_anchor_only,
    check_cache,
    check_conversation,
    check_loss,
    check_speed_paths,
    check_static_cache,
    check_text,
)
from calm_lightning.testing.reading import (
    check_batch,
    check_causal,
    check_no_leak_in_training,
    check_no_state,
    check_packing,
    check_padding,
)
from calm_lightning.testing.tiny import FAMILIES
from calm_lightning.testing.training import (
    check_augmenting_used,
    check_checkpoint,
    check_frozen,
    check_gradient,
    check_reload,
    check_settings,
    check_starts_as_anchor,
)

_CHECKS: tuple[Callable[[Case], None], ...] = (
    check_settings,
    check_starts_as_anchor,
    check_anchor_only,
    check_causal,
    check_padding,
    check_batch,
    check_no_state,
    check_packing,
    check_cache,
    check_static_cache,
    check_conversation,
    check_loss,
    check_text,
    check_speed_paths,
    check_frozen,
    check_gradient,
    check_no_leak_in_training,
    check_augmenting_used,
    check_checkpoint,
    check_reload,
)

CHECKS: dict[str, Callable[[Case], None]] = {
    function.__name__.removeprefix("check_"): function for function in _CHECKS
}
"""The check of every promise: an AssertionError says what, how much, and where to look."""

PROMISES: dict[str, str] = {
    name: (inspect.getdoc(function) or name).splitlines()[0] for name, function in CHECKS.items()
}
"""Every promise in a sentence."""


def exemptions(composition: Composition) -> dict[str, str]:
    """The promises that a composition says it cannot keep, each with the reason.

    Raises:
        ValueError: If it names a promise that there is not.
    """
    unknown = sorted(composition.exempt.keys() - PROMISES.keys())
    if unknown:
        raise ValueError(
            f"{type(composition).__name__}.exempt names {', '.join(unknown)}; "
            f"the promises are {', '.join(PROMISES)}."
        )
    return composition.exempt


def broken_promises(case: Case, promises: Sequence[str] = tuple(PROMISES)) -> dict[str, str]:
    """The promises that are not kept, each with what the check found; exempt ones are left out.

    Args:
        case: What is checked.
        promises: Which ones; by default all.
    """
    broken = {}
    for name in promises:
        if name in exemptions(case.composition):
            continue
        try:
            with one_thread():
                CHECKS[name](case)
        except AssertionError as error:
            broken[name] = str(error)
        except Exception as error:  # a check that cannot be run to its end is not passed
            broken[name] = repr(error)
    return broken


def check(case: Case) -> None:
    """Check every promise that the composition does not exempt itself from.

    Raises:
        AssertionError: With everything that is broken.
    """
    broken = broken_promises(case)
    assert not broken, "\n".join(f"{name}: {found}" for name, found in broken.items())


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny models on one thread: several would wait for one another most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ConformanceSuite:
    """A pytest class with one test for each promise, family and number of augmenting models.

    Attributes:
        composition: What is checked.
        families: Of the backbones.
        numbers_of_augmenting: How many augmenting models there are.
    """

    composition: ClassVar[Composition]
    families: ClassVar[Sequence[str]] = FAMILIES
    numbers_of_augmenting: ClassVar[Sequence[int]] = (1, 2)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make the tests; called by pytest. Other tests of the class are left as they are."""
        if not {"case", "promise"} <= set(metafunc.fixturenames):
            return
        cases = [
            Case(self.composition, f, n) for f in self.families for n in self.numbers_of_augmenting
        ]
        metafunc.parametrize("case", cases, ids=str, scope="class")
        metafunc.parametrize("promise", PROMISES)

    def test_promise_is_kept(self, case: Case, promise: str) -> None:
        """Run the check, or skip it with the composition's reason."""
        reason = exemptions(case.composition).get(promise)
        if reason is not None:
            import pytest

            pytest.skip(f"{promise}: {reason}")
        with one_thread():
            CHECKS[promise](case)
