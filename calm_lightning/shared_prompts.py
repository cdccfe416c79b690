"""Prompts that stand in a batch more than once, for several samples of each, are read once."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from calm_lightning.generation_settings import asked

if TYPE_CHECKING:
    from calm_lightning.language_model import TextModel

_ONE_ROW_A_PROMPT = {
    # Options of `generate` under which it repeats rows itself, or keeps no cache of ours
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "assistant_model": None,
    "prompt_lookup_num_tokens": None,
    "past_key_values": None,
    "cache_implementation": None,
}


def read_once(
    model: "TextModel", forward: Any, batch: Mapping[str, Tensor], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What `generate` needs beside a batch so that no prompt in it is read twice.

    Args:
        model: Who reads, called with tokens. Its settings count as options do.
        forward: Its forward method, or that of the model within it: for the options it takes.
        batch: `input_ids` and `attention_mask`, [rows, columns], padded on the left.
        options: Of `generate`.

    Returns:
        `past_key_values`, with all but the last column; nothing where nothing can be shared.
    """
    assert isinstance(model, torch.nn.Module), "a LanguageModel is also a torch.nn.Module"
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if model.mixes_rows or any(
        asked(model, options, name) not in (None, usual)
        for name, usual in _ONE_ROW_A_PROMPT.items()
    ):
        return {}
    first: dict[tuple[Any, ...], int] = {}
    same: list[int] = []
    for row in torch.cat([ids, mask], dim=1).tolist():
        same.append(first.setdefault(tuple(row), len(same)))
    if len(first) == len(same) or not mask[:, :-1].any(-1).all():
        return {}
    chosen = list(first.values())
    more: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(forward).parameters:
        more["logits_to_keep"] = 1
    if "prompt_mask" in inspect.signature(model.forward).parameters:
        # The last column is prompt as well.
        more["prompt_mask"] = torch.ones_like(ids[chosen], dtype=torch.bool)
    with torch.no_grad():
        cache = model(
            input_ids=ids[chosen, :-1], attention_mask=mask[chosen, :-1], use_cache=True, **more
        ).past_key_values
    places = [chosen.index(number) for number in same]
    cache.batch_select_indices(torch.tensor(places, device=ids.device))
    return {"past_key_values": cache}
