"""Draws texts from a frozen model, many at a time, each by a seed of its own.

So a text is the same whatever is drawn beside it, today and after a restart (up to the rounding of
the model's logits, which may depend on the batch: batches have the same texts after a restart too).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.collate import pad_left, tokenize
from calm_lightning.stopping import StopAtText
from calm_plugins.tasks.self_decompression.roles import Roles
from calm_plugins.tasks.self_decompression.tree import Tree

_BROKEN = "\ufffd"
"""What a character becomes of which the limit cut off some bytes."""


@dataclass(frozen=True)
class Drawn:
    """What a model wrote.

    Attributes:
        text: Without what ended it.
        tokens: How many were drawn, the end included.
        ended: Whether the model ended it, not the limit.
    """

    text: str
    tokens: int
    ended: bool


@torch.no_grad()
def draw(
    backbone: Backbone,
    roles: Roles,
    prompts: Sequence[str],
    seeds: Sequence[int],
    tree: Tree,
    max_new_tokens: int,
) -> list[Drawn]:
    """What the model writes after each prompt.

    Args:
        backbone: The model.
        roles: What ends a text.
        prompts: What it is given.
        seeds: Of each draw.
        tree: Temperature and the like.
        max_new_tokens: Longest text.
    """
    tokenizer, model = backbone.require_tokenizer(), backbone.model
    rows = tokenize(tokenizer, prompts)
    ends = roles.ends() | _ends_of(backbone)
    # Any other special token ends a text too: a new turn, say, which no plain text can hold.
    stops = ends | set(tokenizer.all_special_ids)
    pad = min(stops, default=0)  # without any stop only a text that stops a row is padded
    batch = {name: each.to(model.device) for name, each in pad_left(rows, pad).items()}
    columns = batch["input_ids"].shape[1]
    criteria = [StopAtText(tokenizer, roles.stop(), columns)] if roles.stop() else []
    sequences = model.generate(
        **batch,
        max_new_tokens=max_new_tokens,
        do_sample=False,  # our processor makes the drawn token the likeliest one
        num_beams=1,
        eos_token_id=sorted(stops) or None,
        pad_token_id=pad,
        logits_processor=LogitsProcessorList([SeededDraw(seeds, tree, columns, max_new_tokens)]),
        stopping_criteria=StoppingCriteriaList(criteria),
    )
    drawn = []
    for row, new in zip(rows, sequences[:, columns:].tolist(), strict=True):
        length = next((place for place, token in enumerate(new) if token in stops), len(new))
        stopped = length < len(new)
        text = _continuation(tokenizer, row.ids, new[:length])
        found = [place for mark in roles.stop() if (place := text.find(mark)) >= 0]
        drawn.append(
            Drawn(
                # White space before the next turn is the template's.
                text[: min(found)].rstrip() if found else text.rstrip(_BROKEN),
                length + stopped,
                bool(found) or (stopped and new[length] in ends),
            )
        )
    return drawn


class SeededDraw(LogitsProcessor):
    """Leaves each row one token, drawn by the row's own random numbers.

    The token is where a number, uniform between 0 and 1, falls on the tokens' probabilities laid
    end to end. One number a token is enough, so they are all made beforehand, on any device.

    Args:
        seeds: One for each row.
        tree: Temperature, top_p and top_k.
        prompt_columns: Columns of the prompt, padding included.
        max_new_tokens: Longest text.
    """

    def __init__(
        self, seeds: Sequence[int], tree: Tree, prompt_columns: int, max_new_tokens: int
    ) -> None:
        self.numbers = torch.stack(
            [
                torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(seed))
                for seed in seeds
            ]
        )
        self.prompt_columns = prompt_columns
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(tree.temperature)])
        if tree.top_k:
            self.warpers.append(TopKLogitsWarper(tree.top_k))
        if tree.top_p < 1:
            self.warpers.append(TopPLogitsWarper(tree.top_p))

    @override
    def __call__(
        self, input_ids: Int[Tensor, "rows tokens"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        probabilities = self.warpers(input_ids, scores.float()).softmax(-1)
        laid_out = probabilities.cumsum(-1)
        numbers = self.numbers[:, input_ids.shape[1] - self.prompt_columns].to(laid_out)
        places = (numbers * laid_out[:, -1]).unsqueeze(1)
        # Rounding must not choose a token of probability 0 behind the last one that has any.
        last = laid_out.argmax(-1, keepdim=True)
        tokens = torch.searchsorted(laid_out, places, right=True).minimum(last)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)


def _ends_of(backbone: Backbone) -> set[int]:
    """The tokens with which the model says that a text is complete."""
    told = getattr(backbone.model.generation_config, "eos_token_id", None)
    ends = set(told if isinstance(told, list) else [told])
    return (ends | {backbone.require_tokenizer().eos_token_id}) - {None}


def _continuation(tokenizer: object, prompt: list[int], new: list[int]) -> str:
    """The text of new tokens, with the space that many tokenizers leave out at a text's start."""

    def text(ids: list[int]) -> str:
        said: str = tokenizer.decode(  # type: ignore[attr-defined]
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return said

    before, whole = text(prompt), text(prompt + new)
    return whole[len(before) :] if whole.startswith(before) else text(new)
