"""`calm generate`: what is asked, of whom, and what is printed."""

import io
from pathlib import Path
from typing import Any

import pytest

from calm_lightning import generate as module
from calm_lightning.contracts import CalmError
from calm_lightning.generate import generate, open_model
from calm_lightning.language_model import PlainModel
from calm_lightning.testing import tiny_backbone, tiny_tokenizer


class Echo:
    """A model that answers with what it was asked, and by whom."""

    def __init__(self) -> None:
        self.alone = False
        self.options: list[dict[str, Any]] = []

    def generate_text(self, prompts: list[str], **options: Any) -> list[str]:
        self.options.append(options)
        return [f"{'anchor' if self.alone else 'both'} says {p}" for p in prompts]

    def anchor_only(self) -> "Echo":
        return self

    def __enter__(self) -> None:
        self.alone = True

    def __exit__(self, *rest: object) -> None:
        self.alone = False


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    model = Echo()
    monkeypatch.setattr(module, "open_model", lambda *arguments: model)
    return model


@pytest.mark.parametrize(
    ("show", "lines"),
    [
        ("composed", ["a", "  both says a"]),
        ("anchor", ["a", "  anchor says a"]),
        ("both", ["a", "  composed: both says a", "  anchor: anchor says a"]),
    ],
)
def test_who_answers(
    echo: Echo, capsys: pytest.CaptureFixture[str], show: Any, lines: list[str]
) -> None:
    generate("folder", ["a"], show=show)
    assert capsys.readouterr().out.splitlines() == lines


def test_prompts_come_from_options_then_the_file(
    echo: Echo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "asked.txt"
    file.write_text("b\n\n  \nc\n")
    generate("folder", ["a"], str(file))
    assert capsys.readouterr().out.splitlines()[::2] == ["a", "b", "c"]


def test_a_dash_reads_standard_input(
    echo: Echo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("x\ny\n"))
    generate("folder", file="-")
    assert capsys.readouterr().out.splitlines()[::2] == ["x", "y"]


def test_options_reach_the_model(echo: Echo) -> None:
    generate("folder", ["a"], max_new_tokens=7, sample=True, temperature=0.5, num_beams=2)
    generate("folder", ["a"])
    assert echo.options == [
        {"max_new_tokens": 7, "do_sample": True, "num_beams": 2, "temperature": 0.5},
        {"max_new_tokens": 64, "do_sample": False, "num_beams": 1},
    ]


def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "open_model", None)
    (tmp_path / "latin").write_bytes(b"\xe9")
    for options, wanted in [
        ({}, "Nothing was asked"),
        ({"file": str(tmp_path / "none")}, "No such file"),
        ({"file": str(tmp_path / "latin")}, "not UTF-8"),
        ({"prompt": ["a"], "max_new_tokens": 0}, "--max-new-tokens"),
        ({"prompt": ["a"], "num_beams": -1}, "--num-beams"),
        ({"prompt": ["a"], "temperature": 0.0}, "--temperature"),
    ]:
        with pytest.raises(CalmError, match=wanted):
            generate("folder", **options)  # type: ignore[arg-type]


def test_a_plain_model_is_opened_as_it_is(tmp_path: Path) -> None:
    backbone = tiny_backbone(tokenizer=tiny_tokenizer())
    backbone.model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = open_model(str(tmp_path))
    assert isinstance(model, PlainModel)
    assert model.backbone.fingerprint() == backbone.fingerprint()
    asked = {"max_new_tokens": 4, "do_sample": False}
    with model.anchor_only():
        assert model.generate_text(["12+3="], **asked) == PlainModel(
            backbone, lambda folder: None
        ).generate_text(["12+3="], **asked)


def test_what_is_sampled_depends_on_the_seed_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_backbone(tokenizer=tiny_tokenizer()).model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    said = []
    for seed in (1, 1, 2):
        generate(str(tmp_path), ["12+3="], sample=True, seed=seed, max_new_tokens=12)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
