"""The loss over a frozen head is that of all logits, and holds few of them at a time."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import AutoModelForCausalLM, Gemma2Config

import calm_lightning as calm
from calm_lightning.backbone import Backbone
from calm_lightning.composed import head
from calm_lightning.composed.head import can_be_chunked, mean_loss
from calm_lightning.testing import tiny_backbone
from calm_lightning.testing.case import disturb, seeded, tokens
from calm_plugins.compositions.cross_attention import CrossAttention

VOCABULARY, WIDTH, TARGETS = 37, 16, 11
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows of logits at a time: two full portions and a rest."""
    monkeypatch.setattr(head, "_LOGITS_AT_A_TIME", {"cpu": 4 * VOCABULARY + 5})


def frozen_head(bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    with seeded(0):
        layer = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)
    return layer.requires_grad_(False)


def hidden_and_targets(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    with seeded(1):
        hidden = torch.randn(TARGETS, WIDTH, dtype=dtype, requires_grad=True)
        return hidden, torch.randint(VOCABULARY, (TARGETS,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradient_are_those_of_all_logits(bias: bool, dtype: torch.dtype) -> None:
    layer, (hidden, targets) = frozen_head(bias, dtype), hidden_and_targets(dtype)
    loss = mean_loss(hidden, layer, targets)
    (3 * loss).backward()  # as where gradients are accumulated, or a loss is scaled
    exact = hidden.detach().double().requires_grad_()
    whole = cross_entropy(linear(exact, *(w.double() for w in layer.parameters())), targets)
    (3 * whole).backward()
    assert loss.dtype == (dtype if dtype == torch.float64 else torch.float32)
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(loss.double(), whole, rtol=close, atol=close)
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=close, atol=close / 10)


def test_few_logits_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    monkeypatch.setattr(head, "linear", lambda rows, *w: held.append(len(rows)) or linear(rows, *w))
    hidden, targets = hidden_and_targets()
    mean_loss(hidden, frozen_head(), targets)
    assert held == [4, 4, 3]


def test_without_a_gradient_nothing_is_kept() -> None:
    hidden, targets = hidden_and_targets()
    with torch.no_grad():
        assert not mean_loss(hidden, frozen_head(), targets).requires_grad
    assert not mean_loss(hidden.detach(), frozen_head(), targets).requires_grad


def test_a_head_that_learns_is_left_alone() -> None:
    assert can_be_chunked(frozen_head())
    assert not can_be_chunked(frozen_head().requires_grad_(True))
    assert not can_be_chunked(nn.Identity())


def capped() -> Backbone:
    """A model that caps its logits behind the head."""
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
        attn_implementation="eager",
    )
    with seeded(2):
        return Backbone(AutoModelForCausalLM.from_config(config), name="capped")


@pytest.mark.parametrize("anchor", [capped, lambda: tiny_backbone(vocab=VOCABULARY, width=WIDTH)])
def test_the_loss_of_a_model_is_that_of_its_logits(anchor: object) -> None:
    assert callable(anchor)
    backbone = anchor()
    assert backbone.head_is_plain == (backbone.name != "capped")
    augmenting = tiny_backbone(width=WIDTH, vocab=VOCABULARY, seed=1)
    with seeded(1):
        model = calm.compose(backbone, [augmenting], CrossAttention(connections=[(1, 1)]))
        disturb(model, 0.2)
    ids = tokens(3, 8) % VOCABULARY
    labels = ids.clone()
    labels[:, :3] = -100
    labels[1] = -100
    output = model(input_ids=ids, labels=labels)
    assert output.logits is None
    logits = model(input_ids=ids).logits[:, :-1]
    expected = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
