"""A merging method as a user writes one: a class in a module that an entry point names.

What stands between the two marks is all of it: under sixty lines with its packaging.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from calm_lightning.backbone import Backbone
from calm_lightning.compare import finished, run_job
from calm_lightning.comparison import read_comparison
from calm_lightning.contracts import CalmError
from calm_lightning.discovery import load_plugins
from calm_lightning.report import write_report
from calm_lightning.run import CalmCLI
from calm_lightning.testing import Case, broken_promises, tiny_backbone
from calm_plugins.compositions.merging import MergeMethod, Merging

# ------------------------------------------------------------------ the user's package

MODULE = '''
"""Merging by the trimmed mean of each weight: outliers among the models do not count."""

from calm_lightning.contracts import CalmError
from calm_plugins.compositions.merging import MergeMethod

import torch


class TrimmedMean(MergeMethod):
    """At each place the mean of what is left without the smallest and the largest values.

    Args:
        trim: How many values are left out at each end.
    """

    def __init__(self, trim: int = 1) -> None:
        self.trim = trim

    def check(self, weights):
        if len(weights) <= 2 * self.trim:
            raise CalmError(f"TrimmedMean: trim={self.trim} leaves none of {len(weights)} models.")

    def merge(self, tensors, weights, base, generator):
        values = torch.stack(list(tensors)).sort(dim=0).values
        return values[self.trim : len(tensors) - self.trim].mean(dim=0)
'''

ENTRY_POINTS = """
[calm_lightning.plugins]
trimmed_mean = trimmed_mean
"""

# ------------------------------------------------------------------ what it gets for that

CONFIG: dict[str, Any] = {
    "model": {
        "anchor": {"path": "configs/models/tiny/anchor", "weights": "random"},
        "augmenting": [
            {"path": "configs/models/tiny/anchor", "weights": "random", "seed": 1},
            {"path": "configs/models/tiny/anchor", "weights": "random", "seed": 2},
        ],
        "composition": {
            "class_path": "Merging",
            "init_args": {"method": {"class_path": "TrimmedMean", "init_args": {"trim": 1}}},
        },
    },
    "data": {"class_path": "KeyValue", "init_args": {"num_keys": 50, "evaluation_examples": 2}},
    "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
}


class Alike(Case):
    """Augmenting models of the anchor's architecture, as merging needs them."""

    def backbones(
        self, vocab: int = 37, scale: float = 0.2, seed: int = 0
    ) -> tuple[Backbone, list[Backbone]]:
        seeds = range(seed, seed + 3)
        anchor, *augmenting = (super(Alike, self).backbones(vocab, scale, s)[0] for s in seeds)
        return anchor, augmenting


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package above, as pip leaves it on the path."""
    (tmp_path / "trimmed_mean.py").write_text(MODULE)
    about = tmp_path / "trimmed_mean-1.0.dist-info"
    about.mkdir()
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: trimmed-mean\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    load_plugins.cache_clear()
    yield
    load_plugins.cache_clear()
    sys.modules.pop("trimmed_mean", None)


def method(trim: int) -> MergeMethod:
    module = next(p.module for p in load_plugins() if p.name == "trimmed_mean")
    assert module is not None
    made = module.TrimmedMean(trim)
    assert isinstance(made, MergeMethod)
    return made


def test_it_is_short() -> None:
    assert len((MODULE + ENTRY_POINTS).strip().splitlines()) < 60


def test_a_config_finds_it_by_its_short_name(installed: None) -> None:
    cli = CalmCLI(args=CONFIG, run=False)
    composition = cli.model.composition
    assert isinstance(composition, Merging)
    assert type(composition.method).__name__ == "TrimmedMean"
    cli.model.configure_model()
    merged = cli.model.language_model
    middle = torch.stack([s.load().model.lm_head.weight for s in (
        cli.model.anchor_source, *cli.model.augmenting_sources
    )]).median(dim=0).values  # fmt: skip
    torch.testing.assert_close(merged.model.lm_head.weight, middle)  # type: ignore[attr-defined]


def test_its_own_refusal_comes_before_anything_is_merged(installed: None) -> None:
    models = [tiny_backbone(seed=seed, layers=1) for seed in range(2)]
    with pytest.raises(CalmError, match="trim=1 leaves none of 2 models"):
        Merging(method(1)).compose(models[0], models[1:])


def test_it_keeps_the_promises(installed: None) -> None:
    assert broken_promises(Alike(Merging(method(1)))) == {}


def test_it_is_a_row_of_the_table(installed: None, tmp_path: Path) -> None:
    row = {"name": "mine", "label": "my trimmed mean", "train": False}
    file = tmp_path / "comparison.yaml"
    file.write_text(yaml.safe_dump({"name": "own", "base": CONFIG, "rows": [row]}))
    comparison = read_comparison(file)
    (job,) = comparison.jobs
    run_job(job, tmp_path, 1, {})
    result = finished(job, tmp_path)
    assert result is not None
    write_report(comparison, [result], tmp_path)
    table = (tmp_path / "table.md").read_text()
    (line,) = (line for line in table.splitlines() if line.startswith("| my trimmed mean"))
    assert "| 0.0 |" in line
