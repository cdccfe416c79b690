"""From texts to tensors: the only place where a tokenizer meets a task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from calm_lightning.contracts import CalmError, Example

IGNORED = -100
"""Label of a position where nothing is learnt, as everywhere in transformers."""


_BEFORE = ("", "\n", "a", "0", ".")
"""Behind one of these nearly every text is read as it is behind any other."""


@dataclass(frozen=True)
class Row:
    """One tokenized text: ids, and how many of them belong to the prompt."""

    ids: list[int]
    prompt_length: int


@dataclass
class Batch:
    """Training examples with their tensors."""

    examples: Sequence[Example]
    inputs: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.examples)


class Collator:
    """Turns a list of examples into a `Batch` for one model.

    Args:
        encode: The model's `encode`, or what takes its place in training.
    """

    def __init__(self, encode: Callable[..., dict[str, Tensor]]) -> None:
        self.encode = encode

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Tokenize prompts with their targets."""
        inputs = self.encode(
            [e.prompt for e in examples],
            [e.target for e in examples],
            ends=[e.ends for e in examples],
        )
        return Batch(examples, inputs)


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
    ends: bool | Sequence[bool] = True,
) -> list[Row]:
    """Tokenize prompts, or prompts with their targets.

    The prompt of a training row is tokenized exactly as `generate` will see it. Where the
    tokenizer would join the prompt's last characters with the target's first ones, the two are
    tokenized apart.

    Args:
        tokenizer: The model's.
        texts: Prompts.
        targets: What follows each.
        ends: Whether the end-of-text token follows each target.
    """
    # An empty prompt starts from the token between texts: the first token has to follow something.
    between = [t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None][:1]
    prompts = [_without_end(tokenizer, ids) or between for ids in _ids(tokenizer, texts)]
    if targets is None:
        return [Row(ids, len(ids)) for ids in prompts]
    whole = _ids(tokenizer, [a + b for a, b in zip(texts, targets, strict=True)])
    flags = [ends] * len(prompts) if isinstance(ends, bool) else ends
    rows = []
    for prompt, full, target, end in zip(prompts, whole, targets, flags, strict=True):
        full = _without_end(tokenizer, full)
        if full[: len(prompt)] != prompt:
            # Nothing precedes the target, or the tokenizer joins it with the prompt's end.
            full = prompt + _continuation(tokenizer, prompt, target)
        if end and tokenizer.eos_token_id is not None:
            full = [*full, tokenizer.eos_token_id]
        rows.append(Row(full, len(prompt)))
    return rows


def pad_left(rows: Sequence[Row], pad_id: int) -> dict[str, Int[Tensor, "batch seq"]]:
    """Prompts side by side, ending together, ready for `generate`."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for i, row in enumerate(rows):
        start = length - len(row.ids)
        ids[i, start:] = torch.tensor(row.ids, dtype=torch.long)
        mask[i, start:] = 1
    return {"input_ids": ids, "attention_mask": mask}


def pad_right(rows: Sequence[Row], pad_id: int) -> dict[str, Int[Tensor, "batch seq"]]:
    """Prompts with targets, starting together, with `labels` on the targets."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids, dtype=torch.long)
        mask[i, : len(row.ids)] = 1
        labels[i, row.prompt_length : len(row.ids)] = ids[i, row.prompt_length : len(row.ids)]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def check_fits(rows: Sequence[Row], context: int | None, name: str, new_tokens: int = 0) -> None:
    """Refuse rows that the model cannot hold.

    Raises:
        CalmError: With the longest row, its length and the model's context.
    """
    if context is None:
        return
    lengths = [len(row.ids) + new_tokens for row in rows]
    longest = max(lengths, default=0)
    if longest > context:
        over = sum(length > context for length in lengths)
        parts = f" ({longest - new_tokens} of the text, {new_tokens} to be generated)"
        way_out = (
            "Shorten the prompts, or generate fewer tokens."
            if new_tokens
            else "Shorten the texts; plain text is cut into pieces of data.characters."
        )
        raise CalmError(
            f"Row {lengths.index(longest)} needs {longest} tokens{parts if new_tokens else ''}, "
            f"but the context of {name!r} holds {context}; {over} of {len(rows)} rows are too "
            f"long. {way_out}"
        )


def _ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], add_special_tokens: bool = True
) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: list[int], target: str) -> list[int]:
    """A target's ids behind a prompt's, so that both together are the text of both.

    Many tokenizers put a space before whatever they read. So the target is read behind something
    else, which is taken away again, until one is found from which it can be told apart.
    """

    def text(ids: list[int]) -> str:
        said: str = tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return said

    wanted = text(prompt) + target
    for before in _BEFORE:
        head, whole = _ids(tokenizer, [before, before + target], add_special_tokens=False)
        if whole[: len(head)] == head and text(prompt + whole[len(head) :]) == wanted:
            return whole[len(head) :]
    return _ids(tokenizer, [target], add_special_tokens=False)[0]


def _without_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Drop an end token that the tokenizer appends by itself, not one that the text ends with."""
    alone = tokenizer("")["input_ids"]
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None, tokenizer.bos_token_id}
    appended = len(ids) > 1 and alone[-1:] == ids[-1:] and ids[-1] in ends
    return ids[:-1] if appended else ids
