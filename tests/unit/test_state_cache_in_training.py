"""A state cache changes what is computed, and not what is learnt."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import calm_lightning as calm
from calm_lightning.backbone import Backbone
from calm_lightning.callbacks import CountWork
from calm_lightning.collate import IGNORED
from calm_lightning.composed import ComposedModel
from calm_lightning.composed.kept import Kept
from calm_lightning.composed.upper import UpperPart
from calm_lightning.contracts import CalmError, EvaluationSet, Example, Task
from calm_lightning.module import CalmModule
from calm_lightning.run import quiet_libraries
from calm_lightning.state_cache import StateCache, reading
from calm_lightning.testing import FAMILIES, Case, TinySource, tiny_backbone
from calm_lightning.testing.case import disturb, seeded, tokens
from calm_lightning.testing.tiny import OTHER_FAMILIES
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.single import Single

LENGTHS = (9, 5, 7, 3)


def joined(composition: CrossAttention | None = None, **options: Any) -> ComposedModel:
    """Anchor and augmenting model have four layers; the second of the one feeds that of the other.

    In training mode, as a trainer has it.
    """
    composition = composition or CrossAttention(connections=[(1, 1), (3, 3)])
    anchor, augmenting = tiny_backbone(vocab=37), tiny_backbone(width=16, vocab=37, seed=1)
    with seeded(1):
        model = calm.compose(anchor, [augmenting], composition)
        disturb(model, 0.2)
    assert isinstance(model, ComposedModel)
    assert model.anchor_backbone.head_is_plain  # asked once; a token is read for it
    return model.train()


def batch_of(ids: Tensor, rows: Sequence[int] = range(4), left: bool = False) -> dict[str, Tensor]:
    """Some rows of different lengths, padded; all but the first two tokens of each are learnt."""
    width = max(LENGTHS[row] for row in rows)
    found = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(found), torch.full_like(found, IGNORED)
    for at, row in enumerate(rows):
        length = LENGTHS[row]
        start = width - length if left else 0
        found[at, start : start + length] = ids[row, :length]
        mask[at, start : start + length] = 1
        labels[at, start + 2 : start + length] = ids[row, 2:length]
    return {"input_ids": found, "attention_mask": mask, "labels": labels}


def learnt(model: ComposedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loss and every gradient; what is drawn is drawn alike."""
    with seeded(3):
        loss = model(**batch).loss
    model.zero_grad()
    loss.backward()
    gradients = {n: p.grad for n, p in model.trainable_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def same(one: dict[str, Tensor], other: dict[str, Tensor], bits: bool = False) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if bits:
            assert torch.equal(value, other[name]), name
        elif name == "loss":
            torch.testing.assert_close(value, other[name], rtol=1e-6, atol=0)
        else:
            torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-6)


@contextmanager
def rows_through(model: ComposedModel) -> Iterator[Counter[str]]:
    """How many rows went through each layer of the backbones."""
    counted: Counter[str] = Counter()

    def hook(name: str) -> Any:
        return lambda module, args: counted.update({name: len(args[0])})

    anchor, augmenting = model.backbones
    layers = [(f"{n} {i}", layer) for n, b in (("anchor", anchor), ("augmenting", augmenting))
              for i, layer in enumerate(b.layers)]  # fmt: skip
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers]
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


# ------------------------------------------------------------------ the same is learnt

CASES = {
    "one tokenizer": Case(CrossAttention(every=2)),
    "noise on the states": Case(CrossAttention(every=2, state_noise=0.3)),
    "two augmenting models": Case(CrossAttention(every=2), "gpt2", 2, "qwen2"),
    "the prompt alone": Case(CrossAttention(every=2, augmenting_sees="prompt")),
    "another tokenizer": Case(CrossAttention(every=2), tokenizers=("characters", "byte_bpe")),
    "another and the same": Case(
        CrossAttention(every=2), "gpt2", 2, "qwen2", tokenizers=("byte_bpe", "unigram", "byte_bpe")
    ),
    "another, the prompt alone": Case(
        CrossAttention(every=2, augmenting_sees="prompt"),
        tokenizers=("characters", "unigram_whole"),
    ),
    "columns are counted": Case(CrossAttention(every=2), "bloom", 1, "gpt_bigcode"),
}


