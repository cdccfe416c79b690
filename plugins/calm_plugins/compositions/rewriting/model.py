"""A language model that lets a frozen one answer several times, and rewrites its answers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.contracts import CalmError, Composition, EvaluationSet, Example
from calm_lightning.language_model import PlainModel, TextModel
from calm_plugins.compositions.rewriting.corrector import Corrector, cut, log_likelihoods
from calm_plugins.compositions.rewriting.pool import Pool
from calm_plugins.compositions.rewriting.store import Candidates

Reads = Literal["candidates", "nothing", "shuffled"]
Answer = Literal["rewrite", "best", "greedy", "oracle"]


class RewritingModel(nn.Module, TextModel):
    """The corrector over the candidates of a frozen model.

    Batches, and what `generate` returns, are in the corrector's tokens.

    Args:
        anchor: The frozen model that writes the candidates.
        corrector: The trained model.
        frozen: The models that the corrector was made of.
        composition: What built it.
        pool: Makes the pool of candidates of a large model.
        separator: Between prompt and candidates.
        reads: See `Rewriting`.
        answer: See `Rewriting`.
        tested_on: Who writes the candidates outside of training; None: the anchor.

    Raises:
        CalmError: If the corrector's tokenizer cannot write the separator.
    """

    def __init__(
        self,
        anchor: Backbone,
        corrector: Corrector,
        frozen: Sequence[Backbone],
        composition: Composition,
        pool: Callable[[PlainModel], Pool],
        separator: str,
        reads: Reads,
        answer: Answer,
        tested_on: Backbone | None,
    ) -> None:
        super().__init__()
        self.anchor = PlainModel(anchor, save=lambda folder: None)
        self.corrector = corrector
        self.tested_on = None if tested_on is None else PlainModel(tested_on, lambda folder: None)
        self.composition = composition
        self.separator = separator
        self.reads = reads
        self.answer = answer
        self._frozen = tuple(frozen)
        self._pool = pool
        self._pools = {"training": self._pool(self.anchor)}
        self._pools["testing"] = (
            self._pools["training"] if self.tested_on is None else self._pool(self.tested_on)
        )
        self._switched_off = False
        self.last_candidates: list[Candidates] = []
        """What was read for the last texts."""
        _check_separator(corrector, separator)
        self._of_corrector = {name for name, _ in self.trainable_parameters()}
        if answer in ("greedy", "oracle"):
            corrector.requires_grad_(False)  # it has no part in the answer, so nothing is trained

    # ------------------------------------------------------------------ candidates

    @property
    def pool(self) -> Pool:
        """Where candidates come from now: in training from the anchor."""
        return self._pools["training" if self.training else "testing"]

    def swap(self, model: Backbone) -> None:
        """Let another large model write the candidates from now on, outside of training.

        Only text passes between the two models, so nothing need be trained again.
        """
        device = next(self.anchor.parameters()).device
        self.tested_on = PlainModel(model, lambda folder: None).to(device)
        self._pools["testing"] = self._pool(self.tested_on)

    def fill(self, prompts: Sequence[str]) -> None:
        """Draw the candidates of these prompts, as far as they are not there.

        Raises:
            CalmError: If they may not be drawn, or a prompt does not fit the model.
        """
        self.pool.of(prompts)

    def sources(self, prompts: Sequence[str]) -> list[str]:
        """What the corrector reads for each prompt.

        Raises:
            CalmError: If candidates are missing and may not be drawn.
        """
        self.last_candidates = self._read(prompts)
        return self._joined(prompts, self.last_candidates)

    def _read(self, prompts: Sequence[str]) -> list[Candidates]:
        if self.reads == "nothing":
            return [()] * len(prompts)
        return (self.pool.of if self.reads == "candidates" else self.pool.of_others)(prompts)

    def _joined(self, prompts: Sequence[str], pools: Sequence[Candidates]) -> list[str]:
        mark = self.separator
        return [mark.join([p, *c]) + mark for p, c in zip(prompts, pools, strict=True)]

    # ------------------------------------------------------------------ the contract

    @property
    @override
    def anchor_backbone(self) -> Backbone:
        return self.anchor.backbone

    @property
    @override
    def frozen_backbones(self) -> tuple[Backbone, ...]:
        return (self.anchor.backbone, *self._frozen)

    @property
    @override
    def trained_through(self) -> tuple[Backbone, ...]:
        return (self.corrector.backbone,) if isinstance(self.corrector, PlainModel) else ()

    @property
    @override
    def readers(self) -> tuple[Backbone, ...]:
        """The models whose contexts a text must fit, each in its own tokens."""
        small = self.corrector.readers if isinstance(self.corrector, PlainModel) else ()
        return (self.anchor.backbone, *small)

    @override
    def own_state(self) -> dict[str, Tensor]:
        """The corrector's weights, also where it has no part in the answer: others learnt them."""
        return {n: p for n, p in self.named_parameters() if n in self._of_corrector}

    @override
    def fits(
        self,
        texts: Sequence[str],
        targets: Sequence[str] | None = None,
        new_tokens: int = 0,
        *,
        ends: bool | Sequence[bool] = True,
    ) -> list[bool]:
        """Which prompts the large model can be asked, and the corrector can read with their pool.

        The candidates are drawn for that, where they are not known.

        Args:
            texts: Prompts.
            targets: What follows each, if that is read too.
            new_tokens: How many tokens are to be written after each.
            ends: Whether the end-of-text token follows each target.

        Raises:
            CalmError: If candidates are missing and may not be drawn.
        """
        if self._switched_off:
            return self.anchor.fits(texts, targets, new_tokens, ends=ends)
        chooses = targets is None and self.answer != "rewrite"
        if self.reads == "nothing" and not chooses:
            asked = [True] * len(texts)
        else:
            asked = self.pool.has_room(texts)
        numbers = [number for number, has_room in enumerate(asked) if has_room]
        prompts = [texts[number] for number in numbers]
        if chooses:
            held = self._can_choose(prompts)
        else:
            sources = self._joined(prompts, self._read(prompts))
            wanted = None if targets is None else [targets[number] for number in numbers]
            flags = ends if isinstance(ends, bool) else [ends[number] for number in numbers]
            held = self.corrector.fits(sources, wanted, new_tokens, ends=flags)
        fitting = {number for number, holds in zip(numbers, held, strict=True) if holds}
        return [number in fitting for number in range(len(texts))]

    def _can_choose(self, prompts: Sequence[str]) -> list[bool]:
        """For which prompts a candidate can be chosen; for the likeliest, all have to be read."""
        if self.answer != "best":
            return [True] * len(prompts)
        sources = self._joined(prompts, self._read(prompts))
        pools = self.pool.of(prompts)
        return [
            all(self.corrector.fits([source] * len(candidates), candidates))
            for source, candidates in zip(sources, pools, strict=True)
        ]

    @override
    def encode(
        self,
        texts: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        ends: bool | Sequence[bool] = True,
    ) -> dict[str, Tensor]:
        """Prompts with their candidates, in the corrector's tokens."""
        if self._switched_off:
            return self.anchor.encode(texts, targets, ends=ends)
        sources = self.sources(texts)
        with self._told_what_does_not_fit():
            return self.corrector.encode(sources, targets, ends=ends)

    @override
    def encode_chat(self, messages: Any) -> dict[str, Tensor]:
        raise CalmError(
            "A conversation is not rewritten: a corrector learns from prompts and their answers. "
            "Ask with plain prompts."
        )

    @override
    def forward(self, **batch: Any) -> CausalLMOutputWithPast:
        return self._speaker(**batch)

    @override
    def generate(self, **batch_and_options: Any) -> Any:
        return self._speaker.generate(**batch_and_options)

    @property
    def _speaker(self) -> Corrector:
        return self.anchor if self._switched_off else self.corrector

    @override
    @torch.no_grad()
    def generate_text(
        self, prompts: Sequence[str], *, stop: Sequence[str] = (), **generation_kwargs: Any
    ) -> list[str]:
        """The answer to each prompt: the pool is drawn, or taken from the cache, and rewritten.

        Raises:
            CalmError: If the pool does not fit the corrector, or is missing and may not be drawn;
                or if the answer is that of an oracle, who is asked by `answer_examples`.
        """
        if self._switched_off:
            return self.anchor.generate_text(prompts, stop=stop, **generation_kwargs)
        streamer = generation_kwargs.pop("streamer", None)  # made for the anchor's tokens
        answers = self._answers(prompts, stop, generation_kwargs)
        if streamer is not None:
            streamer.on_finalized_text(answers[0], stream_end=True)
        return answers

    def _answers(
        self, prompts: Sequence[str], stop: Sequence[str], options: dict[str, Any]
    ) -> list[str]:
        if self.answer == "oracle":
            raise CalmError(
                "answer=oracle chooses by the truth, so it can only be asked with it: by a task, "
                "not by a prompt."
            )
        if self.answer == "greedy":
            return [cut(candidates[0], stop) for candidates in self.pool.of(prompts)]
        sources = self.sources(prompts)
        with self._told_what_does_not_fit():
            if self.answer == "rewrite":
                return self.corrector.generate_text(sources, stop=stop, **options)
            pairs = zip(sources, self.pool.of(prompts), strict=True)
            return [cut(self._best(source, candidates), stop) for source, candidates in pairs]

    def _best(self, source: str, candidates: Candidates) -> str:
        """The candidate that the corrector would rather have written than the others."""
        sources = [source] * len(candidates)
        return candidates[int(log_likelihoods(self.corrector, sources, candidates).argmax())]

    def answer_examples(
        self, examples: Sequence[Example], prompts: Sequence[str], kind: EvaluationSet
    ) -> list[str]:
        """The answers to examples of an evaluation set; an oracle looks at their truth.

        Args:
            examples: With the truth.
            prompts: How they are asked.
            kind: Says how long an answer may be, where it ends, and what counts as right.

        Raises:
            CalmError: As `generate_text`; for an oracle, if nothing says what a good answer is.
        """
        if self.answer != "oracle":
            options = {"do_sample": False, "num_beams": 1, **kind.generation}
            return self.generate_text(
                prompts, stop=kind.stop, max_new_tokens=kind.max_new_tokens, **options
            )
        pairs = zip(examples, self.pool.of(prompts), strict=True)
        return [self._truest(example, candidates, kind) for example, candidates in pairs]

    def _truest(self, example: Example, candidates: Candidates, kind: EvaluationSet) -> str:
        answers = [cut(candidate, kind.stop) for candidate in candidates]
        scorer = None if kind.scorer is None else kind.scorer()
        scores = None if scorer is None else scorer.each(answers, [example] * len(answers))
        if scorer is None or scores is None:
            raise CalmError(
                f"answer=oracle: the set {kind.name!r} has no score for a single answer, so nobody "
                "can say which candidate is best. Leave this row out."
            )
        sign = 1 if scorer.higher_is_better in (True, None) else -1
        return answers[max(range(len(answers)), key=lambda i: sign * scores[i])]

    @contextmanager
    def _told_what_does_not_fit(self) -> Iterator[None]:
        try:
            yield
        except CalmError as error:
            if self.reads == "nothing" or "context" not in str(error):
                raise
            drawing, place = self.pool.drawing, self.pool.store.place
            kept = "" if place is None else f" The candidates are kept in {place}."
            raise CalmError(
                f"The corrector cannot read a prompt with its {drawing.count} candidates of up to "
                f"{drawing.max_new_tokens} tokens. {error} Or draw fewer candidates (sampled) or "
                f"shorter ones (max_new_tokens), or take a corrector with a longer context.{kept}"
            ) from None

    @contextmanager
    @override
    def anchor_only(self) -> Iterator[None]:
        before, self._switched_off = self._switched_off, True
        try:
            yield
        finally:
            self._switched_off = before

    @override
    def save_pretrained(
        self, save_directory: str | Path, full: bool = False, **kwargs: Any
    ) -> None:
        """Write the corrector, and where the frozen models are.

        Args:
            save_directory: Where to.
            full: Write the frozen models too.
            kwargs: Refused.

        Raises:
            CalmError: If an option is unknown, or a model's weights cannot be written.
        """
        from calm_lightning.checkpoint import save, save_pretrained

        write = partial(save, self, self.composition)
        save_pretrained(self, write, save_directory, full, **kwargs)


def _check_separator(corrector: Corrector, separator: str) -> None:
    tokenizer = (
        corrector.backbone.require_tokenizer()
        if isinstance(corrector, PlainModel)
        else corrector.tokenizer
    )
    ids = tokenizer(separator, add_special_tokens=False)["input_ids"]
    written = tokenizer.decode(ids) if ids else ""
    if not ids or separator.strip().casefold() not in written.casefold():
        raise CalmError(
            f"separator={separator!r}: the corrector's tokenizer cannot write it, so it could not "
            "tell prompt and candidates apart. Choose another text that stands in neither."
        )
