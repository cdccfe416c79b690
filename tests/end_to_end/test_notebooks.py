"""The notebooks: as they are committed, and executed again at smoke size."""

import ast
import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]

SMOKE: dict[str, dict[str, int]] = {
    "1_first_composition": {"STEPS": 2, "BATCH": 4},
    "2_your_own_two_models": {"STEPS": 2},
    "3_write_a_plug_in": {"QUESTIONS": 4},
    "4_look_inside": {"STEPS": 2, "BATCH": 4, "EXAMPLES": 2},
    "5_read_a_comparison": {},
}
"""What the cell tagged `parameters` says otherwise in a test."""

SLOW = {"2_your_own_two_models", "3_write_a_plug_in", "4_look_inside"}
"""Those that take more than ten seconds."""

LARGEST = 300_000
"""Bytes of a notebook: it is read in a browser, and every version of it stays in the repository."""

PUBLIC = re.compile(r"calm_lightning(\.(contracts|composed|testing)(\.|$)|$)|calm_plugins(\.|$)")
"""Modules of this project that a notebook may import from."""

OF_A_MACHINE = re.compile(r"(?<![\w.])/(home|root|Users|tmp|work|opt|usr|var|mnt)\b|\b[A-Z]:\\")


def committed(name: str) -> Any:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in code_of(notebook) for output in cell.outputs]


def texts_of(outputs: list[Any]) -> list[str]:
    """What is written in outputs; pictures aside."""
    texts = []
    for output in outputs:
        texts += [output.get("text", ""), *output.get("traceback", ())]
        data = output.get("data", {})
        texts += [text for kind, text in data.items() if kind.startswith("text/")]
    return texts


def test_every_notebook_is_tested() -> None:
    assert {file.stem for file in (ROOT / "notebooks").glob("*.ipynb")} == SMOKE.keys()


@pytest.mark.parametrize("name", SMOKE)
def test_what_is_committed_was_run_from_top_to_bottom(name: str) -> None:
    notebook = committed(name)
    nbformat.validate(notebook)
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, 1 + len(cells)))
    outputs = outputs_of(notebook)
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    noise = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not noise, "warnings and progress bars say nothing to a reader"
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < LARGEST


@pytest.mark.parametrize("name", SMOKE)
def test_no_output_names_a_place_of_the_machine_that_ran_it(name: str) -> None:
    for text in texts_of(outputs_of(committed(name))):
        found = OF_A_MACHINE.search(text)
        assert found is None, text[max(0, found.start() - 80) : found.end() + 80]


@pytest.mark.parametrize("name", SMOKE)
def test_every_cell_is_introduced(name: str) -> None:
    kinds = [cell.cell_type for cell in committed(name).cells]
    assert kinds[0] == "markdown"
    assert ("code", "code") not in set(pairwise(kinds))


@pytest.mark.parametrize("name", SMOKE)
def test_only_the_public_api_is_imported(name: str) -> None:
    for cell in code_of(committed(name)):
        for node in ast.walk(ast.parse(without_magics(cell.source))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                assert PUBLIC.match(module) or not module.startswith("calm_"), module


def without_magics(source: str) -> str:
    """A cell as Python: `%%writefile` writes a Python file, or one that is not Python at all."""
    first, _, rest = source.partition("\n")
    if first.startswith("%%"):
        return rest if first.endswith(".py") else ""
    return "" if first.startswith("!") else source


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a notebook reads of a clone, in a folder into which it may write."""
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "runs" / "notebooks").mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SMOKE],
)
def test_it_runs(name: str, clone: Path) -> None:
    notebook = committed(name)
    smaller = "".join(f"\n{option} = {value}" for option, value in SMOKE[name].items())
    tagged = [c for c in code_of(notebook) if "parameters" in c.metadata.get("tags", ())]
    assert len(tagged) == bool(smaller)
    for cell in tagged:
        cell.source += smaller
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(clone / "notebooks")}}
    )
    client.execute()  # raises what a cell raises
    noise = [o.text for o in outputs_of(notebook) if o.get("name") == "stderr"]
    assert not noise
