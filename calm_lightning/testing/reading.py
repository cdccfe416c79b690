"""Promises about one forward pass: what a logit may depend on."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from calm_lightning.collate import Row, pad_right
from calm_lightning.contracts import CalmError, LanguageModel
from calm_lightning.packing import check_keeps_apart, packed
from calm_lightning.testing.case import (
    CACHE_MODES,
    Case,
    as_module,
    difference,
    embedding_changed,
    how,
    padded,
    read,
    require_close,
)

EXACT = 1e-5
"""Largest relative difference where the same sums are taken in the same order: what is masked
counts exactly zero, so a kernel may at most add the zeros elsewhere."""

LEAK_VOCAB = 5
LEAK_STEPS = 50
LEAK_ERRORS = 5.0
"""In standard errors: by chance alone once in three million runs."""


def check_causal(case: Case) -> None:
    """Changing token t changes no logit before t, through the anchor or an augmenting model."""
    ids = case.tokens(3, 10)
    for cached in CACHE_MODES:
        before = read(case.model, ids, cached=cached)
        for t in (1, 5, 9):
            changed = ids.clone()
            changed[:, t] = case.others(changed[:, t])
            after = read(case.model, changed, cached=cached)
            require_close(
                after[:, :t],
                before[:, :t],
                f"Changing token {t} changes logits before it ({how(cached)})",
                "Which positions may a query see? Look at the mask that the bridge uses.",
                EXACT,
            )
            assert difference(after[:, t:], before[:, t:]) > EXACT, (
                f"Changing token {t} changes no logit at all: this check could not fail."
            )
    before = read(case.model, ids)
    for name, backbone in case.places.items():
        for t in (1, 5, 9):
            with embedding_changed(backbone, lambda states, t=t: _moved(states, t)):
                after = read(case.model, ids)
            earlier = torch.arange(ids.shape[1]) < case.first_seen(backbone, ids, t)[:, None]
            require_close(
                after[earlier],
                before[earlier],
                f"What {name} alone reads at position {t} changes logits before it",
                "Look at the mask over this model's states.",
                EXACT,
            )


def check_no_leak_in_training(case: Case) -> None:
    """On independent uniform tokens the training loss never falls below ln V.

    Nothing that precedes such a token says anything about it, so no honest model has an expected
    loss below ln V, whatever it has learnt. Every batch is new, and its loss is taken before the
    step that learns from it: the mean over the second half of the steps is an unbiased estimate of
    a number that is at least ln V. A model that reads its label gets far below within the steps
    given here.
    """
    model = case.build(disturbed=False, vocab=LEAK_VOCAB, scale=0.1)
    batches = case.uniform_batches(32, 6, LEAK_VOCAB)
    losses = train(model, batches, LEAK_STEPS, learning_rate=1e-2)
    late = torch.tensor(losses[LEAK_STEPS // 2 :])
    error = float(late.std()) / math.sqrt(len(late))
    bound = math.log(LEAK_VOCAB)
    assert float(late.mean()) > bound - LEAK_ERRORS * error, (
        f"On uniform random tokens the loss fell to {float(late.mean()):.3f} nats "
        f"(± {error:.3f}), but ln {LEAK_VOCAB} = {bound:.3f} cannot be beaten honestly. "
        "In training a position reads its own label: look at the mask, and at what the model does "
        "with `labels`."
    )


def check_padding(case: Case) -> None:
    """What stands in the padding is never read, left or right, in either model."""
    ids, lengths = case.tokens(3, 9), (9, 6, 2)
    alone = [read(case.model, ids[i : i + 1, :n])[0] for i, n in enumerate(lengths)]
    for cached in CACHE_MODES:
        for left in (True, False):
            side = "left" if left else "right"
            results = []
            for fill in (0, case.vocabulary()[-1]):
                batch = padded(ids, lengths, left, fill)
                results.append(_real(case, batch, cached))
            require_close(
                results[1],
                results[0],
                f"Other ids in the {side} padding change logits ({how(cached)})",
                "Look at whether the bridge's mask leaves padding out.",
                EXACT,
            )
            if not cached:  # `check_cache` reads padded rows through a cache
                require_close(
                    results[0],
                    torch.cat(alone),
                    f"Rows padded on the {side} differ from the same rows alone",
                    "Look at positions (padding does not count) and at the mask.",
                )
    for left in (True, False):
        batch = padded(ids, lengths, left, 0)
        before = _real(case, batch)
        for name, backbone in case.places.items():
            mask = case.attended(backbone, batch)
            with embedding_changed(backbone, lambda s, m=mask: _extreme(s, m)):
                after = _real(case, batch)
            require_close(
                after,
                before,
                f"Extreme states of {name} at {'left' if left else 'right'} padding change logits",
                "Look at whether the bridge's mask leaves padding out.",
                EXACT,
            )


def check_batch(case: Case) -> None:
    """Neither the order of a batch nor its size changes a row's logits."""
    ids = case.tokens(5, 9)
    order = torch.tensor([3, 0, 4, 4, 1])
    for cached in CACHE_MODES:
        whole = read(case.model, ids, cached=cached)
        require_close(
            read(case.model, ids[order], cached=cached),
            whole[order],
            f"Rows in another order have other logits ({how(cached)})",
            "Something mixes the rows of a batch.",
        )
        for i in range(2):
            require_close(
                read(case.model, ids[i : i + 1], cached=cached),
                whole[i : i + 1],
                f"Row {i} alone has other logits than in its batch ({how(cached)})",
                "Something mixes the rows of a batch.",
            )


