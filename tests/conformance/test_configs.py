"""Every config in the repository fits the classes that it names. No weights are loaded."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from calm_lightning.comparison import Comparison, read_comparison
from calm_lightning.contracts import CalmError
from calm_lightning.run import CalmCLI

ROOT = Path(__file__).parents[2]
FILES = sorted(
    file
    for file in (ROOT / "configs").rglob("*.y*ml")
    if "models" not in file.relative_to(ROOT / "configs").parts
)
OWN = (  # what its first lines tell the user to add
    "--model.anchor.path=FOLDER", "--model.augmenting=[{path: FOLDER}]", "--data.train=FILE",
)  # fmt: skip


class Parsing(CalmCLI):
    """Reads a config, and builds nothing."""

    def instantiate_classes(self) -> None:
        """Nothing."""

    def before_instantiate_classes(self) -> None:
        """Nothing, and no folder."""


def is_comparison(file: Path) -> bool:
    said = yaml.safe_load(file.read_text())
    return "rows" in said or "extends" in said


RUNS = [file for file in FILES if not is_comparison(file)]
COMPARISONS = [file for file in FILES if is_comparison(file)]


def stack(file: Path) -> list[str]:
    """`anchor_2_longer.yaml` is a stage: it is read on top of `anchor.yaml`; so are variants."""
    whole = re.sub(r"_\d+_\w+$", "", file.stem)
    below = file.with_name(f"{whole}.yaml")
    if file.parent.name == "variants":
        below = file.parent.parent / "augmenting.yaml"
    return [arg for each in dict.fromkeys((below, file)) for arg in ("--config", str(each))]


def name(file: Path) -> str:
    return str(file.relative_to(ROOT / "configs"))


def parse(config: Any, *more: str) -> CalmCLI:
    if isinstance(config, Path):
        return Parsing(args=[*stack(config), *more], run=False)
    return Parsing(args=config, run=False)


def test_there_are_configs_of_both_kinds() -> None:
    assert {"smoke/key_value.yaml", "text/own_text.yaml"} <= {name(file) for file in RUNS}
    assert "smoke/compare.yaml" in {name(file) for file in COMPARISONS}


@pytest.mark.parametrize("file", RUNS, ids=name)
def test_a_run_fits_the_signatures(file: Path) -> None:
    cli = parse(file, *(OWN if file.parent.name == "text" else ()))
    config = cli.config
    assert config.model.composition.class_path.startswith("calm_plugins.")
    assert config.trainer.max_steps is None or config.trainer.max_steps > 0


@pytest.mark.parametrize("file", COMPARISONS, ids=name)
def test_every_row_of_a_comparison_fits_the_signatures(file: Path) -> None:
    comparison = read_comparison(file)
    for job in comparison.jobs:
        if job.seed == comparison.seeds[0]:
            parse(job.config())


@pytest.mark.parametrize("file", COMPARISONS, ids=name)
def test_a_comparison_names_rows_that_it_has(file: Path) -> None:
    comparison: Comparison = read_comparison(file)
    names = {row.name for row in comparison.rows}
    said = yaml.safe_load(file.read_text())
    if "extends" not in said:  # a part of another one need not have all of its rows
        assert comparison.paper.keys() <= names
    assert all(set(row) <= set(comparison.columns) for row in comparison.paper.values())
    assert not comparison.columns or set(comparison.samples) <= set(comparison.columns)


@pytest.mark.parametrize("file", FILES, ids=name)
def test_backbones_of_the_repository_are_there(file: Path) -> None:
    def sources(said: Any) -> Any:
        if isinstance(said, dict):
            if isinstance(said.get("path"), str):
                yield said
            for each in said.values():
                yield from sources(each)
        elif isinstance(said, list):
            for each in said:
                yield from sources(each)

    for source in sources(yaml.safe_load(file.read_text())):
        if source["path"].startswith("configs/"):
            assert (ROOT / source["path"] / "config.json").is_file(), source


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_config_opens_with_what_it_is_and_how_to_run_it(file: Path) -> None:
    text = file.read_text()
    head = text[: text.index("\n" + next(iter(yaml.safe_load(text))) + ":")]
    assert head
    assert all(line.startswith("#") for line in head.splitlines())
    if len(stack(file)) == 2:  # a stage is run with the rest, which says how
        assert f"configs/{name(file)}" in head or "`make " in head


def test_a_config_that_does_not_fit_is_noticed(tmp_path: Path) -> None:
    for old, new in [("every: 2", "evry: 2"), ("num_keys: 50", "num_keys: many"),
                     ("CrossAttention", "CrossAtention"), ("warmup_steps", "warmup")]:  # fmt: skip
        file = tmp_path / "config.yaml"
        text = (ROOT / "configs" / "smoke" / "key_value.yaml").read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        with pytest.raises(CalmError):
            parse(file)
