"""Counters of work: what is computed and what is not, whatever the machine."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

import calm_lightning as calm
from calm_lightning.composed import ComposedModel, head
from calm_lightning.flops import CountFlops
from calm_lightning.testing import tiny_backbone
from calm_lightning.testing.case import disturb, seeded, tokens
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.cross_attention.composition import CrossAttentionBridge

ROWS, LENGTH, NEW = 3, 5, 7
IDS = tokens(ROWS, LENGTH)
MASK = torch.ones_like(IDS)


@pytest.fixture
def model() -> ComposedModel:
    """Both have four layers; the second of the one feeds the second of the other."""
    anchor, augmenting = tiny_backbone(vocab=37), tiny_backbone(width=16, vocab=37, seed=1)
    with seeded(1):
        composed = calm.compose(anchor, [augmenting], CrossAttention(connections=[(1, 1)]))
        disturb(composed, 0.2)
    assert isinstance(composed, ComposedModel)
    return composed


@contextmanager
def rows_through(**modules: nn.Module) -> Iterator[Counter[str]]:
    """How many tokens went through each module, by the names it is given."""
    counted: Counter[str] = Counter()

    def count(name: str, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        read = args[0] if args else given["input_ids"]
        ids = read.dim() == 2 and not read.is_floating_point()
        counted[name] += read.numel() if ids else read.shape[:-1].numel()

    def hook(name: str) -> Any:
        return lambda module, args, given: count(name, args, given)

    handles = [
        module.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


def parts(model: ComposedModel) -> dict[str, nn.Module]:
    anchor, augmenting = model.backbones
    named = {"anchor": anchor, "augmenting": augmenting}
    found = {f"{n} {i}": layer for n, b in named.items() for i, layer in enumerate(b.layers)}
    return {**found, **{f"{n} head": b.model.get_output_embeddings() for n, b in named.items()}}


def test_in_generation_every_model_reads_every_token_once(model: ComposedModel) -> None:
    with rows_through(**parts(model)) as counted:
        model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=NEW, do_sample=False)
    once = ROWS * (LENGTH + NEW - 1)  # nobody has to read the last one
    assert counted == {
        **{f"anchor {i}": once for i in range(4)},
        "anchor head": ROWS * NEW,
        "augmenting 0": once,
        "augmenting 1": once,
    }


def test_in_training_nothing_runs_that_nobody_reads(
    model: ComposedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = IDS.clone()
    labels[:, :3] = -100
    labels[1] = -100
    through_head: list[int] = []
    monkeypatch.setattr(
        head, "linear", lambda rows, *w: through_head.append(len(rows)) or linear(rows, *w)
    )
    assert model.anchor_backbone.head_is_plain  # asked once, and for one token
    with rows_through(**parts(model)) as counted:
        model(input_ids=IDS, attention_mask=MASK, labels=labels)
    all_rows = ROWS * LENGTH
    assert through_head == [4]
    assert counted == {
        **{f"anchor {i}": all_rows for i in range(4)},
        "anchor head": 0,  # what it was wanted for is there already
        "augmenting 0": all_rows,
        "augmenting 1": all_rows,
    }


class Made(TorchDispatchMode):
    """Shapes of all that is computed while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.shapes.add(tuple(out.shape))
        return out


def test_no_gradient_of_a_frozen_weight_is_ever_made(model: ComposedModel) -> None:
    loss = model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss
    with Made() as made:
        loss.backward()
    trained = {id(p): p for _, p in model.trainable_parameters()}
    frozen = [p for p in model.parameters() if id(p) not in trained]
    assert sum(p.grad.nbytes for p in frozen if p.grad is not None) == 0
    theirs, ours = shapes(frozen), shapes(trained.values())
    assert ours & made.shapes  # gradients of matrices are seen
    assert theirs - ours
    assert not (theirs - ours) & made.shapes


def shapes(weights: Iterable[Tensor]) -> set[tuple[int, ...]]:
    """Of matrices, and of their transposes."""
    found = {tuple(weight.shape) for weight in weights if weight.dim() == 2}
    return found | {shape[::-1] for shape in found}


def test_below_the_first_connection_nothing_is_kept_for_a_gradient(model: ComposedModel) -> None:
    wants: dict[str, bool] = {}

    def note(name: str) -> Any:
        return lambda module, args, output: wants.update({name: output.requires_grad})

    for name, layer in parts(model).items():
        layer.register_forward_hook(note(name), prepend=True)
    model(input_ids=IDS, attention_mask=MASK, labels=IDS)
    assert wants == {
        "anchor 0": False,
        "anchor 1": False,  # the bridge adds to its output
        "anchor 2": True,
        "anchor 3": True,
        "anchor head": True,
        "augmenting 0": False,
        "augmenting 1": False,
    }


def work_of_keys_and_values(states: Tensor) -> tuple[int, dict[str, Tensor]]:
    """FLOPs of keys and values and of their gradient, and what they are."""
    with seeded(2):
        bridge = CrossAttentionBridge(16, 8, 2, positions="none").double()
    positions = torch.arange(states.shape[1]).expand(states.shape[:2])
    with CountFlops() as counter:
        key, value = bridge.remember(states, positions)
        (key.pow(3).sum() + value.pow(2).sum()).backward()
    made = {n: p.grad for n, p in bridge.named_parameters() if p.grad is not None}
    return counter.flops, {**made, "key": key.detach(), "value": value.detach()}


def test_where_states_are_many_two_maps_are_made_one_with_the_same_gradients() -> None:
    states = torch.randn(2, 32, 8, dtype=torch.float64)
    flops, found = work_of_keys_and_values(states)
    halves = [work_of_keys_and_values(part[None]) for part in states.view(16, 4, 8)]
    expected: dict[str, Tensor] = {
        name: sum(part[name] for _, part in halves)  # type: ignore[misc]
        for name in found
        if "." in name
    }
    # f_proj, W_K and W_V one after another, there and back, and no gradient of the states
    one_by_one = 64 * (2 * (2 * 8 * 16) + 3 * (2 * 2 * 16 * 16))
    assert flops < 0.6 * one_by_one
    assert sum(part for part, _ in halves) == one_by_one  # four states at a time: not worth it
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10)