@pytest.mark.parametrize("anchor", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_without(tmp_path: Path, name: str, anchor: bool) -> None:
    case = CASES[name]
    model = case.build()
    assert isinstance(model, ComposedModel)
    model.train()
    ids = case.tokens(4, max(LENGTHS))
    ways = [
        batch_of(ids),
        batch_of(ids, left=True),
        batch_of(ids, [3, 1]),
        batch_of(ids, [2, 0, 2]),
    ]
    expected = [learnt(model, batch) for batch in ways]
    kept = model.keep_states(StateCache(str(tmp_path), anchor=anchor))
    same(learnt(model, ways[0]), expected[0], bits=True)  # nothing was known
    same(learnt(model, ways[0]), expected[0], bits=True)
    written = [len(each.store) for each in kept.augmenting]
    for batch, wanted in zip(ways, expected, strict=True):
        same(learnt(model, batch), wanted)
    assert [len(each.store) for each in kept.augmenting] == written
    model.forget_states()
    same(learnt(model, ways[0]), expected[0], bits=True)


def test_layers_above_may_be_computed_twice(tmp_path: Path) -> None:
    model, batch = joined(), batch_of(tokens(4, 9, vocab=37))
    expected = learnt(model, batch)
    model.recompute = True
    model.keep_states(StateCache(str(tmp_path)))
    for _ in range(2):
        with rows_through(model) as counted:
            same(learnt(model, batch), expected, bits=True)
    assert counted == {"anchor 2": 4, "anchor 3": 4}  # hooks lie outside of what is repeated


def test_every_epoch_sees_the_same_rounded_states(tmp_path: Path) -> None:
    model, batch = joined(), batch_of(tokens(4, 9, vocab=37))
    exact = learnt(model, batch)["loss"]
    for dtype in ("float16", "bfloat16"):
        model.keep_states(StateCache(str(tmp_path), dtype=dtype))  # type: ignore[arg-type]
        first = learnt(model, batch)
        assert 0 < abs(first["loss"] / exact - 1) < 1e-2
        same(learnt(model, batch), first, bits=True)
        model.keep_states(StateCache(str(tmp_path), dtype=dtype))  # type: ignore[arg-type]
        same(learnt(model, batch), first, bits=True)


def test_what_float16_does_not_hold_is_refused(tmp_path: Path) -> None:
    model = joined()
    model.backbones[1].layers[0].mlp.down_proj.weight.data *= 1e8
    model.keep_states(StateCache(str(tmp_path), dtype="float16"))
    with pytest.raises(CalmError, match=r"'tiny-llama-1' are as large as .*dtype bfloat16"):
        learnt(model, batch_of(tokens(4, 9, vocab=37)))


# ------------------------------------------------------------------ what is computed


def test_what_is_known_is_not_computed_again(tmp_path: Path) -> None:
    model, ids = joined(), tokens(4, 9, vocab=37)
    model.keep_states(StateCache(str(tmp_path)))
    with rows_through(model) as counted:
        learnt(model, batch_of(ids, [0, 1, 2]))
    everywhere = {f"{name} {layer}": 3 for name in ("anchor", "augmenting") for layer in range(4)}
    assert counted == everywhere
    above = {"anchor 2": 3, "anchor 3": 3}
    with rows_through(model) as counted:
        learnt(model, batch_of(ids, [2, 1, 0]))
    assert counted == above
    with rows_through(model) as counted:  # one of three is new
        learnt(model, batch_of(ids, [2, 3, 0]))
    assert counted == dict.fromkeys(everywhere, 1) | above
    model.keep_states(StateCache(str(tmp_path), anchor=False))
    with rows_through(model) as counted:
        learnt(model, batch_of(ids))
    assert counted == {f"anchor {layer}": 4 for layer in range(4)}


def test_other_models_and_other_layers_have_states_of_their_own(tmp_path: Path) -> None:
    batch = batch_of(tokens(4, 9, vocab=37))
    joined().keep_states(StateCache(str(tmp_path))).close()
    first = joined()
    first.keep_states(StateCache(str(tmp_path)))
    learnt(first, batch)
    first.forget_states()
    moved = joined()
    moved.backbones[1].layers[0].mlp.down_proj.weight.data[0, 0] += 1e-6
    tapped = joined(CrossAttention(connections=[(0, 1), (3, 3)]))
    stretched = joined()
    stretched.backbones[1].model.config.rope_parameters["rope_theta"] = 500.0
    for other, runs in ((moved, True), (tapped, True), (stretched, True), (joined(), False)):
        other.keep_states(StateCache(str(tmp_path)))
        with rows_through(other) as counted:
            learnt(other, batch)
        assert ("augmenting 0" in counted) == runs
        assert "anchor 0" not in counted
        other.forget_states()
    precise = joined()
    precise.keep_states(StateCache(str(tmp_path)), precision="bf16-mixed")
    with rows_through(precise) as counted:
        learnt(precise, batch)
    assert counted["augmenting 0"] == counted["anchor 0"] == 4


def test_states_of_another_version_of_transformers_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(tokens(4, 9, vocab=37))
    for version, runs in (("5.98.0", True), ("5.98.0", False), ("5.99.0", True)):
        monkeypatch.setattr(reading.transformers, "__version__", version)
        model = joined()
        model.keep_states(StateCache(str(tmp_path)))
        with rows_through(model) as counted:
            learnt(model, batch)
        assert ("augmenting 0" in counted) == ("anchor 0" in counted) == runs
        model.forget_states()


SCALED = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("parameters", "kind"),
    [
        (SCALED, "dynamic"),
        (SCALED | {"rope_type": "longrope"}, "longrope"),
        ({"sliding_attention": PLAIN, "full_attention": SCALED}, "dynamic"),
    ],
)
def test_states_that_depend_on_the_longest_text_of_a_batch_are_refused(
    tmp_path: Path, parameters: dict[str, Any], kind: str
) -> None:
    for number, way_out in ((0, "anchor=false"), (1, "Leave model.cache_states out")):
        model = joined()
        model.backbones[number].config.rope_parameters = parameters
        message = rf"cache_states: .*'tiny-llama-{number}' .*rope_type={kind!r}.*{way_out}"
        with pytest.raises(CalmError, match=message):
            model.keep_states(StateCache(str(tmp_path)))
        if number == 0:
            model.keep_states(StateCache(str(tmp_path), anchor=False))


