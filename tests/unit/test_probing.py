"""Looking inside: numbers against those worked out by hand, and nothing left behind."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import calm_lightning as calm
from calm_lightning.composed import Bridge, ComposedModel, Connection, HiddenStateComposition
from calm_lightning.probing import Look, labels_of, probe
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_lightning.testing.case import disturb, seeded
from calm_lightning.testing.tokenizers import text_tokenizer
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.cross_attention.composition import CrossAttentionBridge
from calm_plugins.compositions.gated.composition import GatedBridge
from calm_plugins.compositions.linear import LinearBridge
from calm_plugins.compositions.low_rank.composition import LowRankBridge

HERE = Connection(0, 1, 2)


def composed(composition: HiddenStateComposition, augmenting: Any = None) -> ComposedModel:
    anchor = tiny_backbone(seed=0, tokenizer=tiny_tokenizer())
    with seeded(1):
        other = augmenting or tiny_backbone(seed=1, tokenizer=tiny_tokenizer())
        model = calm.compose(anchor, [other], composition)
        disturb(model, 0.2)
    assert isinstance(model, ComposedModel)
    return model


# ------------------------------------------------------------------ the measures


def look(sees: list[bool]) -> Look:
    """Three tokens that look at one, two and three tokens."""
    weights = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]])
    places = torch.arange(3.0)
    return Look(HERE, 0.0, weights, places[:, None] - places, torch.tensor(sees))


def test_entropy_and_distance_are_those_worked_out_by_hand() -> None:
    found = look([True, True, True])
    # Row by row: 0, ln 2 and 1.5 ln 2 nats; 0, 0.5 x 1 and 0.25 x 2 + 0.25 x 1 tokens.
    assert found.entropy == pytest.approx((0 + 1 + 1.5) * math.log(2) / 3)
    assert found.distance == pytest.approx((0 + 0.5 + 0.75) / 3)


def test_tokens_that_had_nothing_to_read_do_not_count() -> None:
    found = look([False, True, True])
    assert found.entropy == pytest.approx((1 + 1.5) * math.log(2) / 2)
    assert found.distance == pytest.approx((0.5 + 0.75) / 2)
    assert look([False] * 3).entropy is None


class Half(Bridge):
    """Adds half of the anchor's own state."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(
        self, anchor_states: Tensor, memory: Any, visible: Tensor, positions: Tensor
    ) -> Tensor:
        return anchor_states / 2


def test_the_share_is_the_norm_of_what_is_added_over_that_of_the_anchors_state() -> None:
    model = composed(CrossAttention(every=2))
    model.bridges[0] = Half()
    first, second = probe(model, "a+b=", "c").looks
    assert first.share == pytest.approx(0.5)
    assert first.weights is None  # it does not attend, and has no heat map
    assert first.entropy is None
    assert second.weights is not None


@pytest.mark.parametrize("kind", [CrossAttentionBridge, LowRankBridge, GatedBridge])
def test_attention_is_what_forward_reads_by(kind: type[Bridge]) -> None:
    bridge: Any = {
        CrossAttentionBridge: lambda: CrossAttentionBridge(16, 12, 2, same_place=3.0),
        LowRankBridge: lambda: LowRankBridge(16, 12, 4, 2, distances=True),
        GatedBridge: lambda: GatedBridge(16, 12, 2, feed_forward=0, distances=True),
    }[kind]()
    for weight in bridge.parameters():
        nn.init.normal_(weight, std=0.5)
    anchor, states = torch.randn(2, 3, 16), torch.randn(2, 5, 12)
    visible = torch.ones(2, 3, 5, dtype=torch.bool).tril(1)
    positions = torch.arange(3).expand(2, 3)
    memory = bridge.remember(states, torch.arange(5).expand(2, 5))
    given = (anchor, memory, visible, positions)
    weights = bridge.attention(*given)
    assert weights.shape == (2, 2, 3, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3))
    assert not weights[~visible[:, None].expand_as(weights)].any()
    read = bridge.out((weights @ memory[1]).transpose(1, 2).flatten(2))
    gate = bridge.attention_gate.tanh() if kind is GatedBridge else 1.0
    torch.testing.assert_close(gate * read, bridge(*given))


