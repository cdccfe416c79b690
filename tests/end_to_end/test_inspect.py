"""`calm inspect` on a run as `calm fit` leaves it, on one that did not finish, and on no run."""

import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


class Found(HTMLParser):
    """Where a page points to, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.said = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.references += [v for n, v in attrs if n in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.said += data


@pytest.fixture
def run(smoke_run: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smoke_run.folder, tmp_path / "a run"))


def test_the_page_of_a_run(calm: Any, run: Path) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    outcome = calm("inspect", run, "--examples", 3)
    assert outcome.status == 0, outcome.err
    assert f"Written: {run / 'inspect.html'}" in outcome.out
    page = Found((run / "inspect.html").read_text())
    outside = [ref for ref in page.references if not ref.startswith("data:")]
    assert not [ref for ref in outside if "//" in ref]
    for word in ("states shuffled", "kv_math_unseen_keys", "layer 3 to 3", "training loss",
                 "norm added by each connection", "examples a second", "seconds of training",
                 "9,280"):  # fmt: skip
        assert word in page.said
    for missing in ("could not be asked", "There are none", "No scores", "Not known"):
        assert missing not in page.said
    (run / "inspect.html").unlink()
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_run_that_did_not_finish_is_shown_by_its_checkpoint(calm: Any, run: Path) -> None:
    shutil.rmtree(run / "model")
    outcome = calm("inspect", run, "--examples", 0, "--out", run.parent / "page.html")
    assert outcome.status == 0, outcome.err
    said = Found((run.parent / "page.html").read_text()).said
    assert "could not be asked" not in said
    assert "after training" in said  # what was logged, as nothing was asked
    assert "layer 3 to 3" in said


def test_a_run_without_weights_is_shown_by_what_it_logged(calm: Any, run: Path) -> None:
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints")
    outcome = calm("inspect", run)
    assert outcome.status == 0, outcome.err
    said = Found((run / "inspect.html").read_text()).said
    assert "holds no trained weights" in said
    assert "training loss" in said


def test_what_is_no_run_is_told_in_one_message(calm: Any, run: Path) -> None:
    assert "There is no folder" in calm("inspect", run / "nowhere").message
    assert f"Did you mean {run}?" in calm("inspect", run / "model").message


def test_a_callback_of_the_config_takes_the_place_of_ours(fit: Any, tmp_path: Path) -> None:
    """So that one's own texts can be looked at; and it runs at all."""
    more = tmp_path / "more.yaml"
    more.write_text(
        "trainer:\n  callbacks:\n"
        "    - {class_path: LookInside, init_args: {texts: [ab], sets: 0}}\n"
        "    - {class_path: EarlyStopping, init_args: {monitor: train/loss_nats}}\n"
    )
    outcome = fit(tmp_path / "run", "-c", more)
    assert outcome.status == 0, outcome.err
    events = EventAccumulator(str(tmp_path / "run"), {"images": 0}, purge_orphaned_data=False)
    events.Reload()
    assert {tag.split("/")[1] for tag in events.Tags()["images"]} == {"text_0"}
    assert len(events.Images(events.Tags()["images"][0])) == 2  # once each time: ours is not there
