"""Promises about weights: where they start, what moves, what is saved, what it is good for."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from calm_lightning.alignment import TextAlignment, share_token_ids
from calm_lightning.backbone import Backbone
from calm_lightning.checkpoint import load
from calm_lightning.collate import IGNORED
from calm_lightning.contracts import CalmError, LanguageModel
from calm_lightning.testing.case import (
    CACHE_MODES,
    Case,
    as_module,
    difference,
    how,
    read,
    require_close,
)
from calm_lightning.testing.reading import train

USED_VOCAB = 11
USED_STEPS = 30
USED_ROUNDS = 5
"""Training goes on for so many rounds of so many steps, and stops when the states are in use."""

USED_MARGIN = 0.05
"""In nats. Where the states are not read nothing changes at all; where they are, the loss rises by
whole nats in the end."""


def check_starts_as_anchor(case: Case) -> None:
    """Before training the logits equal the anchor's exactly."""
    model = case.build(disturbed=False)
    ids = case.tokens(3, 9)
    for cached in CACHE_MODES:
        found, expected = (read(m, ids, cached=cached) for m in (model, case.anchor.model))
        assert torch.equal(found, expected), (
            f"A fresh model's logits are not the anchor's ({how(cached)}): the largest difference "
            f"is {difference(found, expected):.1e} of the largest logit. The last weight before "
            "the sum must start at zero."
        )


def check_frozen(case: Case) -> None:
    """What is not trained does not move, stays in eval mode and never has a gradient."""
    model = case.build(disturbed=False)
    backbones = _list(case.backbones())
    originals = _contents(p for backbone in backbones for p in backbone.model.parameters())
    owned = [n for n, p in model.trainable_parameters() if _content(p) in originals]
    assert not owned, (
        f"{len(owned)} of the backbones' own weights are trainable: {owned[:3]}. If that is what "
        "the composition is about, it says so in `exempt`."
    )
    module = as_module(model)
    ids, asleep = case.tokens(3, 9), read(model, case.tokens(3, 9))
    module.train()
    if "starts_as_anchor" not in case.composition.exempt:
        what = "A fresh model answers otherwise in training mode"
        require_close(read(model, ids), asleep, what, "Is dropout of a frozen model on?")
    trained = {name for name, _ in model.trainable_parameters()}
    before = {n: t.clone() for n, t in module.state_dict().items() if n not in trained}
    prints = [backbone.fingerprint(exact=True) for backbone in model.frozen_backbones]
    train(model, case.uniform_batches(4, 8), steps=4, learning_rate=1e-2)
    state = module.state_dict()
    moved = [name for name, tensor in before.items() if not torch.equal(state[name], tensor)]
    assert not moved, f"Training moved {len(moved)} frozen tensors: {moved[:3]}."
    after = [backbone.fingerprint(exact=True) for backbone in model.frozen_backbones]
    assert after == prints, "Training changed the fingerprint of a frozen backbone."
    _require_frozen(case, model, trained)


def check_gradient(case: Case) -> None:
    """The gradient reaches every trainable weight."""
    model = case.build()
    as_module(model).train()
    batches = case.uniform_batches(4, 8)
    for _ in range(3):
        loss = model.forward(**next(batches)).loss
        assert loss is not None, "With `labels`, the output of `forward` must have a `loss`."
        if not loss.requires_grad:
            break
        loss.backward()
    sizes = {
        name: 0.0 if p.grad is None else float(p.grad.abs().max())
        for name, p in model.trainable_parameters()
    }
    # A bias on keys has no effect through the softmax; rounding alone gives it a gradient.
    least = 1e-7 * max(sizes.values(), default=0.0)
    unreached = [name for name, size in sizes.items() if not size > least]
    assert not unreached, (
        f"{len(unreached)} of {len(sizes)} trainable weights have no gradient: {unreached[:3]}. "
        "They would never learn: leave them out, or find where they are cut off."
    )


