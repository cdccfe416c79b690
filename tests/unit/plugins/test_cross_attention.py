"""The cross-attention bridge against the paper's formula, written out a second time."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from calm_lightning.contracts import CalmError
from calm_lightning.testing import tiny_backbone
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.cross_attention.composition import (
    CrossAttentionBridge,
    root_mean_square,
)
from calm_plugins.compositions.cross_attention.rotary import rotate

ANCHOR, AUGMENTING, HEADS = 12, 10, 3


def make(**options: Any) -> CrossAttentionBridge:
    """A bridge with every weight at random, the output's too, in double precision."""
    torch.manual_seed(1)
    bridge = CrossAttentionBridge(ANCHOR, AUGMENTING, HEADS, **options).double().eval()
    for weight in bridge.parameters():
        weight.data += 0.5 * torch.randn_like(weight)
    return bridge


def turned(vector: Tensor, place: float, base: float) -> Tensor:
    """Rotary positions as RoFormer writes them: complex numbers that are multiplied."""
    half = len(vector) // 2
    numbers = torch.complex(vector[:half], vector[half:])
    angles = torch.tensor([place * base ** (-k / half) for k in range(half)], dtype=torch.float64)
    product = numbers * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([product.real, product.imag])


def reference(
    bridge: CrossAttentionBridge,
    anchor: Tensor,
    augmenting: Tensor,
    visible: Tensor,
    places: Tensor,
    augmenting_places: Tensor,
) -> Tensor:
    """The paper's section 3.1, one number at a time: f_proj, softmax(Q K / sqrt(D_B / N_H)) V."""
    w = dict(bridge.named_parameters())
    width = ANCHOR // HEADS

    def norm(x: Tensor, name: str) -> Tensor:
        if name not in w:
            return x
        return x / (x.pow(2).mean() + torch.finfo(x.dtype).eps).sqrt() * w[name]

    added = torch.zeros_like(anchor)
    for row in range(len(anchor)):
        states = [
            norm(w["project.weight"] @ s + w["project.bias"], "state_norm.weight")
            for s in augmenting[row]
        ]
        for i, state in enumerate(anchor[row]):
            read = []
            for head in range(HEADS):
                part = slice(head * width, (head + 1) * width)
                query = (w["query.weight"] @ norm(state, "query_norm.weight"))[part]
                if "query_place" in w:
                    query = query + w["query_place"][head, 0]
                scores, values = [], []
                for j, s in enumerate(states):
                    if not visible[row, i, j]:
                        continue
                    key = (w["key.weight"] @ s)[part]
                    if "key_place" in w:
                        key = key + w["key_place"][head, 0]
                    turned_query = query
                    if bridge.rotary:
                        turned_query = turned(query, float(places[row, i]), bridge.rotary_base)
                        key = turned(key, float(augmenting_places[row, j]), bridge.rotary_base)
                    scores.append(turned_query @ key / math.sqrt(width))
                    values.append((w["value.weight"] @ s)[part])
                shares = torch.softmax(torch.stack(scores), 0)
                read.append(sum(a * v for a, v in zip(shares, values, strict=True)))
            out = w["out.weight"] @ torch.cat(read)  # type: ignore[arg-type]
            added[row, i] = out * state.pow(2).mean().sqrt() if bridge.relative else out
    return added


@pytest.fixture
def given() -> dict[str, Tensor]:
    """Two rows; the second begins with two places of padding."""
    torch.manual_seed(2)
    places = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])
    real = torch.tensor([[True] * 5, [False, False, True, True, True]])
    causal = torch.tril(torch.ones(5, 5, dtype=torch.bool))
    visible = causal & real[:, None, :]
    visible[1, :2, 0] = True  # every row sees something
    return {
        "anchor": torch.randn(2, 5, ANCHOR, dtype=torch.float64),
        "augmenting": torch.randn(2, 5, AUGMENTING, dtype=torch.float64),
        "visible": visible,
        "places": places,
        "augmenting_places": places,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"positions": "none"},
        {},
        {"rotary_base": 50.0},
        {"normalize": True},
        {"relative": True},
        {"same_place": 20.0},
        {"same_place": 20.0, "normalize": True, "relative": True, "rotary_base": 100.0},
    ],
    ids=str,
)
def test_it_is_the_papers_formula(options: dict[str, Any], given: dict[str, Tensor]) -> None:
    bridge = make(**options)
    memory = bridge.remember(given["augmenting"], given["augmenting_places"])
    with torch.no_grad():
        found = bridge(given["anchor"], memory, given["visible"], given["places"])
        # The angles are computed in single precision, whatever the weights are.
        torch.testing.assert_close(found, reference(bridge, **given), atol=1e-5, rtol=1e-5)
    assert found.abs().max() > 0.1


