"""Ends an answer at given texts."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from typing_extensions import override

_BYTES_OF_A_CHARACTER = 4
_MARGIN = 16
"""Tokens: for those that write nothing, and those that were written at once (assisted decoding)."""


def ending_tokens(
    tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Which of some stop texts are single special tokens, which no text holds; and the others.

    Args:
        tokenizer: Of the model that writes.
        stop: The texts.
    """
    special = {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    tokens = [special[text] for text in stop if text in special]
    return tokens, [text for text in stop if text not in special]


class StopAtText(StoppingCriteria):
    """Ends a row once its answer holds one of some texts.

    transformers' own criterion also counts texts that begin in the prompt, and refuses those that
    the tokenizer cannot write, which are no danger to anybody.

    Args:
        tokenizer: Of the model that writes.
        stop: The texts.
        prompt_columns: Columns of the prompt, padding included; they are not searched.

    Attributes:
        ended: Which rows have ended so far; None before the first token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt_columns: int
    ) -> None:
        self.tokenizer, self.stop, self.prompt_columns = tokenizer, tuple(stop), prompt_columns
        self.ended: Bool[Tensor, " batch"] | None = None
        self._tail = _BYTES_OF_A_CHARACTER * max(map(len, stop)) + _MARGIN

    @override
    def __call__(
        self, input_ids: Int[Tensor, "batch seq"], scores: Any, **kwargs: Any
    ) -> Bool[Tensor, " batch"]:
        first = max(self.prompt_columns, input_ids.shape[1] - self._tail)
        texts = self.tokenizer.batch_decode(input_ids[:, first:], skip_special_tokens=True)
        found = [any(mark in text for mark in self.stop) for text in texts]
        ended = torch.tensor(found, dtype=torch.bool, device=input_ids.device)
        self.ended = ended if self.ended is None else self.ended | ended
        return ended
