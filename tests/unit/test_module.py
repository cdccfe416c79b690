"""What the LightningModule promises: schedule, scores, and checkpoints of the trained part only."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from calm_lightning.backbone import Backbone
from calm_lightning.callbacks import CountWork, NothingFrozenMoved, WriteAnswers
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import (
    CalmError,
    Composition,
    EvaluationSet,
    ExactMatch,
    Example,
    LanguageModel,
    Task,
)
from calm_lightning.language_model import TextModel
from calm_lightning.module import CalmModule, TextLoss, learning_rate_share
from calm_lightning.run import quiet_libraries
from calm_lightning.testing import TinySource, tiny_backbone, tiny_tokenizer
from calm_lightning.testing.tokenizers import text_tokenizer
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.single import Single

SUMS = [
    Example(f"{n}+1=", str(n + 1), {"prompt/words": f"after {n}?"} if n % 2 else {})
    for n in range(10)
]
ODD = SUMS[1::2]


class Sums(Task):
    """Sums to be learnt; one set to be answered, and one whose loss alone is wanted."""

    def __init__(self, asked: Sequence[Example] = SUMS, **options: Any) -> None:
        super().__init__(**{"batch_size": 4, **options})
        self.asked = asked

    def train_examples(self) -> Sequence[Example]:
        return SUMS

    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        return [
            EvaluationSet("sums", self.asked, ExactMatch, max_new_tokens=3),
            EvaluationSet("texts", SUMS[:3], None),
        ]


def make(composition: Composition | None = None, **options: Any) -> CalmModule:
    composition = composition or CrossAttention(every=2)
    augmenting = [] if isinstance(composition, Single) else [TinySource(1)]
    module = CalmModule(TinySource(0), composition, augmenting, **{"warmup_steps": 1, **options})
    return module


def trainer(**options: Any) -> L.Trainer:
    quiet_libraries()
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False,
             "enable_model_summary": False, "enable_checkpointing": False,
             "num_sanity_val_steps": 0, "log_every_n_steps": 1}  # fmt: skip
    return L.Trainer(**{**quiet, **options})


def scores_of(module: CalmModule, task: Task) -> dict[str, float]:
    run = trainer()
    run.test(module, datamodule=task, verbose=False)
    return {name: float(value) for name, value in run.callback_metrics.items()}


# ------------------------------------------------------------------ learning rate


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_over_the_warm_up_and_falls_over_the_rest(schedule: Any) -> None:
    rates = [learning_rate_share(step, schedule, 10, 110, 0.05) for step in range(111)]
    rise = [b - a for a, b in itertools.pairwise(rates[:11])]
    assert rise == pytest.approx([1 / 11] * 10)
    assert rates[0] == pytest.approx(1 / 11)  # never zero: the first step counts
    assert max(rates) == rates[10] == 1
    middle, end = {"cosine": (0.525, 0.05), "linear": (0.525, 0.05), "constant": (1, 1)}[schedule]
    assert rates[60] == pytest.approx(middle)
    assert rates[110] == pytest.approx(end)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate_share(500, schedule, 10, 110, 0.05) == pytest.approx(end)


def test_cosine_falls_slowly_at_both_ends() -> None:
    early, late = (
        [learning_rate_share(step, kind, 0, 100, 0.0) for kind in ("cosine", "linear")]
        for step in (10, 90)
    )
    assert early[0] > early[1]
    assert late[0] < late[1]
    assert learning_rate_share(25, "cosine", 0, 100, 0.0) == pytest.approx(
        0.5 * (1 + math.cos(math.pi / 4))
    )


def test_a_run_without_an_end_never_falls() -> None:
    rates = [learning_rate_share(step, "cosine", 2, math.inf, 0.1) for step in (0, 1, 2, 10**6)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_the_optimizer_gets_the_trained_weights_and_the_schedule() -> None:
    module = make(optimizer=lambda weights: torch.optim.SGD(weights, lr=0.5), warmup_steps=3)
    run = trainer(max_steps=2, limit_val_batches=0)
    run.fit(module, datamodule=Sums())
    (group,) = run.optimizers[0].param_groups
    wanted = {id(p) for _, p in module.language_model.trainable_parameters()}
    assert {id(p) for p in group["params"]} == wanted
    assert group["lr"] == pytest.approx(0.5 * 3 / 4)


@pytest.mark.parametrize("options", [{"warmup_steps": -1}, {"final_share": 1.5}])
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(CalmError, match=next(iter(options))):
        make(**options)


def test_a_composition_that_trains_nothing_cannot_be_fitted() -> None:
    with pytest.raises(CalmError, match="trains nothing"):
        trainer(max_steps=1, limit_val_batches=0).fit(make(Single()), datamodule=Sums())


# ------------------------------------------------------------------ scores


def by_hand(model: LanguageModel, examples: Sequence[Example]) -> tuple[float, int, int]:
    """Nats, tokens and characters of all targets, one example at a time."""
    tokenizer = tiny_tokenizer()
    nats, tokens, characters = 0.0, 0, 0
    for example in examples:
        prompt, target = (tokenizer(t)["input_ids"] for t in (example.prompt, example.target))
        ids = torch.tensor([[*prompt, *target, tokenizer.eos_token_id]])
        with torch.no_grad():
            logits: Tensor = model(input_ids=ids).logits.double()
        chances = torch.log_softmax(logits, -1)[0]
        for place in range(len(prompt), ids.shape[1]):
            nats -= float(chances[place - 1, ids[0, place]])
            tokens += 1
        characters += len(example.target)
    return nats, tokens, characters


def test_the_loss_is_in_nats_per_token_and_per_character() -> None:
    module = make()
    scores = scores_of(module, Sums())
    for name, examples in (("sums", SUMS), ("texts", SUMS[:3])):
        nats, tokens, characters = by_hand(module.language_model, examples)
        assert scores[f"test/{name}/loss_nats"] == pytest.approx(nats / tokens, rel=1e-4)
        per_character = scores[f"test/{name}/loss_nats_per_character"]
        assert per_character == pytest.approx(nats / characters, rel=1e-4)
    assert "test/texts/accuracy" not in scores


def test_text_loss_adds_up_over_batches() -> None:
    loss = TextLoss()
    loss.update(torch.tensor(2.0), 3, 10)
    loss.update(torch.tensor(1.0), 1, 4)
    assert float(loss.compute()["loss_nats"]) == pytest.approx(7 / 4)
    assert float(loss.compute()["loss_nats_per_character"]) == pytest.approx(7 / 14)


def test_evaluation_in_small_batches_equals_one_in_one() -> None:
    module = make()
    small = scores_of(module, Sums(evaluation_batch_size=3))
    assert small == pytest.approx(scores_of(make(), Sums(evaluation_batch_size=64)), abs=1e-5)
    assert small == pytest.approx(scores_of(module, Sums(evaluation_batch_size=1)), abs=1e-5)


def test_each_validation_starts_anew_also_after_one_outside_the_fit() -> None:
    """Also: metrics that were reset in inference mode can still be added to in a fit."""
    module, task = make(optimizer=lambda weights: torch.optim.SGD(weights, lr=0.3)), Sums()
    run = trainer(max_steps=4, val_check_interval=2, check_val_every_n_epoch=None)

    def check() -> float:
        nats, tokens, _ = by_hand(module.language_model, SUMS)
        assert float(run.callback_metrics["val/sums/loss_nats"]) == pytest.approx(
            nats / tokens, rel=1e-4
        )
        return nats

    run.validate(module, datamodule=task, verbose=False)
    before = check()
    run.fit(module, datamodule=task)
    assert check() != pytest.approx(before, rel=1e-3)


def test_validation_takes_some_examples_and_test_all() -> None:
    module, task = make(), Sums(validation_examples=4)
    run = trainer()
    run.validate(module, datamodule=task, verbose=False)
    nats, tokens, _ = by_hand(module.language_model, SUMS[:4])
    found = float(run.callback_metrics["val/sums/loss_nats"])
    assert found == pytest.approx(nats / tokens, rel=1e-4)


def test_the_headline_is_right_where_the_answer_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {e.prompt: e.target for e in SUMS[:4]}
    monkeypatch.setattr(
        TextModel,
        "generate_text",
        lambda self, prompts, **options: [said.get(prompt, "") for prompt in prompts],
    )
    module = make()
    assert scores_of(module, Sums())["test/sums/accuracy"] == pytest.approx(0.4)
    asked = [said.get(e.prompt) == e.target for e in SUMS]
    assert module.outcomes["sums"] == asked, "not in the order of the examples"


def test_scores_of_all_processes_come_in_the_order_of_the_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = make()
    """Several answers to one question count as one."""
    questions = [*SUMS[:4], SUMS[1]]
    own, others = {2: 0.2, 0: 0.0}, [[1.0, 0.1], [3.0, 0.3], [4.0, 0.5]]
    module._each = {"sums": own}

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.ndim:
            return torch.tensor([tensor.item(), len(others)])
        return torch.stack([tensor, tensor.new_tensor(others)])

    monkeypatch.setattr(module, "all_gather", gather)
    monkeypatch.setattr(type(module), "trainer", SimpleNamespace(world_size=2))
    module._gather_outcomes(EvaluationSet("sums", questions, None))
    assert module.outcomes == {"sums": [0.0, pytest.approx(0.3), 0.2, 0.3]}


def test_questions_that_do_not_fit_count_as_unanswered_and_are_counted() -> None:
    long = [Example("x" * 63, "yy"), Example("x" * 62, "")]
    module = make()
    scores = scores_of(module, Sums(asked=[*SUMS[:2], *long]))
    assert scores["test/sums/too_long"] == 2
    assert len(module.outcomes["sums"]) == 4
    assert module.outcomes["sums"][2] == 0  # the set's third, asked before the others
    nats, tokens, _ = by_hand(module.language_model, SUMS[:2])
    assert scores["test/sums/loss_nats"] == pytest.approx(nats / tokens, rel=1e-4)
    assert "test/texts/too_long" not in scores


def test_a_disturbance_is_that_of_evaluation_alone() -> None:
    def fitted(**options: Any) -> CalmModule:
        torch.manual_seed(0)
        module = make(optimizer=lambda weights: torch.optim.SGD(weights, lr=0.3), **options)
        trainer(max_steps=3, limit_val_batches=0).fit(module, datamodule=Sums())
        return module

    module = fitted(disturb="zero")
    disturbed = scores_of(module, Sums())
    module.disturb = None
    assert scores_of(module, Sums()) != disturbed
    assert scores_of(module, Sums()) == scores_of(fitted(), Sums())


def test_what_reads_no_states_cannot_be_disturbed() -> None:
    with pytest.raises(CalmError, match=r"disturb='zero': .*Single.* reads no states"):
        scores_of(make(Single(), disturb="zero"), Sums())


def test_a_text_of_just_the_contexts_length_counts() -> None:
    class Whole(Sums):
        def evaluation_sets(self) -> Sequence[EvaluationSet]:
            texts = [Example("", "x" * 63, ends=False), Example("", "x" * 64, ends=False)]
            return [EvaluationSet("texts", texts, None)]  # a token of its own begins each

    assert scores_of(make(), Whole())["test/texts/too_long"] == 1


def test_sampled_answers_differ_and_can_be_repeated() -> None:
    class Sampled(Sums):
        def evaluation_sets(self) -> Sequence[EvaluationSet]:
            generation = {"do_sample": True, "temperature": 5.0}
            return [
                EvaluationSet("sums", SUMS[:1] * 6, ExactMatch, 8, generation=generation),
            ]

    def said() -> list[str]:
        batches = trainer().predict(make(), datamodule=Sampled(evaluation_batch_size=2))
        return [answer for batch in batches or [] for answer in batch]

    first = said()
    assert said() == first
    assert len(set(first)) > 1


def test_a_control_that_knows_the_truth_is_asked_with_the_examples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told(model: Any, examples: Any, prompts: Sequence[str], kind: EvaluationSet) -> list[str]:
        assert list(prompts) == [e.prompt for e in examples]
        return [e.target if int(e.target) % 2 else "" for e in examples]

    monkeypatch.setattr(ComposedModel, "answer_examples", told, raising=False)
    assert scores_of(make(), Sums())["test/sums/accuracy"] == pytest.approx(0.5)


def test_another_way_to_ask_is_used_and_sets_without_it_left_out() -> None:
    module = make(ask_with="words")
    scores = scores_of(module, Sums(asked=ODD))
    asked = [Example(e.meta["prompt/words"], e.target) for e in ODD]
    nats, tokens, _ = by_hand(module.language_model, asked)
    assert scores["test/sums/loss_nats"] == pytest.approx(nats / tokens, rel=1e-4)
    assert not any(name.startswith("test/texts") for name in scores)  # its first one has no words


def test_predictions_are_the_greedy_answers_in_order() -> None:
    module, task = make(), Sums(evaluation_batch_size=4)
    batches = trainer().predict(module, datamodule=task)
    assert batches is not None
    sums = [answer for batch in batches[0] for answer in batch]
    wanted = module.language_model.generate_text(
        [e.prompt for e in SUMS], max_new_tokens=3, do_sample=False
    )
    assert sums == wanted


def test_predictions_leave_out_what_cannot_be_asked(tmp_path: Path) -> None:
    module, task = make(ask_with="words"), Sums(asked=ODD, evaluation_batch_size=2)
    trainer(callbacks=[WriteAnswers(str(tmp_path))]).predict(module, datamodule=task)
    said = map(json.loads, (tmp_path / "predictions.jsonl").read_text().splitlines())
    found = [(entry["set"], entry["prompt"], entry["target"]) for entry in said]
    assert found == [("sums", e.meta["prompt/words"], e.target) for e in ODD]


# ------------------------------------------------------------------ training and checkpoints


def test_a_fit_changes_what_is_trained_and_nothing_else() -> None:
    module = make()
    run = trainer(max_steps=3, limit_val_batches=0, callbacks=[NothingFrozenMoved()])
    module.configure_model()
    names = {name for name, _ in module.language_model.trainable_parameters()}
    before = {name: p.clone() for name, p in module.language_model.named_parameters()}  # type: ignore[attr-defined]
    run.fit(module, datamodule=Sums())
    after = dict(module.language_model.named_parameters())  # type: ignore[attr-defined]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert moved <= names
    assert module.num_trainable == sum(before[name].numel() for name in names)


@pytest.mark.parametrize("composition", [Single(train=True), CrossAttention(every=2)], ids=repr)
def test_what_learns_is_in_training_mode_and_what_is_frozen_is_not(
    composition: Composition,
) -> None:
    """A loaded model is in eval mode, and Lightning leaves it there: dropout would never act."""
    module, seen = make(composition), {}

    class Modes(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            seen["learns"] = {
                m.training
                for m in pl_module.model.modules()
                if any(p.requires_grad for p in m.parameters(recurse=False))
            }
            frozen = pl_module.model.frozen_backbones
            seen["frozen"] = {m.training for b in frozen for m in b.model.modules()}

    task = Sums(validation_examples=2)
    fitting = trainer(max_steps=1, callbacks=[Modes()])
    fitting.validate(module, datamodule=task, verbose=False)
    module.eval()
    fitting.fit(module, datamodule=task)
    assert seen["learns"] == {True}
    assert seen["frozen"] <= {False}


def test_a_batch_in_which_no_state_is_visible_yet_teaches_nothing() -> None:
    class Aligned(TinySource):
        def load(self) -> Backbone:
            tokenizer = text_tokenizer("byte_bpe" if self.seed else "characters")
            return tiny_backbone(
                vocab=len(tokenizer), seed=self.seed, tokenizer=tokenizer, name=self.path
            )

    module = CalmModule(Aligned(0), CrossAttention(every=2), [Aligned(1)], warmup_steps=0)
    word = [Example("a", "bcde", ends=False)]  # no continuation is ruled out
    task = Sums(batch_size=1)
    task.train_examples = lambda: word  # type: ignore[method-assign]
    module.configure_model()
    before = [p.detach().clone() for _, p in module.language_model.trainable_parameters()]
    trainer(max_steps=2, limit_val_batches=0).fit(module, datamodule=task)
    after = [p for _, p in module.language_model.trainable_parameters()]
    moved = [float((a - b).detach().abs().max()) for a, b in zip(after, before, strict=True)]
    assert max(moved) < 1e-2  # weight decay alone


def test_a_frozen_weight_that_moved_is_noticed() -> None:
    class Meddler(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            weights = pl_module.language_model.frozen_backbones[1].model.parameters()
            next(weights).data[0, 0] += 1e-7

    run = trainer(max_steps=1, limit_val_batches=0, callbacks=[NothingFrozenMoved(), Meddler()])
    with pytest.raises(RuntimeError, match="frozen backbone's weights changed"):
        run.fit(make(), datamodule=Sums())


# ------------------------------------------------------------------ arithmetic


def fitted_and_counted(flops: float | None = None, **options: Any) -> tuple[CalmModule, CountWork]:
    torch.manual_seed(0)
    module, work = make(CrossAttention(every=2, state_noise=0.5)), CountWork(flops)
    callbacks = [work] if options.pop("counting", True) else []
    trainer(limit_val_batches=0, callbacks=callbacks, **options).fit(module, datamodule=Sums())
    return module, work


def test_counting_changes_nothing() -> None:
    (with_it, _), (without, _) = (
        fitted_and_counted(max_steps=3, counting=counting) for counting in (True, False)
    )
    weights = dict(without.language_model.trainable_parameters())
    for name, weight in with_it.language_model.trainable_parameters():
        assert torch.equal(weight, weights[name])


def test_as_much_arithmetic_is_as_many_steps_however_they_are_cut() -> None:
    _, work = fitted_and_counted(max_steps=1)
    module, again = fitted_and_counted(7.2 * work.of_a_step, max_steps=1000)
    assert again.of_a_step == work.of_a_step > 0
    assert module.trainer.global_step == 7
    assert module.steps == 7  # the learning rate ends with the run
    module, doubled = fitted_and_counted(
        8 * work.of_a_step, max_steps=1000, accumulate_grad_batches=2
    )
    assert doubled.of_a_step == 2 * work.of_a_step
    assert module.trainer.global_step == 4


def test_a_checkpoint_must_have_every_trained_weight_and_no_other() -> None:
    module = make()
    module.configure_model()
    state = {
        f"model.{n}": p.detach().clone() for n, p in module.language_model.trainable_parameters()
    }
    module.load_state_dict(state)
    first = next(iter(state))
    with pytest.raises(CalmError, match="1 trained weights are missing"):
        module.load_state_dict({n: t for n, t in state.items() if n != first})
    with pytest.raises(CalmError, match="1 are unknown to the model"):
        module.load_state_dict({**state, "model.nothing": torch.zeros(1)})
    with pytest.raises(CalmError, match="has shape"):
        module.load_state_dict({**state, first: torch.zeros(1)})


def test_the_answers_are_moved_nowhere_and_the_inputs_to_the_device() -> None:
    module = make()
    module.configure_model()
    batch = module.language_model.encode(["1+1="], ["2"])
    from calm_lightning.collate import Batch

    moved = module.transfer_batch_to_device(Batch(SUMS[:1], batch), torch.device("meta"), 0)
    assert all(tensor.device.type == "meta" for tensor in moved.inputs.values())
    assert module.transfer_batch_to_device(SUMS, torch.device("meta"), 0) is SUMS