def test_a_fresh_bridge_adds_nothing_and_can_learn(given: dict[str, Tensor]) -> None:
    bridge = CrossAttentionBridge(ANCHOR, AUGMENTING, HEADS, same_place=9.0).double()
    memory = bridge.remember(given["augmenting"], given["augmenting_places"])
    added = bridge(given["anchor"], memory, given["visible"], given["places"])
    assert not added.any()
    added.sum().backward()
    assert bridge.out.weight.grad is not None
    assert bridge.out.weight.grad.any()


def test_what_may_not_be_seen_does_not_matter(given: dict[str, Tensor]) -> None:
    bridge = make()
    changed = given["augmenting"].clone()
    changed[1, :2] = 1e3  # padding
    changed[:, 4] = -1e3  # what comes after all but the last place
    results = [
        bridge(
            given["anchor"], bridge.remember(s, given["places"]), given["visible"], given["places"]
        )
        for s in (given["augmenting"], changed)
    ]
    torch.testing.assert_close(results[0][0, :4], results[1][0, :4])
    torch.testing.assert_close(results[0][1, 2:4], results[1][1, 2:4])
    assert not torch.allclose(results[0][0, 4], results[1][0, 4])


def test_memory_that_is_made_bit_by_bit_is_the_same(given: dict[str, Tensor]) -> None:
    bridge = make(same_place=5.0, normalize=True)
    whole = bridge.remember(given["augmenting"], given["places"])
    parts = [
        bridge.remember(given["augmenting"][:, s], given["places"][:, s])
        for s in (slice(0, 3), slice(3, 5))
    ]
    for kept, first, second in zip(whole, *parts, strict=True):
        torch.testing.assert_close(kept, torch.cat([first, second], dim=-2))


def test_maps_that_are_made_one_say_the_same_and_follow_the_weights(
    given: dict[str, Tensor],
) -> None:
    bridge = make()
    states, places = given["augmenting"], given["places"]

    def check() -> tuple[Tensor, ...]:
        one_by_one = bridge.remember(states, places)  # with a gradient, and few states
        with torch.no_grad():
            at_once = bridge.remember(states, places)
        torch.testing.assert_close(at_once, one_by_one)
        return at_once

    found = [check()]
    with torch.no_grad():
        bridge.value.weight.add_(1.0)  # as optimizers do
    found.append(check())
    bridge.load_state_dict(make().state_dict())
    found.append(check())
    bridge.project.weight.data = 2 * bridge.project.weight.data
    found.append(check())
    assert torch.equal(found[0][1], found[2][1])
    assert not torch.allclose(found[0][1], found[1][1])
    assert not torch.allclose(found[0][1], found[3][1])


def test_maps_that_are_made_one_do_not_outlive_training(given: dict[str, Tensor]) -> None:
    bridge = make()
    with torch.no_grad():
        before = bridge.remember(given["augmenting"], given["places"])
        bridge.train()
        with torch.autograd._unsafe_preserve_version_counter(bridge.key.weight):
            bridge.key.weight.add_(1.0)  # as weights that are spread over processes change
        after = bridge.eval().remember(given["augmenting"], given["places"])
    assert not torch.allclose(before[0], after[0])


def test_after_a_change_past_the_weights_own_eval_makes_the_map_anew(
    given: dict[str, Tensor],
) -> None:
    bridge = make()
    with torch.no_grad():
        before = bridge.remember(given["augmenting"], given["places"])
        bridge.key.weight.data.mul_(3.0)
        after = bridge.eval().remember(given["augmenting"], given["places"])
    assert not torch.allclose(before[0], after[0])


def test_no_mask_means_causal(given: dict[str, Tensor]) -> None:
    bridge = make(same_place=5.0)
    memory = bridge.remember(given["augmenting"], given["places"])
    everything = torch.ones(2, 5, 5, dtype=torch.bool)
    anchor, places = given["anchor"], given["places"]
    torch.testing.assert_close(
        bridge(anchor, memory, None, places), bridge(anchor, memory, everything.tril(), places)
    )
    newest = anchor[:, 4:], memory, None, places[:, 4:]
    masked = anchor[:, 4:], memory, everything[:, 4:], places[:, 4:]
    torch.testing.assert_close(bridge(*newest), bridge(*masked))


# ------------------------------------------------------------------ positions


def test_turns_are_those_of_the_positions_as_they_are_now() -> None:
    positions, x = torch.arange(4)[None], torch.randn(1, 1, 4, 6)
    before = rotate(x, positions)
    assert torch.equal(rotate(x, positions.clone()), before)
    positions += 3
    torch.testing.assert_close(rotate(x, positions), rotate(x, torch.arange(3, 7)[None]))
    assert not torch.allclose(rotate(x, positions), before)
    assert not torch.allclose(rotate(x, positions, 50.0), rotate(x, positions))


