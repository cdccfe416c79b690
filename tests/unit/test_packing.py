"""Several examples in one row: how they are put there, and that they stay apart."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from calm_lightning.alignment import example_numbers
from calm_lightning.collate import IGNORED, Collator, Row
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError, Example
from calm_lightning.module import CalmModule
from calm_lightning.packing import check_keeps_apart, packed
from calm_lightning.state_cache import StateCache
from calm_lightning.testing import TinySource
from calm_lightning.testing.case import Case
from calm_lightning.testing.tiny import tiny_backbone
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.routing import PromptRouter
from calm_plugins.compositions.single import Single

ROWS = [Row([1, 2, 3], 1), Row([4, 5, 6, 7, 8], 2), Row([9, 10], 0)]


def test_examples_stand_side_by_side_the_longest_first() -> None:
    batch = packed(ROWS, length=7, pad_id=0)
    assert batch["input_ids"].tolist() == [[4, 5, 6, 7, 8, 9, 10], [1, 2, 3, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 0, 1, 2, 3]]
    no = IGNORED
    # Nothing precedes the 9, although it belongs to no prompt.
    assert batch["labels"].tolist() == [[no, no, 6, 7, 8, no, 10], [no, 2, 3, no, no, no, no]]


def test_an_example_longer_than_a_row_has_its_own() -> None:
    assert packed(ROWS, length=1, pad_id=0)["input_ids"].shape == (3, 5)
    assert packed(ROWS, length=99, pad_id=0)["input_ids"].shape == (1, 10)


def test_examples_are_told_apart_by_their_positions() -> None:
    numbers = example_numbers(torch.tensor([[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5]]))
    assert numbers is not None
    assert numbers.tolist() == [[0, 0, 0, 1, 2, 2], [0, 0, 0, 0, 0, 0]]
    assert example_numbers(torch.tensor([[3, 4, 5]])) is None


@pytest.mark.parametrize("sees", ["full", "prompt"])
@pytest.mark.parametrize("other_tokenizer", [False, True])
def test_a_packed_batch_has_the_loss_of_its_examples(sees: str, other_tokenizer: bool) -> None:
    case = Case(
        CrossAttention(augmenting_sees=sees),
        tokenizers=("byte_bpe", "characters") if other_tokenizer else ("byte_bpe", "byte_bpe"),
    )
    model = case.build()
    assert isinstance(model, ComposedModel)
    examples = [Example("The quick", " brown"), Example("a dog", " says it is"), Example("x", "yz")]
    pack = partial(model.encode_packed, length=64)
    apart, together = (Collator(encode)(examples).inputs for encode in (model.encode, pack))
    assert len(together["input_ids"]) == 1
    with torch.no_grad():
        expected, found = model(**apart).loss, model(**together).loss
        states_matter = model(**together).loss
        with model.disturbed("zero"):
            states_matter = states_matter - model(**together).loss
    assert states_matter.abs() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_models_that_count_columns_are_refused() -> None:
    check_keeps_apart(tiny_backbone("llama"))
    with pytest.raises(CalmError, match=r"model\.pack: .* takes no positions"):
        check_keeps_apart(tiny_backbone("bloom"))


def flash_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **more: Any
) -> Any:
    """As transformers calls that of packed rows: it looks for examples in a single row only."""
    positions: Tensor = more["position_ids"]
    owners = torch.zeros_like(positions) if len(query) > 1 else (positions == 0).cumsum(-1)
    apart = (owners[:, :, None] == owners[:, None])[:, None].tril()
    heads = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(heads, dim=1) for states in (key, value))
    read = scaled_dot_product_attention(query, key, value, attn_mask=apart)
    return read.transpose(1, 2), None


def test_attention_that_keeps_only_a_single_row_apart_is_refused() -> None:
    AttentionInterface.register("one_row_stub", flash_attention)
    AttentionMaskInterface.register("one_row_stub", flash_attention_mask)
    backbone = tiny_backbone("llama")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    usual = backbone.model(input_ids=ids).logits
    backbone.model.set_attn_implementation("one_row_stub")
    torch.testing.assert_close(backbone.model(input_ids=ids).logits, usual, rtol=1e-4, atol=1e-4)
    with pytest.raises(
        CalmError, match=r"one before it .attention: one_row_stub.*try attention: sdpa"
    ):
        check_keeps_apart(backbone)


def test_what_does_not_pack_says_so(tmp_path: Path) -> None:
    one = TinySource(seed=1)
    routed = CalmModule(TinySource(), PromptRouter(), [one], pack=8)
    with pytest.raises(CalmError, match="in a row of its own"):
        routed.configure_model()
    cached = CalmModule(
        TinySource(), CrossAttention(), [one], pack=8, cache_states=StateCache(str(tmp_path))
    )
    with pytest.raises(CalmError, match=r"Leave out model\.pack or model\.cache_states"):
        cached.configure_model()
    with pytest.raises(CalmError, match="at least one token"):
        CalmModule(TinySource(), Single(), pack=0)
