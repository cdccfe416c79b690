"""The page about a run: whole, without the network, and true to what anybody wrote into a run."""

import copy
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from lightning.pytorch.loggers import TensorBoardLogger

from calm_lightning.composed import HiddenStateComposition
from calm_lightning.contracts import (
    CalmError,
    Composition,
    EvaluationSet,
    ExactMatch,
    Example,
    Task,
)
from calm_lightning.inspect.command import inspect_run
from calm_lightning.inspect.opened import OpenedRun
from calm_lightning.inspect.page import MARK, Asked, render
from calm_lightning.inspect.picture import DrawnConnection, DrawnModel, draw
from calm_lightning.inspect.run_folder import RunFolder, read_run
from calm_lightning.module import CalmModule
from calm_lightning.run import quiet_libraries
from calm_lightning.testing import TinySource
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.linear import LinearBridge
from calm_plugins.compositions.lora import LoRA
from calm_plugins.compositions.single import Single

HOSTILE = "<script>alert(1)</script>$x^{$&amp;"
CONFIG: dict[str, Any] = {
    "model": {
        "anchor": {"path": HOSTILE},
        "augmenting": [{"path": "b", "weights": "random"}],
        "composition": {"class_path": f"pack.age.{HOSTILE}"},
    },
    "data": {"class_path": "pack.age.Sums", "init_args": {"note": HOSTILE}},
    "seed_everything": 3,
}
VOID = {"meta", "rect", "circle", "path", "br", "use", "image", "link", "img"}


class Page(HTMLParser):
    """What a page holds, and whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.said = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.references.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data


def checked(text: str) -> Page:
    """A page that needs no other file and runs no code."""
    page = Page(text)
    assert "script" not in page.tags
    assert all(ref.startswith(("#", "data:image/png;base64,")) for ref in page.references)
    assert not re.search(r"url\(\s*[\"']?(?!#)|@import", text)
    return page


class Hostile(Task):
    """Questions that are code for a browser, for matplotlib, and for a template."""

    def train_examples(self) -> Sequence[Example]:
        return []

    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        asked = [Example(HOSTILE, "{{ 1/0 }}"), Example("</svg>", "<b>")]
        return [EvaluationSet("<i>set", asked, ExactMatch, max_new_tokens=2)]


def asked(composition: HiddenStateComposition) -> Asked:
    quiet_libraries()
    augmenting = [TinySource(1, HOSTILE), TinySource(2, "second")]
    module = CalmModule(TinySource(0, "anchor"), composition, augmenting)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False,
             "accelerator": "cpu", "enable_checkpointing": False}  # fmt: skip
    trainer, task = L.Trainer(**quiet), Hostile()  # type: ignore[arg-type]
    trainer.validate(module, datamodule=task, verbose=False)
    opened = OpenedRun(module, trainer, task, {"<i>set/accuracy": 0.5})
    return Asked(opened, opened.scores(), opened.samples(), opened.probes())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "<u>run", CONFIG, {}, {})


# ------------------------------------------------------------------ the page


def test_a_page_holds_everything_and_no_word_of_it_is_taken_for_markup(run: RunFolder) -> None:
    text = render(run, asked(CrossAttention(every=2)), "", 2)
    page = checked(text)
    for section in ("composed", "contribution", "samples", "attention", "scores"):
        assert section in page.ids
    assert HOSTILE in page.said
    assert "{{ 1/0 }}" in page.said
    assert "<i>set" in page.said
    assert "b" not in page.tags
    assert "i" not in page.tags
    assert page.tags.count("svg") == 1 + 4  # the picture; one text, two models, two layers each
    for label in ("composed", "anchor alone", "states shuffled", "states zeroed", "without model 1",
                  "augmenting model 0 alone"):  # fmt: skip
        assert label in page.said
    assert 'name="viewport"' in text


def test_bridges_that_do_not_attend_have_no_heat_maps_and_that_is_said(run: RunFolder) -> None:
    page = checked(render(run, asked(LinearBridge(every=4)), "", 2))
    assert page.tags.count("svg") == 1
    assert "its bridges do not attend" in page.said


def composed_of(composition: Composition, augmenting: int) -> str:
    """What the page says under the first heading, with the page's line breaks taken out."""
    quiet_libraries()
    sources = [TinySource(1 + number) for number in range(augmenting)]
    module = CalmModule(TinySource(0, "anchor"), composition, sources)
    module.configure_model()
    opened = Asked(OpenedRun(module, None, None, {}), {}, [], [])
    said = checked(render(RunFolder(Path("run"), CONFIG, {}, {}), opened, "", 0)).said
    said = said.partition("What was composed")[2].partition("What the augmenting model")[0]
    return " ".join(said.split())