def check_packing(case: Case) -> None:
    """Examples side by side in one row read nothing of one another: same losses, same gradient."""
    if not getattr(case.model, "packs", False):
        return
    model = case.build()
    anchor, augmenting = case.backbones()
    try:
        for backbone in (anchor, *augmenting):
            check_keeps_apart(backbone)
    except CalmError:
        return  # a family that counts columns; a run that asks for it is refused
    ids = case.tokens(4, 9).tolist()
    rows = [
        Row(ids[i][:n], prompt) for i, (n, prompt) in enumerate([(9, 3), (6, 1), (4, 2), (2, 1)])
    ]
    found = _learnt(model, packed(rows, length=13, pad_id=ids[0][0]))
    expected = _learnt(model, pad_right(rows, pad_id=ids[0][0]))
    for name, value in expected.items():
        require_close(
            found[name],
            value,
            f"Packed into rows of several, examples have another {name} than in rows of their own",
            "Look at what is read: `visible` is False between examples, and positions begin again.",
        )


def _learnt(model: LanguageModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loss of a batch, and the gradient of everything that is trained."""
    as_module(model).zero_grad()
    loss = model.forward(**batch).loss
    assert loss is not None, "With `labels`, the output of `forward` must have a `loss`."
    if loss.requires_grad:
        loss.backward()
    gradients = [p.grad.flatten() for _, p in model.trainable_parameters() if p.grad is not None]
    return {"loss": loss.detach(), "gradient": torch.cat([torch.zeros(1), *gradients])}


def check_no_state(case: Case) -> None:
    """Nothing of one batch is left when the next one comes."""
    first, second = case.tokens(3, 8, seed=1), case.tokens(3, 8, seed=2)
    model, fresh = case.build(), case.build()
    expected = read(fresh, second)
    with torch.no_grad():
        as_module(model).train()
        model.forward(input_ids=first, labels=first)
        as_module(model).eval()
        model.generate(input_ids=first, attention_mask=torch.ones_like(first), max_new_tokens=3)
    read(model, first[:2, :5], cached=True)
    _fail_halfway(model, first)
    found = read(model, second)
    assert torch.equal(found, expected), (
        "The logits of a batch depend on the batches before it (largest difference: "
        f"{difference(found, expected):.1e} of the largest logit). What of an earlier batch, in "
        "training or in generation, is kept on the model or in a bridge? It belongs in the cache."
    )


def train(
    model: LanguageModel,
    batches: Iterator[dict[str, Tensor]],
    steps: int,
    learning_rate: float,
) -> list[float]:
    """Train for some steps, as a trainer would; the loss of each step, before it.

    Without trainable weights the losses are only measured.
    """
    as_module(model).train()
    parameters = [p for _, p in model.trainable_parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate) if parameters else None
    losses = []
    for _ in range(steps):
        loss = model.forward(**next(batches)).loss
        assert loss is not None, "With `labels`, the output of `forward` must have a `loss`."
        losses.append(float(loss.detach()))
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    as_module(model).eval()
    return losses


def _moved(states: Tensor, position: int) -> Tensor:
    if position >= states.shape[1]:
        return states  # another tokenizer reads fewer tokens
    moved = states.clone()
    # Not the same amount for each entry: a norm that takes the mean away would hide it.
    moved[:, position] += torch.linspace(-2.0, 3.0, states.shape[-1])
    return moved


def _extreme(states: Tensor, attention_mask: Tensor) -> Tensor:
    extreme = 1e3 * torch.linspace(-2.0, 3.0, states.shape[-1])
    return torch.where(attention_mask[..., None] == 0, extreme, states)


def _real(case: Case, batch: dict[str, Tensor], cached: bool = False) -> Tensor:
    """The logits at real tokens, [tokens, vocabulary]."""
    mask = batch["attention_mask"]
    return read(case.model, batch["input_ids"], mask, cached)[mask.bool()]


def _fail_halfway(model: LanguageModel, ids: Tensor) -> None:
    """Let a forward pass die in the middle, as it does when memory runs out."""

    class Halfway(Exception):
        pass

    calls = iter(range(100))

    def stop(*_: object) -> None:
        if next(calls) == 2:
            raise Halfway

    lists = [m for m in as_module(model).modules() if isinstance(m, nn.ModuleList)]
    handles = [layer.register_forward_pre_hook(stop) for layers in lists for layer in layers]
    try:
        read(model, ids)
    except Halfway:
        pass
    finally:
        for handle in handles:
            handle.remove()
