"""`calm generate`: what is asked, of whom, and what is printed."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

import calm_lightning as calm
from calm_lightning import cli
from calm_lightning import generate as module
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError
from calm_lightning.generate import generate, open_model
from calm_lightning.language_model import PlainModel
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_lightning.testing.case import disturb
from calm_plugins.compositions.cross_attention import CrossAttention

SHORT = {"max_new_tokens": 4}
GREEDY = {**SHORT, "do_sample": False}
Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model() -> ComposedModel:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }};{% endfor %}"
    anchor, augmenting = (tiny_backbone(seed=seed, tokenizer=tokenizer) for seed in (0, 1))
    composed = calm.compose(anchor, [augmenting], CrossAttention())
    disturb(composed, 0.2)
    return composed


@pytest.fixture
def opened(model: ComposedModel, monkeypatch: pytest.MonkeyPatch) -> ComposedModel:
    """What `generate` opens, whatever folder it is told."""
    monkeypatch.setattr(module, "open_model", lambda *arguments: model)
    return model


def answer(model: ComposedModel, prompt: str, alone: bool = False, **options: Any) -> str:
    options = {**GREEDY, **options}
    if alone:
        with model.anchor_only():
            return model.generate_text([prompt], **options)[0]
    return model.generate_text([prompt], **options)[0]


def test_one_answer_is_streamed_and_is_the_same(
    opened: ComposedModel, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        "transformers.TextStreamer.on_finalized_text",
        lambda self, text, stream_end=False: (written.append(text), print(text, end="")),
    )
    generate("folder", ["ab"], **SHORT)
    assert capsys.readouterr().out == f"ab\n  {answer(opened, 'ab')}"
    assert len(written) > 1  # token by token


def test_beams_are_printed_at_the_end(opened: ComposedModel, capsys: Printed) -> None:
    generate("folder", ["ab"], num_beams=2, **SHORT)
    assert capsys.readouterr().out == f"ab\n  {answer(opened, 'ab', num_beams=2)}\n"


def test_the_anchor_alone_answers_alone(opened: ComposedModel, capsys: Printed) -> None:
    generate("folder", ["ab"], anchor_only=True, **SHORT)
    assert capsys.readouterr().out == f"ab\n  {answer(opened, 'ab', alone=True)}\n"
    assert answer(opened, "ab", alone=True) != answer(opened, "ab")


def test_a_draft_is_asked_for_on_the_command_line(opened: ComposedModel, capsys: Printed) -> None:
    proposed: list[int] = []
    head = opened.augmenting[0].get_output_embeddings()
    hook = head.register_forward_hook(lambda *_: proposed.append(1))
    try:
        cli.main(["generate", "folder", "--prompt", "ab", "--max-new-tokens", "4", "--draft", "0"])
    finally:
        hook.remove()
    assert capsys.readouterr().out == f"ab\n  {answer(opened, 'ab')}\n"
    assert proposed


def test_compiling_asks_for_memories_of_a_fixed_size(
    opened: ComposedModel, capsys: Printed, monkeypatch: Any
) -> None:
    steps: list[Any] = []

    def uncompiled(model: ComposedModel, options: Any) -> Any:
        steps.append(options)
        return model._step

    monkeypatch.setattr(ComposedModel, "_compiled", uncompiled)
    cli.main(["generate", "folder", "--prompt", "ab", "--max-new-tokens", "4", "--compile"])
    assert capsys.readouterr().out == f"ab\n  {answer(opened, 'ab')}\n"
    assert [options["backend"] for options in steps] == ["inductor"] * 3


def test_a_draft_of_no_model_is_refused_before_anything_is_printed(
    opened: ComposedModel, capsys: Printed
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["generate", "folder", "--prompt", "ab", "--draft", "1"])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "draft=1: tokens are proposed by an augmenting model, and there are 1" in printed.err


def test_both_answers_stand_side_by_side(opened: ComposedModel, capsys: Printed) -> None:
    generate("folder", ["ab", "12"], compare=True, **SHORT)
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[3]] == ["ab", "12"]
    assert lines[1].split() == ["composed", "anchor"]
    for line, prompt in ((lines[2], "ab"), (lines[5], "12")):
        composed, anchor = answer(opened, prompt), answer(opened, prompt, alone=True)
        assert line.startswith(composed)
        assert line.rstrip().endswith(anchor.rstrip())


@pytest.mark.parametrize("size", [1, 2, 8])
def test_several_prompts_are_answered_in_batches(
    opened: ComposedModel, capsys: Printed, tmp_path: Path, size: int, monkeypatch: Any
) -> None:
    file = tmp_path / "asked.txt"
    file.write_text("b\n\n  \ncde\n")
    sizes: list[int] = []
    whole = ComposedModel.generate_text

    def counted(self: ComposedModel, prompts: list[str], **options: Any) -> list[str]:
        sizes.append(len(prompts))
        return whole(self, prompts, **options)

    monkeypatch.setattr(ComposedModel, "generate_text", counted)
    generate("folder", ["ab"], str(file), batch_size=size, **SHORT)
    assert sizes == {1: [1, 1, 1], 2: [2, 1], 8: [3]}[size]
    said = [
        line for prompt in ("ab", "b", "cde") for line in (prompt, "  " + answer(opened, prompt))
    ]
    assert capsys.readouterr().out == "\n".join([*said, ""])


def test_a_dash_reads_standard_input(
    opened: ComposedModel, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("x\ny\n"))
    generate("folder", file="-", **SHORT)
    assert capsys.readouterr().out.splitlines()[::2] == ["x", "y"]


def test_a_prompt_may_be_a_message(opened: ComposedModel, capsys: Printed) -> None:
    generate("folder", ["ab"], chat=True, **SHORT)
    assert capsys.readouterr().out == f"ab\n  {answer(opened, 'uab;')}\n"


# ---------------------------------------------------------------- on a terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Somebody types these lines, and then Ctrl-D."""
    lines: list[str] = []

    def typed(prompt: str) -> str:
        assert prompt == "> "
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    return lines