def test_only_training_keeps_states(tmp_path: Path) -> None:
    model, batch = joined(), batch_of(tokens(4, 9, vocab=37))
    asked = {name: batch[name][:, :3] for name in ("input_ids", "attention_mask")}
    expected = model.eval()(**batch).loss, model.generate(**asked, max_new_tokens=5)
    kept = model.keep_states(StateCache(str(tmp_path)))
    assert torch.equal(model(**batch).loss, expected[0])
    assert torch.equal(model.generate(**asked, max_new_tokens=5), expected[1])
    model.train()
    model(**asked)
    with model.anchor_only():
        model(**batch)
    assert len(kept.augmenting[0].store) == 0
    model(**batch)
    assert len(kept.augmenting[0].store) == 4


@pytest.mark.parametrize(
    "family", [*FAMILIES, *(pytest.param(f, marks=pytest.mark.slow) for f in OTHER_FAMILIES)]
)
def test_any_family_begins_at_any_layer(family: str) -> None:
    backbone = tiny_backbone(family)
    ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    for layer in range(backbone.num_layers):
        outputs: list[Any] = []
        hook = backbone.layers[layer].register_forward_hook(
            lambda module, args, output, outputs=outputs: outputs.append(output)
        )
        with torch.no_grad():
            whole = backbone.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            states = outputs[0] if isinstance(outputs[0], Tensor) else outputs[0][0]
            upper = UpperPart(backbone, layer)
            above = upper(states, input_ids=ids, attention_mask=mask, use_cache=False).logits
        hook.remove()
        torch.testing.assert_close(above[mask.bool()], whole[mask.bool()])


def remembers(backbone: Backbone, otherwise: Tensor | None) -> None:
    """The last layer adds what the first one left, or something else if nothing was left."""
    left: list[Tensor] = []

    def leave(module: nn.Module, args: Any, output: Tensor) -> None:
        left.append(output)

    def take(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + (left.pop() if left or otherwise is None else otherwise)

    backbone.layers[0].register_forward_hook(leave)
    backbone.layers[-1].register_forward_hook(take)


def runs_its_own(backbone: Backbone) -> None:
    """As libraries do that move weights about: `forward` is an attribute of the decoder itself."""
    backbone.decoder.forward = backbone.decoder.forward  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "change",
    [lambda b: remembers(b, None), lambda b: remembers(b, torch.zeros(())), runs_its_own],
    ids=["fails", "answers otherwise", "runs them anyway"],
)
def test_a_model_that_needs_its_lower_layers_is_refused(change: Any) -> None:
    backbone = tiny_backbone()
    change(backbone)
    with pytest.raises(CalmError, match=r"cannot do without its lower layers .*anchor to false"):
        UpperPart(backbone, 1)


