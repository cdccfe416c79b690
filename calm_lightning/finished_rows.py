"""Greedy answers to a batch of prompts, of which the finished ones leave the batch.

transformers goes on with all rows until the last of them has ended: one answer that never ends
makes every other one as dear as itself. Here answers are written in pieces, and after each the
rows that have ended are taken out, of the caches as well. No row reads another one, so what is said
stays the same; where one does, as while states are shuffled across rows, all of them stay.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, StoppingCriteriaList

from calm_lightning.generation_settings import asked, settings_of
from calm_lightning.stopping import StopAtText

if TYPE_CHECKING:
    from calm_lightning.language_model import TextModel

PIECE = 16
"""Tokens that are written before it is looked who has ended; a call of `generate` costs about as
much as one or two."""

_UNDERSTOOD = {"max_new_tokens", "pad_token_id", "eos_token_id"}
_USUAL = {"do_sample": False, "num_beams": 1, "use_cache": True, "num_return_sequences": 1}
_HARMLESS = {
    # Settings of a model that say nothing about how long an answer has become
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "do_sample",
    "temperature", "top_k", "top_p", "min_p", "use_cache", "transformers_version", "max_length",
    "output_attentions", "output_hidden_states", "return_dict_in_generate", "_from_model_config",
}  # fmt: skip


def can_leave(model: "TextModel", options: Mapping[str, Any]) -> bool:
    """Whether answers may be written in pieces: greedily, and whatever their length.

    Args:
        model: Who answers. Its settings count as options do.
        options: Of `generate`.
    """
    if options.get("max_new_tokens") is None or options["max_new_tokens"] <= PIECE:
        return False
    if model.mixes_rows:
        return False
    if any(asked(model, options, name) not in (None, usual) for name, usual in _USUAL.items()):
        return False
    if getattr(model, "augmenting_sees", "full") != "full":
        return False  # which prompt was read is remembered, and a piece is no prompt
    if options.keys() - _UNDERSTOOD - _USUAL.keys():
        return False
    if model.anchor_backbone.is_shared_out:
        return False  # processes compute together, so none may be finished before another
    return not settings_of(model).to_diff_dict().keys() - _HARMLESS


@torch.no_grad()
def answers_of(
    model: "TextModel",
    batch: Mapping[str, Tensor],
    options: Mapping[str, Any],
    stop: Sequence[str],
    cache: Cache | None = None,
) -> list[list[int]]:
    """The new tokens of each row; behind the end of an answer there may be padding.

    Args:
        model: Who answers; `generate` goes on from a cache that it filled.
        batch: `input_ids` and `attention_mask`, [rows, columns], padded on the left.
        options: Of `generate`, such that `can_leave`.
        stop: Texts that end an answer.
        cache: Of all columns but the last, if they have been read.
    """
    tokenizer = model.anchor_backbone.require_tokenizer()
    ids, mask, prompt = batch["input_ids"], batch["attention_mask"], batch["input_ids"].shape[1]
    ends = torch.tensor(end_tokens(model, options), device=ids.device)
    rows = torch.arange(len(ids))  # which prompt each row of the batch belongs to
    answers: list[list[int]] = [[]] * len(ids)
    left: int = options["max_new_tokens"]
    while True:
        more: dict[str, Any] = {"past_key_values": cache, "max_new_tokens": min(PIECE, left)}
        criterion = StopAtText(tokenizer, stop, prompt) if stop else None
        if criterion is not None:
            more["stopping_criteria"] = StoppingCriteriaList([criterion])
        said = model.generate(
            input_ids=ids,
            attention_mask=mask,
            return_dict_in_generate=True,
            **{**options, **more},
        )
        new = said.sequences[:, ids.shape[1] :]
        ids, cache, left = said.sequences, said.past_key_values, left - new.shape[1]
        for row, answer in zip(rows.tolist(), ids[:, prompt:].tolist(), strict=True):
            answers[row] = answer
        ended = torch.isin(new, ends).any(-1)
        if criterion is not None and criterion.ended is not None:
            ended |= criterion.ended
        if ended.all() or left <= 0:
            return answers
        mask = torch.nn.functional.pad(mask, (0, new.shape[1]), value=1)
        if ended.any():
            going = (~ended).nonzero().squeeze(-1)
            cache.batch_select_indices(going)
            ids, mask, rows = ids[going], mask[going], rows[going.cpu()]


def end_tokens(model: "TextModel", options: Mapping[str, Any]) -> list[int]:
    """The tokens that end an answer.

    Args:
        model: Who answers.
        options: Of `generate`.
    """
    end = asked(model, options, "eos_token_id")
    return [] if end is None else [end] if isinstance(end, int) else list(end)
