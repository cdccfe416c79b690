"""Layers that torch compiles for training: the same losses, from other code."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import calm_lightning as calm
from calm_lightning.collate import Batch
from calm_lightning.compiling import CompiledLayers, forwards_replaced
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError
from calm_lightning.module import CalmModule
from calm_lightning.testing import FAMILIES, TinySource, tiny_backbone
from calm_lightning.testing.case import disturb, seeded, tokens
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.lora import LoRA
from calm_plugins.compositions.single import Single

Graphs = list[int]


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> None:
    torch._dynamo.reset()


@pytest.fixture
def counting() -> tuple[Graphs, Callable[..., Any]]:
    """A backend that compiles nothing, and a number for every time that its code is run."""
    runs: Graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            runs.append(len(given))
            return graph.forward(*given)

        return run

    return runs, backend


def noting_compilations(counting: Any) -> tuple[list[int], Callable[..., Any]]:
    """That backend, and a number for every time that it is given code."""
    compiled: list[int] = []
    _, backend = counting

    def noting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(1)
        return backend(graph, inputs)

    return compiled, noting


def composed(family: str = "llama") -> ComposedModel:
    anchor = tiny_backbone(family, vocab=37)
    augmenting = tiny_backbone(family, width=16, vocab=37, seed=1)
    with seeded(1):
        # Layers below the first connection, between two, and above: without a gradient, and with.
        wiring = CrossAttention(connections=[(0, 1), (1, 2)])
        model = calm.compose(anchor, [augmenting], wiring)
        disturb(model, 0.2)
    assert isinstance(model, ComposedModel)
    return model.train()


def learn(model: Any, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    return loss.detach(), [w.grad for _, w in model.trainable_parameters() if w.grad is not None]


def test_every_layer_that_runs_is_compiled_and_the_gradient_is_the_same(counting: Any) -> None:
    runs, backend = counting
    model, ids = composed(), tokens(3, 8)
    usual = learn(model, ids)
    assert len(usual[1]) > 6  # of both bridges: through a layer between them
    with CompiledLayers(model.backbones, backend).at_work():
        found = learn(model, ids)
    read = 1 + max(c.augmenting_layer for c in model.connections)
    assert len(runs) == model.anchor_backbone.num_layers + read
    assert torch.equal(found[0], usual[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], usual[1], strict=True))


def test_afterwards_layers_are_as_they_were(counting: Any) -> None:
    runs, backend = counting
    model = composed()
    layers = CompiledLayers(model.backbones, backend)
    with layers.at_work():
        learn(model, tokens(3, 8))
    done = len(runs)
    learn(model, tokens(3, 8))
    assert len(runs) == done
    assert not any("forward" in m.__dict__ for b in model.backbones for m in b.layers)


def test_lengths_share_what_is_compiled(counting: Any) -> None:
    compiled, noting = noting_compilations(counting)
    model = composed()
    layers = CompiledLayers(model.backbones, noting)
    with layers.at_work():
        learn(model, tokens(3, 8))
        once = len(compiled)
        for rows, length in ((2, 11), (5, 5), (3, 30)):
            learn(model, tokens(rows, length))
    assert len(compiled) == once


def test_a_forward_of_ones_own_is_kept() -> None:
    layer = nn.Linear(2, 2)
    own = layer.forward
    layer.forward = own  # type: ignore[method-assign]
    with forwards_replaced([layer], lambda _: nn.Identity().forward):
        assert layer.forward is not own
    assert layer.__dict__["forward"] is own


def test_recomputed_layers_may_be_compiled(counting: Any) -> None:
    runs, backend = counting
    model, ids = composed(), tokens(3, 8)
    usual = learn(model, ids)
    with CompiledLayers(model.backbones, backend).at_work():
        learn(model, ids)
        once = len(runs)
        model.recompute = True
        found = learn(model, ids)
    assert len(runs) - once == once + 2  # the layers above the first connection, once more
    assert all(torch.equal(a, b) for a, b in zip(found[1], usual[1], strict=True))


def test_trained_layers_are_compiled_too(counting: Any) -> None:
    runs, backend = counting
    model = calm.compose(tiny_backbone(vocab=37), [], LoRA(rank=2))
    usual = learn(model, tokens(3, 8))
    with CompiledLayers([model.anchor_backbone], backend).at_work():  # type: ignore[attr-defined]
        found = learn(model, tokens(3, 8))
    assert runs
    assert all(torch.equal(a, b) for a, b in zip(found[1], usual[1], strict=True))


def test_a_compiler_that_fails_is_told_with_the_way_out() -> None:
    def none(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        raise RuntimeError("no g++ in sight")

    model = composed()
    layers = CompiledLayers(model.backbones, none)
    with pytest.raises(CalmError, match=r"no g\+\+ in sight.*leave model.compile out"):  # noqa: SIM117
        with layers.at_work():
            learn(model, tokens(3, 8))
    assert not any("forward" in m.__dict__ for b in model.backbones for m in b.layers)


def test_more_variants_are_compiled_than_torch_would_by_itself(counting: Any) -> None:
    compiled, noting = noting_compilations(counting)
    models = [composed(family) for family in ("llama", "gpt2", "gpt_neox")]
    for model in models:
        ids = tokens(3, 8)
        padded = torch.ones_like(ids)
        padded[0, -2:] = 0
        with CompiledLayers(model.backbones, noting).at_work():
            learn(model, ids)
            learn(model, ids, padded)
    assert len(compiled) > 2 * 8


class Step:
    """What a training step asks of a trainer."""

    world_size = 1


def test_a_training_step_is_compiled_and_an_answer_is_not(
    counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, backend = counting
    whole = CompiledLayers.__init__
    monkeypatch.setattr(
        CompiledLayers, "__init__", lambda self, backbones: whole(self, backbones, backend)
    )
    module = CalmModule(TinySource(), Single(train=True), compile=True)
    module.configure_model()
    monkeypatch.setattr(CalmModule, "trainer", Step())
    monkeypatch.setattr(CalmModule, "log", lambda *_, **__: None)
    ids = tokens(2, 6)
    batch = Batch(examples=[], inputs={"input_ids": ids, "labels": ids})
    module.training_step(batch, 0)["loss"].backward()
    assert len(runs) == 4
    module.language_model.generate(input_ids=ids, max_new_tokens=3)
    module.language_model(input_ids=ids, labels=ids)
    assert len(runs) == 4


def test_what_trains_through_no_known_layers_is_refused() -> None:
    class Elsewhere(Single):
        def compose(self, anchor: Any, augmenting: Any) -> Any:
            model = super().compose(anchor, augmenting)
            kind = type(model)
            model.__class__ = type("Other", (kind,), {"trained_through": ()})
            return model

    with pytest.raises(CalmError, match=r"compile: .* trains through are not known\. Leave"):
        CalmModule(TinySource(), Elsewhere(train=True), compile=True).configure_model()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_the_same_but_for_rounding(family: str) -> None:
    """With torch's own compiler."""
    model = composed(family)
    layers = CompiledLayers(model.backbones)
    for rows, length in ((3, 8), (2, 11)):
        ids = tokens(rows, length)
        padded = torch.ones_like(ids)
        padded[0, -2:] = 0
        for mask in (None, padded):
            usual = learn(model, ids, mask)
            with layers.at_work():
                found = learn(model, ids, mask)
            torch.testing.assert_close(found[0], usual[0])
            for a, b in zip(found[1], usual[1], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
