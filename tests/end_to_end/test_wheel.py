"""A wheel, built from a clean copy, is all that is needed to compose models from an empty folder.

Only our own package is new in the environment in which it is used: torch and the others are those
that run this test, found by a path file. What the wheel itself must hold is seen all the same,
because the checkout is not on that path.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "calm_lightning", "plugins")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

pytestmark = pytest.mark.slow

CONFIG = """
model:
  anchor: {path: anchor, weights: random}
  augmenting: [{path: augmenting, weights: random, seed: 1}]
  composition: {class_path: CrossAttention, init_args: {every: 1}}
data:
  class_path: TextFile
  init_args: {train: text.jsonl, batch_size: 4, max_new_tokens: 4}
trainer: {accelerator: cpu, max_steps: 2, num_sanity_val_steps: 0, enable_progress_bar: false}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy without anything that tools have left."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    pip = [sys.executable, "-m", "pip", "wheel", *options]
    subprocess.run([*pip, folder / "dist", source], check=True)
    (built,) = (folder / "dist").glob("*.whl")
    return built


class Installed:
    """An environment with our wheel, and an empty folder to work in."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.empty = folder / "empty"
        self.empty.mkdir()
        self.home = folder / "venv"
        venv.create(self.home, with_pip=False, symlinks=os.name != "nt")
        self.site = Path(self.run_python("import sysconfig; print(sysconfig.get_path('purelib'))"))
        unpacked = ["--quiet", "--no-deps", "--no-index", "--no-compile", wheel]
        pip = [sys.executable, "-m", "pip", "--python", self.home / "bin" / "python", "install"]
        subprocess.run([*pip, *unpacked], check=True)
        # A path file in a folder that a path file names is not read: the checkout stays unseen.
        (self.site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, program: str, *arguments: str) -> str:
        """What a program of the environment prints; it must succeed."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        done = subprocess.run(
            [self.home / "bin" / program, *arguments],
            cwd=self.empty,
            env={**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def run_python(self, code: str) -> str:
        """The same of a line of Python."""
        return self.run("python", "-c", code)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    tops = {name.partition("/")[0] for name in held}
    assert tops == {"calm_lightning", "calm_plugins", f"{wheel.name[: -len('-py3-none-any.whl')]}"
                    ".dist-info"}  # fmt: skip
    source = {
        str(file.relative_to(root))
        for root, package in ((ROOT, "calm_lightning"), (ROOT / "plugins", "calm_plugins"))
        for file in (root / package).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert {name for name in held if ".dist-info/" not in name} == source
    assert {"calm_lightning/py.typed", "calm_plugins/py.typed"} <= source


def test_it_is_our_own_package_that_is_used(installed: Installed) -> None:
    said = installed.run_python(
        "import calm_lightning, calm_plugins, torch; "
        "print(calm_lightning.__file__, calm_plugins.__file__, torch.__file__, sep='\\n')"
    )
    *ours, torch = map(Path, said.splitlines())
    assert all(file.is_relative_to(installed.site) for file in ours)
    assert not torch.is_relative_to(installed.site)


def test_from_an_empty_folder_models_are_made_composed_and_asked(installed: Installed) -> None:
    listed = installed.run("calm", "plugins")
    for name in PROJECT["entry-points"]["calm_lightning.plugins"]:
        assert name in listed
    assert "Left out" not in listed
    lines = [f'{{"prompt": "{a}+{b}=", "target": "{a + b}"}}' for a in range(8) for b in range(8)]
    (installed.empty / "text.jsonl").write_text("\n".join(lines))
    (installed.empty / "c.yaml").write_text(CONFIG)
    fresh = ("-m", "calm_lightning.fresh_model")
    small = ("--width", "32", "--layers", "2", "--context", "64")
    installed.run("python", *fresh, "anchor", "--texts", "c.yaml", "--vocabulary", "270", *small)
    installed.run("python", *fresh, "augmenting", "--like", "anchor", *small)

    assert "runs/mine/model" in installed.run("calm", "fit", "-c", "c.yaml", "--run", "runs/mine")
    said = installed.run("calm", "generate", "runs/mine/model", "--prompt", "1+2=",
                         "--max-new-tokens", "4")  # fmt: skip
    assert said.startswith("1+2=")
    installed.run("calm", "inspect", "runs/mine", "--examples", "1")  # needs a template
    assert (installed.empty / "runs" / "mine" / "inspect.html").stat().st_size > 0