@pytest.mark.parametrize("base", [10_000.0, 50.0])
def test_only_the_distance_matters(base: float) -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def product(at: int, read: int) -> float:
        a, b = (rotate(x, torch.tensor([[place]]), base) for x, place in ((query, at), (key, read)))
        return float((a * b).sum())

    for at, read in [(0, 0), (5, 2), (2, 5)]:
        for shift in (1, 7, 300):
            moved = product(at + shift, read + shift)
            assert moved == pytest.approx(product(at, read), abs=1e-5)
    assert product(5, 2) != pytest.approx(product(5, 3), abs=1e-3)


def test_place_zero_turns_nothing_and_no_turn_changes_a_length() -> None:
    x = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(rotate(x, torch.zeros(2, 4, dtype=torch.long)), x)
    torch.testing.assert_close(rotate(x, torch.randint(0, 99, (2, 4))).norm(dim=-1), x.norm(dim=-1))


def test_the_gradient_is_turned_back() -> None:
    positions = torch.tensor([[0, 3], [7, 9]])
    x = torch.randn(2, 3, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.equal(rotate(x, positions), rotate(x.detach(), positions))
    assert torch.autograd.gradcheck(lambda x: rotate(x, positions), [x])
    assert torch.autograd.gradgradcheck(lambda x: rotate(x, positions), [x])


@pytest.mark.parametrize(("nats", "base"), [(20.0, 100.0), (70.0, 100.0), (20.0, 10_000.0)])
def test_same_place_prefers_its_own_place_by_so_many_nats(nats: float, base: float) -> None:
    """Without content, a head's score is the preference alone."""
    bridge = CrossAttentionBridge(32, 8, 2, same_place=nats, rotary_base=base).double()
    bridge.query.weight.data.zero_()
    bridge.key.weight.data.zero_()
    places = torch.arange(12)[None]
    keys, _ = bridge.remember(torch.zeros(1, 12, 8, dtype=torch.float64), places)
    assert bridge.query_place is not None
    query = rotate((torch.zeros(1, 2, 12, 16) + bridge.query_place).double(), places, base)
    scores = (query @ keys.transpose(-1, -2) / 16**0.5)[0, 0]
    torch.testing.assert_close(scores.diagonal(), torch.full((12,), nats, dtype=torch.float64))
    others = scores.masked_fill(torch.eye(12, dtype=torch.bool), -math.inf)
    assert (others.max(-1).values < nats - 1).all()  # at least e times less likely
    assert torch.equal(scores.argmax(-1), places[0])


# ------------------------------------------------------------------ training and settings


def test_noise_is_for_training_only(given: dict[str, Tensor]) -> None:
    bridge = make(state_noise=0.5)

    def keys() -> Tensor:
        return bridge.remember(given["augmenting"], given["places"])[0]

    assert torch.equal(keys(), keys())
    bridge.train()
    assert not torch.equal(keys(), keys())


def test_noise_is_as_large_as_it_says() -> None:
    torch.manual_seed(0)
    bridge = CrossAttentionBridge(16, 16, 2, positions="none", state_noise=0.3).train()
    torch.nn.init.eye_(bridge.project.weight)
    torch.nn.init.zeros_(bridge.project.bias)
    torch.nn.init.eye_(bridge.value.weight)
    states = 5 * torch.randn(1, 2000, 16)
    with torch.no_grad():
        _, values = bridge.remember(states, torch.arange(2000)[None])
    noise = values.transpose(1, 2).flatten(2) - states
    share = (noise / root_mean_square(states)).pow(2).mean().sqrt()
    assert float(share) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"same_place": -1.0}, "same_place=-1.0 must not be negative"),
        ({"state_noise": -0.1}, "state_noise=-0.1 must not be negative"),
        ({"rotary_base": 1.0}, "rotary_base=1.0 must be above 1"),
        ({"same_place": 3.0, "positions": "none"}, "needs positions=rotary"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(CalmError, match=wanted):
        CrossAttention(**options)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(CalmError, match="num_heads=5 must divide the anchor's width 12; possible "
                       "are 1, 2, 3, 4, 6, 12"):  # fmt: skip
        CrossAttentionBridge(12, 10, 5)
    with pytest.raises(CalmError, match="heads of even width, but 12 / 4 = 3"):
        CrossAttentionBridge(12, 10, 4)
    CrossAttentionBridge(12, 10, 4, positions="none")


def test_by_default_it_has_the_anchors_heads_and_the_papers_weights() -> None:
    anchor, augmenting = tiny_backbone(width=32), tiny_backbone(width=16, seed=1)
    bridge = CrossAttention().make_bridge(anchor, augmenting)
    assert isinstance(bridge, CrossAttentionBridge)
    assert bridge.num_heads == anchor.num_heads
    paper = 16 * 32 + 32 + 4 * 32 * 32  # f_proj with its bias, W_Q, W_K, W_V, W_O
    assert sum(p.numel() for p in bridge.parameters()) == paper