def check_checkpoint(case: Case) -> None:
    """A saved model holds what was trained and nothing else, in safetensors."""
    model = case.model
    with TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        pickles = [p.name for p in files if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
        assert not pickles, f"{pickles} can run code when they are read; write safetensors."
        saved = [t for p in files if p.suffix == ".safetensors" for t in load_file(p).values()]
    found = sorted(map(_content, saved))
    expected = sorted(_content(p) for _, p in model.trainable_parameters())
    assert found == expected, (
        f"{len(expected)} tensors were trained and {len(found)} saved; "
        f"{len(set(found) - set(expected))} of these are not among the trained ones, and "
        f"{len(set(expected) - set(found))} trained ones are missing."
    )


def check_reload(case: Case) -> None:
    """Loaded again the model is the same, and as frozen; other backbones are refused by hash."""
    settings = getattr(case.model, "composition", case.composition).settings()
    try:
        json.dumps(settings)
    except TypeError as error:
        raise AssertionError(f"Settings are saved as JSON, but {error}: {settings}") from None
    ids = case.tokens(3, 9)
    expected = read(case.model, ids)
    with TemporaryDirectory() as folder:
        case.model.save_pretrained(folder)
        needed = len(case.model.frozen_backbones)
        anchor, *augmenting = _list(case.backbones())[:needed]
        again = load(folder, anchor, augmenting)
        found = read(again, ids)
        assert torch.equal(found, expected), (
            "After saving and loading the logits differ by "
            f"{difference(found, expected):.1e} of the largest. Which weight or setting is lost?"
        )
        trained, loose = (
            {name for name, _ in model.trainable_parameters()} for model in (case.model, again)
        )
        assert loose == trained, (
            f"After loading other weights are trainable: {sorted(loose ^ trained)[:3]}."
        )
        own, others = [_list(case.backbones(seed=seed))[:needed] for seed in (0, 50)]
        for place, other in enumerate(others):
            given = [other if i == place else model for i, model in enumerate(own)]
            try:
                load(folder, given[0], given[1:])
            except CalmError as error:
                message = str(error)
            else:
                raise AssertionError(f"Another model in place of {own[place].name} was accepted.")
            for backbone in (own[place], other):
                wanted = (backbone.name, backbone.fingerprint()[:12])
                assert all(part in message for part in wanted), (
                    f"Another backbone is refused, but the message does not name {wanted}: "
                    f"{message}"
                )


def check_augmenting_used(case: Case) -> None:
    """What the augmenting model says is used: other states, or none, make a trained model worse."""
    model = case.build(disturbed=False, vocab=USED_VOCAB)
    assert hasattr(model, "disturbed"), (
        f"{type(model).__name__} has no `disturbed(how)`, so nobody can see whether the augmenting "
        "model is used. Provide it, or say in `exempt` why there is nothing to disturb."
    )
    batches = _answers(case, model)
    for _ in range(USED_ROUNDS):
        train(model, batches, USED_STEPS, learning_rate=1e-2)
        report = augmenting_report(model, next(batches))
        if min(report["shuffled"], report["zeroed"]) > report["as_is"] + USED_MARGIN:
            return
    raise AssertionError(
        f"Trained for {USED_ROUNDS * USED_STEPS} steps to say what the augmenting model would say "
        f"next, the loss is {report['as_is']:.3f} nats; with its states shuffled across rows it is "
        f"{report['shuffled']:.3f}, with zeros in their place {report['zeroed']:.3f}. They are "
        "hardly used: does a bridge read what it is given?"
    )


def augmenting_report(model: LanguageModel, batch: dict[str, Tensor]) -> dict[str, float]:
    """How much a model depends on what its augmenting models say.

    Args:
        model: A model with `disturbed(how)`, as `calm_lightning.composed.ComposedModel` has it.
        batch: As `encode` makes it, with labels; at least two rows.

    Returns:
        The loss in nats: `as_is`, `shuffled` (each row reads another row's augmenting states) and
        `zeroed` (it reads zeros). A model that uses them has a lower loss as it is.

    Raises:
        CalmError: If the model has no augmenting states to disturb, or there is one row only.
    """
    disturbed = getattr(model, "disturbed", None)
    if disturbed is None:
        raise CalmError(f"A {type(model).__name__} has no augmenting states to disturb.")
    if len(batch["input_ids"]) < 2:
        raise CalmError("One row cannot be shuffled; give at least two.")
    module = as_module(model)
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            report = {"as_is": _loss(model, batch)}
            for name, kind in (("shuffled", "shuffle"), ("zeroed", "zero")):
                with disturbed(kind):
                    report[name] = _loss(model, batch)
    finally:
        module.train(training)
    return report


def check_settings(case: Case) -> None:
    """Constructor arguments are kept under their names, and build an equal model again."""
    composition = case.composition
    kind = type(composition)
    try:
        settings = composition.settings()
    except AttributeError as error:
        raise AssertionError(
            f"{kind.__name__} does not keep every constructor argument: {error}"
        ) from None
    again = kind(**settings)
    assert again.settings() == settings, (
        f"{kind.__name__} built from {settings} has the settings {again.settings()}."
    )
    assert repr(composition).startswith(kind.__name__), f"repr() is {composition!r}"
    old = dict(case.build().trainable_parameters())
    new = dict(replace(case, composition=again).build().trainable_parameters())
    assert old.keys() == new.keys(), (
        f"Built again from its settings {kind.__name__} has other weights: "
        f"{sorted(old.keys() ^ new.keys())[:3]}"
    )
    different = [name for name in old if not torch.equal(old[name], new[name])]
    assert not different, (
        f"Built again from its settings, with the same seed, {kind.__name__} has other values in "
        f"{different[:3]}."
    )


def _require_frozen(case: Case, model: LanguageModel, trained: set[str]) -> None:
    loose = {name for name, _ in model.trainable_parameters()} - trained
    assert not loose, f"{len(loose)} frozen weights want a gradient: {sorted(loose)[:3]}."
    module = as_module(model)
    originals = {backbone.name: _modules(backbone) for backbone in _list(case.backbones())}
    module.train()
    for backbone in model.frozen_backbones:
        # Compared with an untouched one: a composition may put modules of its own inside.
        own = originals.get(backbone.name, _modules(backbone))
        awake = sorted(n for n, m in _modules(backbone).items() if m.training and _same(m, own, n))
        assert not awake, (
            f"After model.train() {len(awake)} modules of the frozen {backbone.name!r} are in "
            f"training mode: {awake[:3]}. Override `train` and put them back."
        )
    module.eval()
    buffers = [n for n, p in module.named_parameters() if n not in trained and p.grad is not None]
    assert not buffers, f"Frozen weights have gradient buffers: {buffers[:3]}."


def _modules(backbone: Backbone) -> dict[str, nn.Module]:
    return dict(backbone.model.named_modules())


def _same(module: nn.Module, originals: dict[str, nn.Module], name: str) -> bool:
    return name in originals and type(originals[name]) is type(module)


def _list(pair: tuple[Backbone, list[Backbone]]) -> list[Backbone]:
    return [pair[0], *pair[1]]


def _content(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.detach().flatten().tolist()!r}"


def _contents(tensors: Iterator[Tensor]) -> set[str]:
    """What weights hold. One number everywhere says nothing about whose they are: left out."""
    return {_content(t) for t in tensors if t.numel() and not bool((t == t.flatten()[0]).all())}


def _loss(model: LanguageModel, batch: dict[str, Tensor]) -> float:
    loss = model.forward(**batch).loss
    if loss is None:
        raise CalmError("The batch has no labels, so there is no loss to report.")
    return float(loss)


def _answers(
    case: Case, model: LanguageModel, rows: int = 96, length: int = 6
) -> Iterator[dict[str, Tensor]]:
    """Without end: random prompts, and the token that the first augmenting model finds likeliest.

    Likeliest against what it finds on the whole: an untrained model has a favourite, and whoever
    always says the favourite would need to ask nobody.
    """
    usual = _said(case, model, case.tokens(256, length - 1, vocab=USED_VOCAB))
    answers = torch.tensor(case.vocabulary(USED_VOCAB))
    if case.tokenizers is None:
        answers = torch.arange(USED_VOCAB)
    for seed in count(1):
        ids = case.tokens(rows, length, seed, USED_VOCAB)
        said = _said(case, model, ids[:, :-1])
        labels = torch.full_like(ids, IGNORED)
        labels[:, -1] = answers[((said - usual.mean(0)) / (usual.std(0) + 1e-2)).argmax(-1)]
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@torch.no_grad()
def _said(case: Case, model: LanguageModel, ids: Tensor) -> Tensor:
    """What the first augmenting model says at the end of each row, [rows, USED_VOCAB].

    With another tokenizer it says something at each of its tokens that the row's end may see, and
    what it says is the mean.
    """
    anchor, speaker, *_ = model.frozen_backbones
    if share_token_ids(anchor, speaker):
        return read(speaker.model, ids)[:, -1, :USED_VOCAB]
    aligned = TextAlignment(anchor, speaker)
    seen = [torch.tensor(aligned.read(row).ids, dtype=torch.long) for row in ids.tolist()]
    mask = pad_sequence([torch.ones_like(row) for row in seen], batch_first=True)
    said = read(speaker.model, pad_sequence(seen, batch_first=True), mask)[..., :USED_VOCAB]
    return (said * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