# ------------------------------------------------------------------ runs

TEXTS = [Example(f"{n}+1=", str(n + 1)) for n in range(10)]


class Sums(Task):
    def train_examples(self) -> Sequence[Example]:
        return TEXTS

    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        return [EvaluationSet("texts", TEXTS[:3], None)]


class PowerCut(BaseException):
    """Ends a run where it is."""


class StopAt(L.Callback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise PowerCut


def run(
    folder: Path | None,
    steps: int = 8,
    stop_at: int | None = None,
    checkpoints: Path | None = None,
    composition: Any = None,
    callbacks: Sequence[L.Callback] = (),
    **options: Any,
) -> CalmModule:
    """Fits, two steps an epoch; goes on from a checkpoint if there is one."""
    quiet_libraries()
    L.seed_everything(0, verbose=False)
    settings = None if folder is None else StateCache(str(folder), **options)
    composition = composition or CrossAttention(every=2, state_noise=0.2)
    augmenting = [] if isinstance(composition, Single) else [TinySource(1)]
    module = CalmModule(
        TinySource(0), composition, augmenting, warmup_steps=1, cache_states=settings
    )
    saving = L.pytorch.callbacks.ModelCheckpoint(checkpoints, every_n_train_steps=2)
    own = [StopAt(stop_at), *([saving] if checkpoints else []), *callbacks]
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=checkpoints is not None, num_sanity_val_steps=0, max_steps=steps,
        limit_val_batches=0, callbacks=own,
    )  # fmt: skip
    saved = max(checkpoints.glob("*.ckpt"), default=None) if checkpoints else None
    trainer.fit(module, datamodule=Sums(batch_size=4), ckpt_path=saved)
    return module


def weights(module: CalmModule) -> dict[str, Tensor]:
    return {name: w.detach() for name, w in module.language_model.trainable_parameters()}


def test_a_run_learns_what_it_learns_without_and_a_second_run_the_same_bits(tmp_path: Path) -> None:
    same(weights(run(tmp_path)), weights(run(None)))
    once = weights(run(tmp_path / "other"))
    same(weights(run(tmp_path / "other")), once, bits=True)  # nothing had to be computed
    again = len(list((tmp_path / "other").glob("*/*.states")))
    assert again == 2  # of the anchor and of the augmenting model: the second run wrote nothing


@pytest.mark.parametrize("stops", [(1, 2), (4,), (3, 5)])
def test_a_run_that_goes_on_ends_with_the_same_bits(tmp_path: Path, stops: Sequence[int]) -> None:
    whole = weights(run(tmp_path / "whole", dtype="float16"))
    parts = tmp_path / "parts"
    for stop in stops:
        with pytest.raises(PowerCut):
            run(parts / "states", stop_at=stop, checkpoints=parts, dtype="float16")
    same(weights(run(parts / "states", checkpoints=parts, dtype="float16")), whole, bits=True)


def test_a_checkpoint_waits_for_the_states_and_an_epoch_looks_for_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("flush", "refresh"):
        method = getattr(Kept, name)
        monkeypatch.setattr(
            Kept, name, lambda self, name=name, method=method: (done.append(name), method(self))
        )
    run(tmp_path / "states", steps=6, checkpoints=tmp_path)
    assert done == ["flush", "refresh", "flush"] * 3  # two steps an epoch


def test_the_arithmetic_of_a_run_is_counted_as_if_nothing_were_known(tmp_path: Path) -> None:
    counted = []
    for folder in (None, tmp_path, tmp_path):
        work = CountWork()
        run(folder, steps=1, callbacks=[work])
        counted.append(work.of_a_step)
    assert counted[0] == counted[1] == counted[2] > 0


def test_what_reads_no_states_has_none_to_keep(tmp_path: Path) -> None:
    with pytest.raises(CalmError, match=r"cache_states: .*Single.* reads no states"):
        run(tmp_path, composition=Single())
