"""Promises about generation and text."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from calm_lightning import finished_rows
from calm_lightning.collate import IGNORED
from calm_lightning.composed import ComposedModel
from calm_lightning.composed.static import refuse_growing
from calm_lightning.contracts import CalmError
from calm_lightning.language_model import TextModel
from calm_lightning.testing.case import (
    ROUNDING,
    Case,
    difference,
    padded,
    read,
    require_close,
    seeded,
)

NEW_TOKENS = 6

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
    "sampled beams": {"do_sample": True, "top_k": 0, "num_beams": 3, "num_return_sequences": 2},
}
"""Ways to generate; each must give with a cache what it gives without."""

Operation = tuple[Callable[[Any], None], Callable[[Tensor], Tensor]]

OPERATIONS: dict[str, Operation] = {
    "reorder_cache": (
        lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])),
        lambda rows: rows[[2, 0, 0]],
    ),
    "batch_select_indices": (
        lambda cache: cache.batch_select_indices(torch.tensor([2, 1])),
        lambda rows: rows[[2, 1]],
    ),
    "batch_repeat_interleave": (
        lambda cache: cache.batch_repeat_interleave(2),
        lambda rows: rows.repeat_interleave(2, dim=0),
    ),
    "crop": (lambda cache: cache.crop(-3), lambda rows: rows[:, :-3]),
    "reset": (lambda cache: cache.reset(), lambda rows: rows[:, :0]),
}
"""What `generate` does to a cache, and the same done to the tokens in it."""


def check_cache(case: Case) -> None:
    """With a cache generation gives what it gives without, however it goes about it."""
    batch = padded(case.tokens(3, 8), (8, 5, 3), left=True, fill=0)
    for way, options in WAYS.items():
        with_cache, without = (
            _generate(case.model, batch, use_cache=use, **options) for use in (True, False)
        )
        _require_same_answer(with_cache, without, f"{way}, with and without a cache")
    _check_guessing(case)
    _check_operations(case)


def check_static_cache(case: Case) -> None:
    """In memories of a fixed size generation gives what it gives in growing ones.

    Models that cannot have them refuse with a `CalmError`.
    """
    batch = padded(case.tokens(3, 8), (8, 5, 3), left=True, fill=0)
    static = {"cache_implementation": "static", "disable_compile": True}
    for way in ("greedy", "sampled beams"):
        try:
            found = _generate(case.model, batch, **static, **WAYS[way])
        except CalmError:
            if isinstance(case.model, ComposedModel) and not _needs_growing(case.model):
                raise  # there is no reason for it
            return
        expected = _generate(case.model, batch, **WAYS[way])
        _require_same_answer(found, expected, f"{way}, in static and in growing memories")


def _needs_growing(model: ComposedModel) -> bool:
    try:
        refuse_growing(model, {})
    except CalmError:
        return True
    return False


def check_conversation(case: Case) -> None:
    """A conversation goes on in the cache of its last turn as from its whole text.

    A composition for which this has no meaning refuses with a `CalmError`.
    """
    model = case.model
    said = {"input_ids": case.tokens(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    cache = None
    for turn in range(3):
        try:
            answer = _generate(model, said, past_key_values=cache)
        except CalmError:
            if not turn:
                raise
            return
        expected = _generate(model, said, use_cache=False)
        _require_same_answer(answer, expected, f"turn {turn + 1} of a conversation in one cache")
        cache = answer.past_key_values
        ids = torch.cat([answer.sequences, case.tokens(2, 3, seed=turn + 1)], dim=1)
        said = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def check_loss(case: Case) -> None:
    """The loss of a text, in nats per target token, is that of generating it token by token."""
    prompt = 5
    ids = case.tokens(3, prompt)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    answer = _generate(case.model, batch, do_sample=True, top_k=0)
    logits = torch.stack(answer.logits, dim=1)
    new = answer.sequences[:, prompt:]
    expected = -logits.log_softmax(-1).gather(-1, new[..., None])[..., 0]
    lengths = (prompt + NEW_TOKENS, prompt + 4, prompt + 1)
    whole = padded(answer.sequences, lengths, left=False, fill=0)
    labels = whole["input_ids"].masked_fill(whole["attention_mask"] == 0, IGNORED)
    labels[:, :prompt] = IGNORED
    with torch.no_grad():
        loss = case.model.forward(**whole, labels=labels).loss
    assert loss is not None, "With `labels`, the output of `forward` must have a `loss`."
    kept = torch.cat([expected[i, : length - prompt] for i, length in enumerate(lengths)])
    require_close(
        loss,
        kept.mean(),
        f"The loss of generated texts is {float(loss):.4f}, but generating them cost "
        f"{float(kept.mean()):.4f} nats per token",
        "Is something visible in training that is not in generation, or the other way round? Are "
        "padding and prompt left out of the mean?",
    )


def check_text(case: Case) -> None:
    """Texts go in and come out alike alone and in a batch, and are cut where they should stop."""
    model = case.model
    prompts = ["abcabc", "d", "hello42"]
    options: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False}
    together = model.generate_text(prompts, **options)
    alone = [model.generate_text([prompt], **options)[0] for prompt in prompts]
    assert together == alone, f"In a batch {together}, but one by one {alone}."
    stop = max(together, key=len)[2:4]
    cut = model.generate_text(prompts, stop=[stop], **options)
    expected = [text.split(stop)[0] for text in together]
    assert cut == expected, f"With stop={stop!r}: expected {expected}, got {cut}."

    targets = ["xyz", "12", "w"]
    batch = model.encode(prompts, targets, ends=False)
    with torch.no_grad():
        loss = model.forward(**batch).loss
    total = sum(model.loglikelihood(p, t) for p, t in zip(prompts, targets, strict=True))
    count = int((batch["labels"] != IGNORED).sum())
    assert loss is not None, "A batch with targets must carry labels, and they give a loss."
    assert abs(total + float(loss) * count) <= ROUNDING * abs(total), (
        f"loglikelihood sums to {total:.4f}, the loss of the batch times its {count} target "
        f"tokens to {-float(loss) * count:.4f}."
    )


def check_speed_paths(case: Case) -> None:
    """Repeated prompts, answers that end early and drafts get the answers of each prompt alone."""
    model = case.model
    prompts = ["abcabc", "de", "hello42"]
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    # So few tokens are written at once, one prompt at a time, and no prompt is there twice.
    alone = {prompt: model.generate_text([prompt], **options)[0] for prompt in prompts}
    asked = [prompts[0], *prompts]
    stop = _ends_some(list(alone.values()))
    with patch.object(finished_rows, "PIECE", 2):  # rows may leave after every second token
        found = model.generate_text(asked, stop=stop, **options)
    expected = [alone[prompt] for prompt in asked]
    expected = [text.split(stop[0])[0] if stop else text for text in expected]
    assert found == expected, (
        f"With one prompt repeated, and stop={stop}: expected {expected}, got {found}. Which "
        "memory does not follow when rows of the cache are repeated, or taken out?"
    )
    if not (isinstance(model, TextModel) and model.frozen_backbones[1:]):
        return
    try:
        drafted = model.generate_text(prompts[:1], draft=0, **options)
    except CalmError:
        return  # whoever cannot propose tokens is refused
    assert drafted == [alone[prompts[0]]], (
        f"With draft=0 the answer is {drafted[0]!r}, without {alone[prompts[0]]!r}. Which memory "
        "does not follow when the cache is cropped?"
    )


def _ends_some(texts: list[str]) -> list[str]:
    """A character that stands early in some texts and nowhere in others; none if there is none."""
    early = sorted({character for text in texts for character in text[: NEW_TOKENS // 2]})
    some = [mark for mark in early if not all(mark in text for text in texts)]
    return some[:1]


def check_anchor_only(case: Case) -> None:
    """Switched off, the model answers as the anchor does, bit for bit, in `generate` too."""
    model, anchor = case.model, case.anchor.model
    ids = case.tokens(3, 9)
    prompts = padded(ids, (9, 9, 9), left=True, fill=0)
    composed = read(model, ids)
    with model.anchor_only():
        for cached in (False, True):
            found, expected = read(model, ids, cached=cached), read(anchor, ids, cached=cached)
            assert torch.equal(found, expected), (
                "With model.anchor_only() the logits are not the anchor's (largest difference: "
                f"{difference(found, expected):.1e} of the largest logit)."
            )
        for way in ("greedy", "beams"):
            for use_cache in (True, False):
                options = {"use_cache": use_cache, **WAYS[way]}
                found = _generate(model, prompts, **options)
                expected = _generate(anchor, prompts, **options)
                _require_same(found.sequences, expected.sequences, f"{way} with anchor_only()")
                assert all(map(torch.equal, found.logits, expected.logits)), (
                    f"{way} with anchor_only(): the logits are not the anchor's, bit for bit."
                )
    assert torch.equal(read(model, ids), composed), (
        "After `with model.anchor_only():` the model does not answer as it did before."
    )


def _check_guessing(case: Case) -> None:
    """Prompt lookup and assisted decoding guess tokens and crop the cache when they are wrong."""
    ids = case.tokens(1, 4).repeat(1, 3)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = _generate(case.model, batch, use_cache=False).sequences
    ways: dict[str, dict[str, Any]] = {
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
        "assisted decoding": {"assistant_model": case.anchor.model},
    }
    for way, options in ways.items():
        found = _generate(case.model, batch, **options).sequences
        _require_same(found, expected, f"{way} and plain greedy decoding")


def _check_operations(case: Case) -> None:
    batch = padded(case.tokens(3, 8), (8, 5, 4), left=True, fill=0)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for name, (operation, same) in OPERATIONS.items():
        with torch.no_grad():
            cache = case.model.forward(
                input_ids=ids[:, :1], attention_mask=mask[:, :1], use_cache=True
            ).past_key_values
            assert cache is not None, "With use_cache=True the output has no `past_key_values`."
            cache.activate_past_recording()  # so that models with a window can be cropped
            case.model.forward(
                input_ids=ids[:, 1:], attention_mask=mask, past_key_values=cache, use_cache=True
            )
            operation(cache)
            rows, kept = same(ids), same(mask)
            new = case.tokens(len(rows), 4, seed=1)
            kept = torch.cat([kept, torch.ones_like(new)], dim=1)
            found = case.model.forward(
                input_ids=new, attention_mask=kept, past_key_values=cache, use_cache=True
            ).logits
            expected = read(case.model, torch.cat([rows, new], dim=1), kept)[:, -4:]
        require_close(
            found,
            expected,
            f"After cache.{name}() the logits are not those of the same tokens without a cache",
            "A memory that does not live in the cache, or is left out there, falls out of step.",
        )


@torch.no_grad()
def _generate(model: Any, batch: dict[str, Tensor], **options: Any) -> Any:
    with seeded(3):
        return model.generate(
            **batch,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            **{"do_sample": False, **options},
        )


def _require_same_answer(found: Any, expected: Any, what: str) -> None:
    _require_same(found.sequences, expected.sequences, what)
    for step, pair in enumerate(zip(found.logits, expected.logits, strict=True)):
        require_close(
            *pair,
            f"{what}: other logits at new token {step}",
            "Which memory is not in the cache, or is not moved with it?",
        )


def _require_same(found: Tensor, expected: Tensor, what: str) -> None:
    if torch.equal(found, expected):
        return
    same_shape = found.shape == expected.shape
    where = (found != expected).nonzero()[0].tolist() if same_shape else "the shape"
    raise AssertionError(
        f"{what}: other tokens, first at {where} (row, position).\n{found.tolist()}\n"
        f"{expected.tolist()}\nWhich memory is not in the cache, or is not moved with it?"
    )
