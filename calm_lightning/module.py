"""The LightningModule: trains what is trainable and scores what the task asks; it knows neither."""

import math
import random
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import override

from calm_lightning.backbone import Backbone, BackboneSource
from calm_lightning.checkpoint import (
    check_same,
    check_same_composition,
    described,
    load_trained,
    references_of,
    start_from,
)
from calm_lightning.collate import IGNORED, Batch, Collator
from calm_lightning.compiling import CompiledLayers
from calm_lightning.composed import ComposedModel
from calm_lightning.composed.kept import Kept
from calm_lightning.contracts import (
    STAND_IN,
    CalmError,
    Composition,
    EvaluationSet,
    Example,
    LanguageModel,
    Question,
    Scorer,
)
from calm_lightning.language_model import TextModel
from calm_lightning.packing import check_keeps_apart
from calm_lightning.sharding import keep_in_step, shard, whole_tensor
from calm_lightning.state_cache import StateCache

Schedule = Literal["cosine", "linear", "constant"]

_UNCHANGED = "The weights were not changed by this step."


def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
    """AdamW with the settings that served small compositions."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)


class TextLoss(Metric):
    """Cross-entropy of targets: nats per token, and nats per character for any two tokenizers."""

    full_state_update = False
    nats: Tensor
    tokens: Tensor
    characters: Tensor
    too_long: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("nats", "tokens", "characters", "too_long"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, mean_nats: Tensor, tokens: int, characters: int, too_long: int = 0) -> None:
        self.nats += mean_nats.double() * tokens
        self.tokens += tokens
        self.characters += characters
        self.too_long += too_long

    @override
    def compute(self) -> dict[str, Tensor]:
        losses = {
            "loss_nats": self.nats / self.tokens,
            "loss_nats_per_character": self.nats / self.characters,
        }
        return losses | ({"too_long": self.too_long} if self.too_long else {})


class CalmModule(L.LightningModule):
    """Frozen backbones, what joins them, and how it is trained.

    Args:
        anchor: The general model.
        composition: What joins it with the augmenting models.
        augmenting: The specialised models.
        optimizer: Given the trainable weights.
        warmup_steps: Steps over which the learning rate rises from zero.
        schedule: How it falls afterwards, over the rest of the run.
        final_share: Share of the learning rate that is left at the end of the schedule.
        ask_with: Name of another way to ask, where the examples have one
            (`Example.meta["prompt/<name>"]`); sets without it are not evaluated.
        start_from: Folder of a saved composition to begin with. If it joins fewer models than this
            run, only the bridges of the further augmenting models are trained.
        recompute: Keep few activations of the anchor in training and compute them again for the
            gradient: much less memory, for another pass through its upper layers.
        compile: Let torch compile the layers of all models for training: faster steps and less
            memory, after some ten seconds in which that is done. Losses are the same but for
            rounding.
        cache_states: Keep what the frozen models make of each training text on disk, and do not run
            them where it is known: in the second epoch, or in another run. Null: compute it always.
        pack: Longest row, in tokens, into which short training examples are put side by side; each
            reads nothing of the others. Null: each has a row of its own.
        disturb: A control of evaluations, for compositions that read augmenting models (`zero`:
            states of zeros; `shuffle`: each question reads the states of another): what of the
            score is owed to them? Training is not disturbed.

    Raises:
        CalmError: If a setting is out of range.
    """

    def __init__(
        self,
        anchor: BackboneSource,
        composition: Composition,
        augmenting: Sequence[BackboneSource] = (),
        optimizer: OptimizerCallable = default_optimizer,
        warmup_steps: int = 100,
        schedule: Schedule = "cosine",
        final_share: float = 0.05,
        ask_with: str | None = None,
        start_from: str | None = None,
        disturb: Literal["zero", "shuffle"] | None = None,
        recompute: bool = False,
        cache_states: StateCache | None = None,
        pack: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise CalmError(f"warmup_steps={warmup_steps} must not be negative.")
        if not 0 <= final_share <= 1:
            raise CalmError(f"final_share={final_share} is a share between 0 and 1.")
        if pack is not None and pack < 1:
            raise CalmError(f"model.pack={pack}: a row holds at least one token.")
        self.anchor_source = anchor
        self.augmenting_sources = list(augmenting)
        self.composition = composition
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.schedule: Schedule = schedule
        self.final_share = final_share
        self.ask_with = ask_with
        self.start_from = start_from
        self.disturb = disturb
        self.recompute = recompute
        self.compile_layers = compile  # nn.Module has a method of the other name
        self.cache_states = cache_states
        self.pack = pack
        self.steps = math.inf  # of the run, once it is known
        self.seed = torch.initial_seed()  # of all that is drawn: `seed_everything`, where it is set
        self.strict_loading = False  # checkpoints hold the trained part; checked in load_state_dict
        self.model: LanguageModel | None = None
        self._references: list[dict[str, Any]] | None = None
        self._kept: Kept | None = None
        self._compiled: CompiledLayers | None = None
        self.scorers = nn.ModuleDict()
        self.losses = nn.ModuleDict()
        self.evaluation_sets: list[EvaluationSet] = []
        # Of the last evaluation: the score of every question, where the scorer gives one, and what
        # answering took in this process.
        self.outcomes: dict[str, list[float]] = {}
        self._each: dict[str, dict[int, float]] = {}
        self.answering_seconds, self.answered_characters = 0.0, 0
        self._answered_batches = 0

    # ------------------------------------------------------------------ building

    @override
    def configure_model(self) -> None:
        if self.model is None:
            anchor = self.anchor_source.load()
            augmenting = [source.load() for source in self.augmenting_sources]
            self.model = self.composition.compose(anchor, augmenting)
            self._take_options()
            if self.start_from is not None:
                if not isinstance(self.model, TextModel):
                    raise CalmError(f"start_from: a {type(self.model).__name__} cannot be loaded.")
                start_from(self.model, Path(self.start_from))
            if self._trainer and self.trainer.world_size > 1:
                keep_in_step(self.model)
            if self.device_mesh is not None:  # of ModelParallelStrategy
                if self.cache_states is not None:
                    raise CalmError(
                        "cache_states: processes that share out weights run the same modules at "
                        "the same time, and each would find other states in the cache. Leave "
                        "model.cache_states out, or take trainer.strategy=ddp."
                    )
                shard(self.model, self.device_mesh)
        task = getattr(self._trainer, "datamodule", None) if self._trainer else None
        if task is None:
            return
        encode: Callable[..., dict[str, Tensor]] = self.model.encode
        if self.pack is not None:
            assert isinstance(self.model, TextModel), "others do not pack"
            encode = partial(self.model.encode_packed, length=self.pack)
        task.collate = Collator(encode)
        if not self.evaluation_sets:
            self.evaluation_sets = list(task.evaluation_sets())
            check_names([each.name for each in self.evaluation_sets])
            for each in self.evaluation_sets:
                self.losses[_key(each.name)] = TextLoss().to(self.device)
                if each.scorer is not None:
                    self.scorers[_key(each.name)] = each.scorer().to(self.device)

    def _take_options(self) -> None:
        """Prepare the model for what it is asked to do in training.

        Raises:
            CalmError: If it cannot.
        """
        model = self.model
        if self.cache_states is not None and not isinstance(model, ComposedModel):
            raise CalmError(
                f"cache_states: {self.composition!r} reads no states of augmenting models that "
                "could be kept. Leave model.cache_states out."
            )
        if self.recompute:
            if not isinstance(model, ComposedModel):
                raise CalmError(
                    f"recompute: {self.composition!r} does not train through frozen layers of "
                    "ours. Leave model.recompute out."
                )
            model.recompute = True
        if self.compile_layers:
            run = model.trained_through if isinstance(model, TextModel) else ()
            if not run:
                raise CalmError(
                    f"compile: the layers that {self.composition!r} trains through are not known. "
                    "Leave model.compile out."
                )
            self._compiled = CompiledLayers(run)
        if self.pack is not None:
            self._check_packs()

    def _check_packs(self) -> None:
        if self.cache_states is not None:
            raise CalmError(
                "model.pack: states are kept text by text, so rows of several texts are never "
                "found again. Leave out model.pack or model.cache_states."
            )
        if not (isinstance(self.model, TextModel) and self.model.packs):
            raise CalmError(
                f"model.pack: {self.composition!r} reads every example in a row of its own. Leave "
                "model.pack out."
            )
        backbones: Sequence[Backbone] = [self.model.anchor_backbone]
        if isinstance(self.model, ComposedModel):
            backbones = self.model.backbones
        for backbone in backbones:
            check_keeps_apart(backbone)

    def scorer(self, name: str) -> Scorer | None:
        """The scorer of an evaluation set; None if only its loss is measured."""
        return cast(Scorer, self.scorers[_key(name)]) if _key(name) in self.scorers else None

    @property
    def language_model(self) -> LanguageModel:
        """The composed model, once it is built."""
        assert self.model is not None, "configure_model builds the model"
        return self.model

    @property
    def num_trainable(self) -> int:
        """Number of trained weights."""
        return sum(p.numel() for _, p in self.language_model.trainable_parameters())

    @override
    def configure_optimizers(self) -> Any:
        weights = [p for _, p in self.language_model.trainable_parameters()]
        if not weights:
            raise CalmError(
                f"{self.composition!r} trains nothing, so there is nothing to fit. Use "
                "`calm test`; in a comparison, give the row `train: false`."
            )
        optimizer = self.optimizer(weights)
        self.steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_share(
                step, self.schedule, self.warmup_steps, self.steps, self.final_share
            ),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # ------------------------------------------------------------------ training

    @override
    def on_train_start(self) -> None:
        # Lightning leaves every module in the mode it is in, and loaded models are in eval mode.
        # What is frozen stays there (`train` of our models sees to it); what learns must not.
        self.train()
        if self.cache_states is not None:
            # Not before: the arithmetic of a run is counted (`CountWork`) as if nothing were known.
            precision = f"{self.trainer.precision}, {torch.get_float32_matmul_precision()}"
            assert isinstance(self.model, ComposedModel), "configure_model refuses others"
            self._kept = self.model.keep_states(self.cache_states, precision)

    @override
    def on_train_epoch_start(self) -> None:
        if self._kept is not None:
            self._kept.flush()
            self.trainer.strategy.barrier()
            self._kept.refresh()  # what the other processes computed

    @override
    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        if isinstance(batch, Batch):
            inputs = {name: t.to(device, non_blocking=True) for name, t in batch.inputs.items()}
            return Batch(batch.examples, inputs)
        return batch  # examples are text

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        with self._compiled.at_work() if self._compiled else nullcontext():
            here: Tensor = self.language_model(**batch.inputs).loss
        loss, mean = self._of_all_processes(here, batch)
        if not torch.isfinite(mean):
            raise CalmError(self._stopped(f"the loss is {mean.item()}. {_UNCHANGED}"))
        self.log("train/loss_nats", mean, prog_bar=True, batch_size=len(batch))
        if not loss.requires_grad:
            # Nothing that is trained had a part in it: of a text that another tokenizer reads,
            # nothing may be visible before the last target.
            for _, weight in self.language_model.trainable_parameters():
                loss = loss + 0.0 * weight.sum()
        return {"loss": loss, "nats": here.detach()}

    def _of_all_processes(self, loss: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """A process's share of the loss over the tokens of all, and that loss.

        Processes average their gradients, whatever their rows hold. So that the step is the one
        that a single process would make with all rows, each counts by the tokens that it learns.
        """
        processes = self.trainer.world_size
        if processes == 1:
            return loss, loss.detach()
        tokens = (batch.inputs["labels"][:, 1:] != IGNORED).sum().double()
        sums = torch.stack([loss.detach().double() * tokens, tokens])
        nats, all_tokens = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return loss * (processes * tokens / all_tokens).to(loss.dtype), nats / all_tokens

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return  # in 16-mixed the scaler skips such steps by itself
        gradients = [p.grad for _, p in self.language_model.trainable_parameters()]
        total = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
        norm = whole_tensor(total)
        if not torch.isfinite(norm):  # before the step, so that no weight is spoilt
            raise CalmError(self._stopped(f"the gradient's norm is {norm:g}. {_UNCHANGED}"))
        self.log("train/gradient_norm", norm)

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        task = self.trainer.datamodule  # type: ignore[attr-defined]
        seed_batch(self.seed, task.consumed_batches, self.global_rank)
        # Not at the batch's end: checkpoints are written before a module's own hook there.
        task.consumed_batches += 1

    @override
    def on_train_end(self) -> None:
        self._refuse_spoilt()
        if self._kept is not None:
            cast(ComposedModel, self.model).forget_states()
            self._kept = None

    def _refuse_spoilt(self) -> None:
        """Stop before weights that are no numbers are written in place of good ones."""
        for name, weight in self.language_model.trainable_parameters():
            if not whole_tensor(torch.isfinite(weight).all()):
                raise CalmError(self._stopped(f"the weights of {name} are not finite any more."))

    def _stopped(self, why: str) -> str:
        callback = self.trainer.checkpoint_callback
        paths = [getattr(callback, f"{name}_model_path", "") for name in ("last", "best")]
        existing = [path for path in paths if path and Path(path).exists()]
        kept = (
            f"The last good checkpoint is {existing[0]}."
            if existing
            else "No checkpoint had been written yet."
        )
        return (
            f"Training stopped at step {self.global_step}: {why} {kept} A lower learning rate, a "
            "longer warm-up (model.warmup_steps) or gradient clipping (trainer.gradient_clip_val) "
            "usually helps."
        )

    # ------------------------------------------------------------------ evaluation

    @override
    def validation_step(
        self, batch: Sequence[Question], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluate(batch, self.evaluation_sets[dataloader_idx])

    @override
    def test_step(self, batch: Sequence[Question], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, self.evaluation_sets[dataloader_idx])

    @override
    def predict_step(
        self, batch: Sequence[Question], batch_idx: int, dataloader_idx: int = 0
    ) -> list[str]:
        kind = self.evaluation_sets[dataloader_idx]
        if not self._can_ask(kind.examples):
            return []
        return self.answer([example for _, example in _asked(batch)], kind)

    def answer(self, examples: Sequence[Example], kind: EvaluationSet) -> list[str]:
        """What the model says to each example; nothing to one that does not fit its context."""
        return self._answer(examples, kind, self._with_room(examples, kind))

    def _answer(
        self, examples: Sequence[Example], kind: EvaluationSet, asked: Sequence[int]
    ) -> list[str]:
        answers = [""] * len(examples)
        if not asked:
            self._keep_others_company(max_new_tokens=1)
            return answers
        started = time.perf_counter()
        with self._drawing(kind), self._disturbed():
            said = self._say([examples[i] for i in asked], kind)
        self.answering_seconds += time.perf_counter() - started
        self.answered_characters += sum(map(len, said))
        self._answered_batches += 1
        for number, answer in zip(asked, said, strict=True):
            answers[number] = answer
        return answers

    def _say(self, examples: Sequence[Example], kind: EvaluationSet) -> list[str]:
        model, prompts = self.language_model, [self.prompt_of(e) for e in examples]
        # An oracle is a control that looks at the truth, so it is asked with the examples.
        if (answer_examples := getattr(model, "answer_examples", None)) is not None:
            told: list[str] = answer_examples(examples, prompts, kind)
            return told
        options = {"do_sample": False, "num_beams": 1, **kind.generation}
        return model.generate_text(
            prompts, stop=kind.stop, max_new_tokens=kind.max_new_tokens, **options
        )

    def _drawing(self, kind: EvaluationSet) -> AbstractContextManager[Any]:
        """Random numbers of this batch of answers, where answers are drawn."""
        if not kind.generation.get("do_sample"):
            return nullcontext()
        name = f"{self.seed}/{self.trainer.global_rank}/{kind.name}/{self._answered_batches}"
        return _seeded(name, self.device)

    def _with_room(self, examples: Sequence[Example], kind: EvaluationSet) -> list[int]:
        """Numbers of the examples that fit the model's context, with room for an answer."""
        model = self.language_model
        if not isinstance(model, TextModel):
            return list(range(len(examples)))
        prompts = [self.prompt_of(e) for e in examples]
        return _numbers(model.fits(prompts, new_tokens=kind.max_new_tokens))

    def _with_targets(self, examples: Sequence[Example]) -> list[int]:
        """Numbers of the examples that fit the model's context with their targets."""
        model = self.language_model
        if not isinstance(model, TextModel):
            return list(range(len(examples)))
        prompts, targets = [self.prompt_of(e) for e in examples], [e.target for e in examples]
        return _numbers(model.fits(prompts, targets, ends=[e.ends for e in examples]))

    def _evaluate(self, batch: Sequence[Question], kind: EvaluationSet) -> None:
        if not self._can_ask(kind.examples):
            return
        questions = _asked(batch)
        examples = [example for _, example in questions]
        losses = cast(TextLoss, self.losses[_key(kind.name)])
        fitting = self._with_targets(examples)
        if (scorer := self.scorer(kind.name)) is not None:
            asked = self._with_room(examples, kind)
            fitting = sorted({*fitting} & {*asked})
            answers = self._answer(examples, kind, asked)
            if examples:
                scorer.update(answers, examples)
            if examples and (each := scorer.each(answers, examples)) is not None:
                numbers = (number for number, _ in questions)
                self._each.setdefault(kind.name, {}).update(zip(numbers, each, strict=True))
        too_long = len(examples) - len(fitting)
        if not fitting:
            self._keep_others_company()
            losses.update(torch.zeros((), device=self.device), 0, 0, too_long)
            return
        examples = [examples[i] for i in fitting]
        inputs = self.language_model.encode(
            [self.prompt_of(e) for e in examples],
            [e.target for e in examples],
            ends=[e.ends for e in examples],
        )
        inputs = {name: t.to(self.device) for name, t in inputs.items()}
        tokens = int((inputs["labels"][:, 1:] != IGNORED).sum())
        with self._disturbed():
            loss = self.language_model(**inputs).loss
        losses.update(loss, tokens, sum(len(e.target) for e in examples), too_long)

    def _keep_others_company(self, **generation: Any) -> None:
        """Compute something, for other processes that cannot go on by themselves.

        Where weights are shared out, a process with nothing to ask has to run what the others run:
        to generate, if it is said how, or to read.
        """
        if self.device_mesh is None:
            return
        model = cast(TextModel, self.language_model)
        ids = torch.full((1, 2), model.pad_id, device=self.device)
        if generation:
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            model.generate(**inputs, do_sample=False, pad_token_id=model.pad_id, **generation)
        else:
            model(input_ids=ids, labels=ids)

    def _disturbed(self) -> AbstractContextManager[Any]:
        if self.disturb is None:
            return nullcontext()
        disturbed = getattr(self.language_model, "disturbed", None)
        if disturbed is None:
            raise CalmError(
                f"disturb={self.disturb!r}: {self.composition!r} reads no states of augmenting "
                "models that could be disturbed. Leave model.disturb out."
            )
        context: AbstractContextManager[Any] = disturbed(self.disturb)
        return context

    def signatures(self) -> dict[str, str]:
        """How the scores of all evaluation sets are counted, where their libraries say it."""
        found: dict[str, str] = {}
        for each in self.evaluation_sets:
            if (scorer := self.scorer(each.name)) is not None:
                found |= scorer.signatures()
        return found

    @override
    def on_validation_epoch_start(self) -> None:
        self._forget_answers()

    @override
    def on_test_epoch_start(self) -> None:
        self._forget_answers()

    def _forget_answers(self) -> None:
        self.outcomes, self._each = {}, {}
        self.answering_seconds, self.answered_characters = 0.0, 0
        self._answered_batches = 0

    @override
    def on_validation_epoch_end(self) -> None:
        self._report("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        for kind in self.evaluation_sets:
            name = kind.name
            scores: dict[str, Tensor] = {}
            losses = cast(TextLoss, self.losses[_key(name)])
            if losses.update_count == 0:  # nor in any other process
                continue
            self._gather_outcomes(kind)
            for metric in cast(list[Metric | None], [self.scorer(name), losses]):
                if metric is None:
                    continue
                scores |= metric.compute()
                with torch.inference_mode(False):  # or a fit could not change the fresh state
                    metric.reset()
            self._refuse_if_nothing_fits(name, scores)
            self.log_dict({f"{stage}/{name}/{key}": value for key, value in scores.items()})

    def _gather_outcomes(self, kind: EvaluationSet) -> None:
        """The score of each question, by any process, in the order of the set.

        Several answers to one question are one outcome, their mean: taken for several questions
        they would make a comparison look surer than it is.
        """
        scored = sorted(self._each.get(kind.name, {}).items())
        if self.trainer.world_size > 1:
            own = torch.tensor(scored, dtype=torch.float64, device=self.device).reshape(-1, 2)
            count = torch.tensor(len(own), device=self.device)
            counts = cast(Tensor, self.all_gather(count)).tolist()
            if not any(counts):
                return
            padded = own.new_zeros(max(counts), 2)
            padded[: len(own)] = own
            shares = cast(Tensor, self.all_gather(padded)).tolist()
            scored = sorted(
                pair for share, n in zip(shares, counts, strict=True) for pair in share[:n]
            )
        of_question: dict[tuple[str, str], list[float]] = {}
        for number, score in scored:
            example = kind.examples[int(number)]
            of_question.setdefault((example.prompt, example.target), []).append(score)
        if scored:
            self.outcomes[kind.name] = [fmean(scores) for scores in of_question.values()]

    def _refuse_if_nothing_fits(self, name: str, scores: Mapping[str, Tensor]) -> None:
        if "too_long" in scores and torch.isnan(scores["loss_nats"]):
            model = self.language_model
            assert isinstance(model, TextModel), "only these say what fits"
            limited = [reader for reader in model.readers if reader.context is not None]
            least = min(limited, key=lambda reader: reader.context or 0, default=None)
            holds = f" (the context of {least.name!r} holds {least.context})" if least else ""
            raise CalmError(
                f"None of the {scores['too_long']:.0f} questions of {name!r} fits every model with "
                f"room for an answer{holds}. Shorten the prompts, or let answers be shorter (the "
                "task's max_new_tokens)."
            )

    def prompt_of(self, example: Example) -> str:
        """What the model is asked for an example."""
        if self.ask_with is None:
            return example.prompt
        return str(example.meta[f"prompt/{self.ask_with}"])

    def _can_ask(self, examples: Sequence[Example]) -> bool:
        return self.ask_with is None or f"prompt/{self.ask_with}" in examples[0].meta

    # ------------------------------------------------------------------ checkpoints

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What is trained; a strategy that gathers it from processes must not gather the rest."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        state = super().state_dict(*args, **kwargs)
        return {name: state[name] for name in state if name in trained}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._refuse_spoilt()
        if self._kept is not None:
            # A run that goes on from here has to find what the run never stopped would find.
            self._kept.flush()
        if self._references is None:  # hashing the weights takes its time; they do not move
            self._references = references_of(self.language_model)
        checkpoint["backbones"] = self._references
        checkpoint["composition"] = described(self.composition)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        model, references = self.language_model, checkpoint.get("backbones", [])
        for backbone, reference in zip(model.frozen_backbones, references, strict=False):
            check_same(backbone, reference, "The checkpoint")
        if (saved := checkpoint.get("composition")) is not None:
            check_same_composition(model, saved, len(references) - 1, "The checkpoint")

    @override
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        load_trained(self, dict(state_dict), "The checkpoint")
        return nn.modules.module._IncompatibleKeys([], [])


def learning_rate_share(
    step: int, schedule: Schedule, warmup_steps: int, steps: int | float, final_share: float
) -> float:
    """The factor on the learning rate at a step: a rise, then the schedule's fall.

    Args:
        step: Counted from 0.
        schedule: `cosine`, `linear` or `constant`.
        warmup_steps: Length of the rise.
        steps: Length of the run; infinite means no fall.
        final_share: What is left at the end.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant" or not math.isfinite(steps):
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    fall = done if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * done))
    return 1 - (1 - final_share) * fall


def check_names(names: Sequence[str]) -> None:
    """Refuse names of evaluation sets that a table or a log could not tell apart.

    Raises:
        CalmError: If two are the same, or one is empty or holds a slash.
    """
    for name in names:
        if not name or "/" in name or names.count(name) > 1:
            raise CalmError(
                f"Evaluation sets need different names without a slash; there is {name!r} among "
                f"{list(names)}."
            )


def _key(name: str) -> str:
    """An evaluation set's name as torch takes it for a module: any name, no dot."""
    return f"set {name.replace('.', ' ')}"


def _asked(batch: Sequence[Question]) -> list[Question]:
    """What of a batch is really asked."""
    return [question for question in batch if question[1] is not STAND_IN]


def _numbers(flags: Sequence[bool]) -> list[int]:
    return [number for number, flag in enumerate(flags) if flag]


@contextmanager
def _seeded(name: str, device: torch.device) -> Iterator[None]:
    """Random numbers from a name, so that sampling can be repeated."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(zlib.crc32(name.encode()))
        yield


def seed_batch(seed: int, batch: int, rank: int) -> None:
    """Set every generator for one training batch.

    What is drawn for a batch (dropout, noise) then depends on nothing that came before, so a run
    that goes on from a checkpoint draws what the run never stopped would have drawn.

    Args:
        seed: Of the run.
        batch: Number of the batch in the run.
        rank: The process.
    """
    drawn = int(np.random.SeedSequence([seed, batch, rank]).generate_state(1)[0])
    random.seed(drawn)
    np.random.seed(drawn)
    torch.manual_seed(drawn)