def test_what_is_trained_without_connections_is_said() -> None:
    said = composed_of(LoRA(rank=2), 0)
    assert re.search(r"no connections .* What it trains are [\d,]+ weights of its own", said)
    assert "green" not in said


def test_a_model_that_was_trained_itself_is_not_called_frozen() -> None:
    said = composed_of(Single(train=True), 0)
    assert re.search(r"There is no picture, .* training changes [\d,]+ weights", said)
    assert "stay frozen" not in said


def test_where_nothing_is_trained_that_is_said() -> None:
    said = composed_of(Single(), 0)
    assert "no connections" in said
    assert "Nothing of it is trained." in said
    assert "green" not in said


def test_connections_alone_are_trained_where_there_are_some() -> None:
    said = composed_of(LinearBridge(every=4), 1)
    assert "Only the green connections are trained." in said
    assert "What it trains" not in said


def test_a_run_whose_model_is_gone_says_so_and_shows_what_it_logged(tmp_path: Path) -> None:
    scalars = {
        "train/loss_nats": [(0.0, 3.0), (9.0, 2.0)],
        "val/one/accuracy": [(0.0, 0.25), (9.0, 0.75)],
        "val/one/accuracy/digits=2": [(0.0, 0.1)],
        "test/one/accuracy": [(0.0, 0.625)],
        "cost/seconds": [(9.0, 12.0)],
    }
    text = render(RunFolder(tmp_path, CONFIG, scalars, {}), None, f"gone: {HOSTILE}", 64)
    page = checked(text)
    assert f"gone: {HOSTILE}" in page.said
    assert page.tags.count("svg") == 2  # both curves
    for value in ("before training", "0.250", "after training", "0.750", "whole test", "0.625"):
        assert value in page.said
    assert "digits=2" not in page.said
    missing = [p for p in re.findall(r'class="soft">([^<]*)<', text) if "not asked" in p]
    assert len(missing) == 3  # contribution, samples, heat maps


def test_a_run_that_left_nothing_says_what_is_missing(run: RunFolder) -> None:
    said = checked(render(run, None, "There are no weights.", 64)).said
    for sentence in ("There are no weights.", "There is no picture", "No scores are known",
                     "left no TensorBoard events", "Nothing was written down"):  # fmt: skip
        assert sentence in said


def test_thicker_lines_are_stronger_connections() -> None:
    model = DrawnModel("a/b<c", "anchor", 4, 8)
    lines = [DrawnConnection(0, 3, 0, 0.25), DrawnConnection(0, 3, 3, 0.5)]
    picture = draw(model, [model], lines)
    first, second = (float(x) for x in re.findall(r'stroke-width="([\d.]+)"', picture))
    assert 1.5 < first < second
    assert picture.count("<rect") == 2 * 4 + 2  # layers, and backs of two labels
    assert "b&lt;c" in picture
    assert draw(model, [], []).count("<rect") == 4


# ------------------------------------------------------------------ the folder


def write_run(folder: Path, config: Any = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_scalars_are_read_from_all_event_files_the_newer_one_wins(tmp_path: Path) -> None:
    for number, value in enumerate((1.0, 2.0)):
        logger = TensorBoardLogger(tmp_path, name="", version="")
        logger.experiment.add_scalar("train/x", value, 5, walltime=100.0 + number)
        logger.experiment.add_scalar("train/x", value, 7 + number, walltime=100.0 + number)
        logger.finalize("success")
    run = read_run(write_run(tmp_path))
    assert run.scalars["train/x"] == [(5.0, 2.0), (7.0, 1.0), (8.0, 2.0)]
    assert run.last("train/x") == 2.0
    assert run.last("train/y") is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "There is no folder"),
        (lambda folder: folder.mkdir(), "no config.yaml"),
        (lambda folder: (folder / "rows" / "x" / "seed_0").mkdir(parents=True), "rows/x/seed_0"),
        (lambda folder: write_run(folder, [1, 2]), "is not the config of a run"),
        (lambda folder: write_run(folder, {"model": {}}), "is not the config of a run"),
        (lambda folder: (write_run(folder) / "config.yaml").write_text("a: [1"), "cannot be read"),
        (lambda folder: (write_run(folder) / "config.yaml").write_bytes(b"\xff"), "cannot be read"),
        (lambda folder: (write_run(folder) / "result.json").write_text("{"), "cannot be read"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, make: Any, said: str) -> None:
    make(tmp_path / "run")
    with pytest.raises(CalmError, match=said):
        read_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("entry", "came", "expected"),
    [
        ("model.anchor", "a/path", "a mapping"),
        ("model.composition", "CrossAttention", "a mapping"),
        ("model.composition", [1], "a mapping"),
        ("model.composition.init_args", "every", "a mapping"),
        ("model.augmenting", 5, "a list"),
        ("model.augmenting", {"path": "a"}, "a list"),
        ("data.init_args", [1], "a mapping"),
        ("data.init_args", "x", "a mapping"),
        ("trainer", 3, "a mapping"),
    ],
)
def test_an_entry_of_another_kind_is_named(
    tmp_path: Path, entry: str, came: Any, expected: str
) -> None:
    config = copy.deepcopy(CONFIG)
    *above, name = entry.split(".")
    place = config
    for each in above:
        place = place[each]
    place[name] = came
    run = write_run(tmp_path / "run", config)
    with pytest.raises(CalmError) as refused:
        read_run(run)
    for part in (f"{run}/config.yaml: {entry} ", f" {expected}", repr(came), "calm fit"):
        assert part in str(refused.value)


