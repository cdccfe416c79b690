"""Finished answers leave the batch: nobody's answer changes, and fewer tokens are computed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from calm_lightning.composed import ComposedModel
from calm_lightning.finished_rows import PIECE, can_leave
from calm_lightning.language_model import PlainModel, TextModel
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_lightning.testing.case import Case
from calm_plugins.compositions.cross_attention import CrossAttention

PROMPTS = ["12+3=", "hello, world", "ab", "the cat", "x"]
NEW = 3 * PIECE - 5
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}


def composed(*tokenizers: str, **settings: Any) -> TextModel:
    # Below the last layer too, so that the anchor remembers what was added.
    composition = CrossAttention(connections=[(1, 0), (3, 1), (2, 2)], **settings)
    model = Case(composition, tokenizers=tokenizers).build()
    assert isinstance(model, TextModel)
    return model


MODELS: dict[str, Callable[[], TextModel]] = {
    "one tokenizer": lambda: composed("byte_bpe", "byte_bpe"),
    "two tokenizers": lambda: composed("byte_bpe", "unigram"),
    "plain": lambda: PlainModel(tiny_backbone(tokenizer=tiny_tokenizer()), lambda folder: None),
}


def steps(model: TextModel, **options: Any) -> tuple[list[str], list[int]]:
    """The answers, and how many rows went through the anchor at each step of generation."""
    rows: list[int] = []
    layer = model.anchor_backbone.layers[0]
    hook = layer.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    try:
        return model.generate_text(PROMPTS, **{**GREEDY, **options}), rows
    finally:
        hook.remove()


def ending_apart(model: TextModel) -> str:
    """A text at which some answers end early and others do not."""
    said = model.generate_text(PROMPTS, **GREEDY)
    for mark in sorted({character for text in said for character in text}):
        early = [0 <= text.find(mark) < PIECE // 2 for text in said]
        if any(early) and not all(mark in text for text in said):
            return mark
    raise AssertionError("no text ends some answers only; take other seeds")


@pytest.mark.parametrize("name", MODELS)
def test_finished_answers_leave_and_no_answer_changes(name: str) -> None:
    model = MODELS[name]()
    mark = ending_apart(model)
    alone = [model.generate_text([p], stop=[mark], **GREEDY)[0] for p in PROMPTS]
    answers, rows = steps(model, stop=[mark])
    assert answers == alone
    assert rows[0] == len(PROMPTS)
    assert rows[-1] < len(PROMPTS)
    assert rows == sorted(rows, reverse=True)


def test_the_end_of_text_ends_an_answer_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["one tokenizer"]()
    batch = model.encode(PROMPTS)
    said = model.generate(**batch, **GREEDY, pad_token_id=model.pad_id).tolist()
    rows_of = [row[batch["input_ids"].shape[1] :] for row in said]
    end = next(
        token
        for token in sorted({token for row in rows_of for token in row})
        if any(token in row[: PIECE // 2] for row in rows_of)
        and not all(token in row for row in rows_of)
    )
    monkeypatch.setattr(model.generation_config, "eos_token_id", [end])  # type: ignore[attr-defined]
    together, rows = steps(model)
    assert together == [model.generate_text([p], **GREEDY)[0] for p in PROMPTS]
    assert rows[-1] < len(PROMPTS)


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": PIECE}, {"max_new_tokens": 60, "num_beams": 2}, {"max_length": 60},
     {"max_new_tokens": 60, "do_sample": True}, {"max_new_tokens": 60, "min_new_tokens": 20}],
)  # fmt: skip
def test_what_depends_on_an_answers_length_is_written_at_once(options: dict[str, Any]) -> None:
    model = MODELS["plain"]()
    assert can_leave(model, {"max_new_tokens": 60, "num_beams": 1, "do_sample": False})
    assert not can_leave(model, options)


def test_settings_of_the_model_count_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["one tokenizer"]()
    assert can_leave(model, GREEDY)
    monkeypatch.setattr(model.generation_config, "min_new_tokens", 3)  # type: ignore[attr-defined]
    assert not can_leave(model, GREEDY)
    assert not can_leave(composed("byte_bpe", "byte_bpe", augmenting_sees="prompt"), GREEDY)


@pytest.mark.parametrize("setting", [{"use_cache": False}, {"num_beams": 2}], ids=str)
def test_what_a_model_is_set_to_is_not_overlooked(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS["one tokenizer"]()
    for name, value in setting.items():
        monkeypatch.setattr(model.generation_config, name, value)  # type: ignore[attr-defined]
    assert not can_leave(model, GREEDY)


def test_nobody_leaves_rows_that_read_one_another() -> None:
    model = MODELS["one tokenizer"]()
    assert isinstance(model, ComposedModel)
    batch = model.encode(PROMPTS)
    with model.disturbed("shuffle"):
        ids = model.generate(**batch, **GREEDY, pad_token_id=model.pad_id)
        said = model.anchor_backbone.require_tokenizer().batch_decode(
            ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        mark = ending_apart(model)
        answers, rows = steps(model, stop=[mark])
        assert answers == [text.split(mark)[0] for text in said]
        assert set(rows) == {len(PROMPTS)}
    with model.disturbed("zero"):
        assert can_leave(model, GREEDY)  # nothing of another row is read


def test_draws_are_left_as_they_are() -> None:
    model = MODELS["one tokenizer"]()
    options = {"max_new_tokens": NEW, "do_sample": True, "pad_token_id": model.pad_id}
    batch = model.encode(PROMPTS)
    torch.manual_seed(0)
    ids = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    expected = model.anchor_backbone.require_tokenizer().batch_decode(ids, skip_special_tokens=True)
    torch.manual_seed(0)
    assert model.generate_text(PROMPTS, max_new_tokens=NEW, do_sample=True) == expected
