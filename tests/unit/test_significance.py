"""Whether two rows differ by more than chance."""

import itertools

import numpy as np
import pytest

from calm_lightning.contracts import CalmError
from calm_lightning.significance import _mean, paired_difference


def test_a_row_does_not_differ_from_itself() -> None:
    row = [[0.0, 1.0] * 50, [1.0, 0.0] * 50]
    found = paired_difference(row, row)
    assert found.mean == 0.0
    assert found.low <= 0.0 <= found.high
    assert not found.is_clear


def test_a_small_difference_on_the_same_questions_is_clear_where_pairing_shows_it() -> None:
    hard = np.random.default_rng(0).random(400)
    ours, theirs = [(hard > 0.5).astype(float).tolist()], [(hard > 0.55).astype(float).tolist()]
    paired = paired_difference(ours, theirs)
    assert 0.01 < paired.low < paired.mean < paired.high < 0.1
    shuffled = np.random.default_rng(1).permutation(theirs[0]).tolist()
    assert not paired_difference(ours, [shuffled]).is_clear


def test_seeds_that_disagree_widen_the_interval() -> None:
    steady = [[1.0] * 60 + [0.0] * 40] * 3
    uneven = [[1.0] * n + [0.0] * (100 - n) for n in (30, 60, 90)]
    other = [[1.0] * 50 + [0.0] * 50]
    narrow, wide = (paired_difference(row, other) for row in (steady, uneven))
    assert narrow.mean == pytest.approx(wide.mean)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    held = 0
    for trial in range(60):
        ours, theirs = generator.random(150) < 0.6, generator.random(150) < 0.5
        found = paired_difference(
            [ours.astype(float).tolist()],
            [theirs.astype(float).tolist()],
            resamples=300,
            seed=trial,
        )
        held += found.low <= 0.1 <= found.high
    assert 51 <= held <= 60


def test_rows_that_answered_other_questions_are_refused() -> None:
    with pytest.raises(CalmError, match=r"they answered \[2, 3\]"):
        paired_difference([[0.0, 1.0]], [[1.0, 1.0, 0.0]])
    with pytest.raises(CalmError, match="question by question"):
        paired_difference([], [[1.0]])


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_mean_over_drawn_seeds_varies_as_much_as_a_mean_over_seeds(seeds: int) -> None:
    """Drawn from n seeds it would vary by (n - 1) / n of that."""
    row = np.random.default_rng(3).normal(0.5, 0.05, size=(seeds, 1))
    draws = itertools.product(range(seeds), repeat=seeds)
    means = [float(_mean(row, np.array(drawn))[0]) for drawn in draws]
    assert np.mean(means) == pytest.approx(float(row.mean()))
    assert np.var(means) == pytest.approx(float(row.var(ddof=1)) / seeds)