def test_what_a_config_may_leave_out_is_not_missed(tmp_path: Path) -> None:
    bare = {"model": {"composition": None, "augmenting": None}, "data": {"init_args": None}}
    run = read_run(write_run(tmp_path, bare))
    checked(render(run, None, "There are no weights.", 64))


def test_a_number_that_nobody_can_write_down_is_refused(tmp_path: Path) -> None:
    """Of hexadecimal digits YAML reads as many as there are; Python writes 4300 decimal ones."""
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text(f"model: {{}}\ndata: {{}}\nseed_everything: 0x{'f' * 5000}\n")
    with pytest.raises(CalmError, match=r"config\.yaml cannot be read"):
        read_run(run)


HUGE = "1" + "0" * 400


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (f'{{"steps": {HUGE}}}', "steps"),
        (f'{{"curve": [[1, {HUGE}], [2, 3]]}}', "curve"),
        ('{"curve": [[1, 1e308], [2, -1e308]]}', "curve"),
        (f'{{"metrics": {{"a": -{HUGE}}}}}', "metrics"),
        ('{"seconds": "long"}', "seconds"),
        ('{"name": "\\ud800"}', "surrogates"),
    ],
)
def test_a_result_that_no_page_can_show_is_refused(tmp_path: Path, result: str, said: str) -> None:
    run = write_run(tmp_path / "run")
    (run / "result.json").write_text(result)
    with pytest.raises(CalmError, match=rf"result\.json .*{said}") as refused:
        read_run(run)
    assert len(str(refused.value)) < 500


def test_a_result_with_numbers_that_are_none_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "result.json").write_text(
        '{"steps": NaN, "metrics": {"a": Infinity}, "seconds": NaN, "seed": {"a": 1}, '
        f'"name": [{json.dumps(HOSTILE)}], "curve": [[1, NaN], [2, Infinity], [3, 1.5]]}}'
    )
    assert HOSTILE in checked(render(read_run(run), None, "", 64)).said


def test_the_folder_of_a_runs_model_is_understood(tmp_path: Path) -> None:
    (write_run(tmp_path / "run") / "model").mkdir()
    with pytest.raises(CalmError, match=r"Did you mean .*run\?"):
        read_run(tmp_path / "run" / "model")


def test_nothing_of_the_users_is_written_over(tmp_path: Path) -> None:
    run, mine = write_run(tmp_path / "run"), tmp_path / "mine.html"
    mine.write_text("mine")
    with pytest.raises(CalmError, match="was not made by `calm inspect`"):
        inspect_run(str(run), out=str(mine))
    assert mine.read_text() == "mine"
    with pytest.raises(CalmError, match="that is a folder"):
        inspect_run(str(run), out=str(tmp_path))
    with pytest.raises(CalmError, match="must not be negative"):
        inspect_run(str(run), examples=-1)


def test_no_class_of_a_run_without_weights_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    harm = tmp_path / "harm"
    (tmp_path / "strange.py").write_text(f"open({str(harm)!r}, 'w')\nclass Sums: ...\n")
    config = {**CONFIG, "data": {"class_path": "strange.Sums"}}
    inspect_run(str(write_run(tmp_path / "run", config)))
    assert not harm.exists()


def test_a_page_of_ours_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    (run / "result.json").write_text(json.dumps({"name": "calm", "seed": 1, "metrics": {"a": 0.5}}))
    (run / "inspect.html").write_text(f"{MARK}\nold")
    inspect_run(str(run))
    page = checked((run / "inspect.html").read_text())
    assert "calm, seed 1" in page.said
    assert "0.500" in page.said
    assert "holds no trained weights" in page.said
    assert "holds no trained weights" in capsys.readouterr().out
