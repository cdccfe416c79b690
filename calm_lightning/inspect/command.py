"""`calm inspect RUN`: the page, written."""

from pathlib import Path

from calm_lightning.contracts import CalmError
from calm_lightning.inspect.opened import open_run
from calm_lightning.inspect.page import MARK, Asked, render
from calm_lightning.inspect.run_folder import read_run


def inspect_run(run: str, out: str | None = None, examples: int = 64) -> None:
    """Write one HTML page about a run.

    Args:
        run: Its folder: runs/NAME, or RESULTS/rows/ROW/seed_N.
        out: The page; inspect.html in the run's folder by default.
        examples: Questions of each evaluation set that are asked anew; 0 asks none.

    Raises:
        CalmError: If it is not the folder of a run, or the page would take another file's place.
    """
    if examples < 0:
        raise CalmError(f"--examples={examples} must not be negative; 0 asks no questions.")
    folder = Path(run)
    found = read_run(folder)
    file = Path(out) if out is not None else folder / "inspect.html"
    _refuse_other_files(file)
    asked, why_not = None, ""
    try:
        opened = open_run(found, examples)
        scores = opened.scores() if examples else {}
        asked = Asked(opened, scores, opened.samples(), opened.probes())
    except (CalmError, OSError) as error:
        why_not = str(error)
    text = render(found, asked, why_not, examples)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    print(f"Written: {file}")
    if why_not:
        print(f"Without what the model itself would tell: {why_not}")


def _refuse_other_files(file: Path) -> None:
    """Nothing but a page of ours is written over."""
    if file.is_dir():
        raise CalmError(f"--out {file}: that is a folder; name a file.")
    if file.exists() and not file.read_bytes().startswith(MARK.encode()):
        raise CalmError(
            f"{file} is there already and was not made by `calm inspect`. Name another file with "
            "--out; nothing was changed."
        )