def test_questions_are_asked_for(
    opened: ComposedModel, terminal: list[str], capsys: Printed
) -> None:
    terminal += ["ab", "", "12"]
    generate("folder", **SHORT)
    first, *said = capsys.readouterr().out.splitlines()
    assert first == "Asking tiny-llama-0 + tiny-llama-1. Ctrl-D ends."
    assert said == [answer(opened, "ab"), answer(opened, "12"), ""]


def test_a_conversation_is_remembered(
    opened: ComposedModel, terminal: list[str], capsys: Printed
) -> None:
    terminal += ["ab", "12"]
    generate("folder", chat=True, **SHORT)
    first = answer(opened, "uab;")
    assert capsys.readouterr().out.splitlines()[1:3] == [
        first, answer(opened, f"uab;a{first};u12;"),
    ]  # fmt: skip


def test_a_refused_question_does_not_end_the_conversation(
    opened: ComposedModel, terminal: list[str], capsys: Printed
) -> None:
    terminal += ["x" * 70, "ab"]
    generate("folder", **SHORT)
    printed = capsys.readouterr()
    assert "calm: Row 0 needs" in printed.err
    assert answer(opened, "ab") in printed.out


def test_both_may_converse(opened: ComposedModel, terminal: list[str], capsys: Printed) -> None:
    terminal += ["ab"]
    generate("folder", compare=True, **SHORT)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["composed", "anchor"]
    assert lines[2].startswith(answer(opened, "ab"))


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "open_model", None)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    (tmp_path / "latin").write_bytes(b"\xe9")
    for options, wanted in [
        ({}, "Nothing was asked"),
        ({"file": str(tmp_path / "none")}, "No such file"),
        ({"file": str(tmp_path / "latin")}, "not UTF-8"),
        ({"prompt": ["a"], "max_new_tokens": 0}, "--max-new-tokens"),
        ({"prompt": ["a"], "num_beams": -1}, "--num-beams"),
        ({"prompt": ["a"], "batch_size": 0}, "--batch-size"),
        ({"prompt": ["a"], "temperature": 0.0}, "--temperature"),
        ({"prompt": ["a"], "anchor_only": True, "compare": True}, "leave out --anchor-only"),
        ({"prompt": ["a"], "chat": True, "draft": 0}, "leave out --chat"),
        ({"prompt": ["a"], "compile": True, "draft": 0}, "leave out one of them"),
    ]:
        with pytest.raises(CalmError, match=wanted):
            generate("folder", **options)  # type: ignore[arg-type]


def test_only_a_composition_of_layers_is_compiled(monkeypatch: Any) -> None:
    alone = PlainModel(tiny_backbone(tokenizer=tiny_tokenizer()), lambda _: None)
    monkeypatch.setattr("calm_lightning.generate.open_model", lambda *_: alone)
    with pytest.raises(CalmError, match=r"folder is not one.*Leave out --compile"):
        generate("folder", ["a"], compile=True)


# ---------------------------------------------------------------- what is opened


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """The folder of a plain model."""
    tiny_backbone().model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_plain_model_is_opened_as_it_is(plain: Path) -> None:
    backbone = tiny_backbone(tokenizer=tiny_tokenizer())
    model = open_model(str(plain))
    assert isinstance(model, PlainModel)
    assert model.backbone.fingerprint() == backbone.fingerprint()
    with model.anchor_only():
        assert model.generate_text(["12+3="], **GREEDY) == PlainModel(
            backbone, lambda folder: None
        ).generate_text(["12+3="], **GREEDY)


def test_a_device_that_is_not_there_is_refused(plain: Path) -> None:
    with pytest.raises(CalmError, match="--device cuda:99 cannot be used"):
        open_model(str(plain), device="cuda:99")


def test_without_a_chat_template_there_is_no_chat(plain: Path, capsys: Printed) -> None:
    with pytest.raises(CalmError, match="has no chat template"):
        generate(str(plain), ["ab"], chat=True)
    assert capsys.readouterr().out == ""


def test_what_is_sampled_depends_on_the_seed_alone(plain: Path, capsys: Printed) -> None:
    said = []
    for seed in (1, 1, 2):
        generate(str(plain), ["12+3="], sample=True, seed=seed, max_new_tokens=12)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