# ------------------------------------------------------------------ a text


def test_a_probe_names_the_tokens_of_both_axes() -> None:
    found = probe(composed(CrossAttention(every=2)), "1 + 2=", "3")
    assert found.text == "1 + 2=3"
    assert found.anchor_tokens == [*"1·+·2=3", "<eos>"]
    assert found.augmenting_tokens == [found.anchor_tokens]
    for each in found.looks:
        assert each.weights is not None
        assert each.weights.shape == (4, 8, 8)
        assert not each.weights.triu(1).any()  # causal
        assert torch.equal(each.visible, torch.ones(8, 8, dtype=torch.bool).tril())
        assert each.share > 0


def test_with_two_tokenizers_the_axes_differ_and_the_first_tokens_see_nothing() -> None:
    reader = tiny_backbone(seed=1, vocab=700, tokenizer=text_tokenizer("byte_bpe"))
    found = probe(composed(CrossAttention(every=2), reader), "The quick brown fox", " jumps over")
    (columns,) = found.augmenting_tokens
    assert columns != found.anchor_tokens
    for each in found.looks:
        assert each.weights is not None
        assert each.weights.shape[1:] == (len(found.anchor_tokens), len(columns))
        assert not each.sees[0]  # its word may still go on
        assert each.sees[-1]
        read = (each.weights.sum(0) > 0) & each.sees[:, None]
        assert (each.distances[read] >= 0).all()  # never ahead
        assert each.visible is not None
        assert torch.equal(each.visible.any(-1), each.sees)


def test_a_text_of_which_nothing_can_be_read_yet() -> None:
    reader = tiny_backbone(seed=1, vocab=700, tokenizer=text_tokenizer("byte_bpe"))
    found = probe(composed(CrossAttention(every=2), reader), "T")
    assert [each.share for each in found.looks] == [0.0, 0.0]
    assert [each.entropy for each in found.looks] == [None, None]


@pytest.mark.parametrize("sees", ["full", "prompt"])
def test_only_the_prompt_is_read_where_only_that_may_be(sees: Any) -> None:
    model = composed(CrossAttention(every=2, augmenting_sees=sees))
    weights = probe(model, "ab", "cd").looks[0].weights
    assert weights is not None
    assert bool(weights[:, :, 2:].any()) is (sees == "full")


def test_a_probe_leaves_nothing_behind() -> None:
    model = composed(CrossAttention(every=2, state_noise=0.5)).train()
    before, numbers = [m.training for m in model.modules()], torch.random.get_rng_state()
    assert probe(model, "ab").looks[0].share == probe(model, "ab").looks[0].share  # no noise
    assert [m.training for m in model.modules()] == before
    assert torch.equal(torch.random.get_rng_state(), numbers)
    assert not any(bridge._forward_hooks for bridge in model.bridges)


def test_ordinary_passes_compute_no_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = composed(CrossAttention(every=2))
    monkeypatch.setattr(CrossAttentionBridge, "attention", None)
    assert model(**model.encode(["ab"], ["c"])).loss > 0
    model.generate_text(["ab"], max_new_tokens=2)


def test_bridges_need_not_attend() -> None:
    found = probe(composed(LinearBridge(every=2)), "ab", "c")
    assert all(each.share > 0 for each in found.looks)
    assert all(each.weights is None for each in found.looks)


def test_labels_show_what_cannot_be_seen() -> None:
    tokenizer = tiny_tokenizer(102)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("a", " ", "\n", "\t", "\x0b")]
    assert labels_of(tokenizer, ids) == ["a", "·", "⏎", "⇥", "\ufffd"]


def test_a_heat_map_shows_attention_that_is_spread_over_many_tokens() -> None:
    from calm_lightning.figures import attention_map

    figure = attention_map(probe(composed(CrossAttention()), "12+34=46"), 0)
    assert figure is not None
    (image,) = figure.axes[0].images
    brightness = [float(image.norm(share)) for share in (0.0, 0.03, 0.25, 1.0)]
    assert brightness == pytest.approx([0.0, 0.1732, 0.5, 1.0], abs=1e-4)
