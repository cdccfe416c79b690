"""Rewriting (LMCor): only text passes between the large model and the trained one.

`Small Language Models Improve Giants by Rewriting Their Outputs
<https://arxiv.org/abs/2305.13514>`_, section 3: a frozen large model, prompted with a few examples,
writes a pool of candidates, and a small model is trained to write the answer from
`prompt <sep> candidate <sep> candidate ...`: it ranks, combines and rewrites. In use another large
model can take its place, for nothing of it is looked into.

Where this differs from the paper and its released code: the words `source:` and `candidates:` are
left out, and the separator is a setting; any decoder-only or encoder-decoder model can be the
corrector (theirs is T5.1.1-base); the optimizer is that of the run (theirs is Adafactor at 1e-3);
what does not fit the corrector's context is refused in training, and in an evaluation counts as not
answered (theirs is cut off at 1,024 tokens).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import override

from calm_lightning.backbone import Backbone, BackboneSource
from calm_lightning.contracts import CalmError, Composition
from calm_plugins.compositions.rewriting.corrector import Corrector, copy_of, load_corrector
from calm_plugins.compositions.rewriting.drawing import Drawing
from calm_plugins.compositions.rewriting.model import Answer, Reads, RewritingModel
from calm_plugins.compositions.rewriting.pool import Pool


class Rewriting(Composition):
    """A small model rewrites what the anchor answers.

    Args:
        corrector: Where the trained model comes from; `weights: random` builds it from a config,
            with weights drawn by its `seed` and the run's together. Null: it is a copy of the
            first augmenting model, which itself stays frozen. Nothing else is done with augmenting
            models.
        fresh: Draw new weights for that copy.
        sampled: Candidates that are drawn at random, beside the greedy one.
        temperature: Of the draw.
        max_new_tokens: Longest candidate, in tokens of the anchor.
        few_shot: Text put before every prompt that the anchor is asked: solved examples.
        stop: Texts at which a candidate ends, itself left out.
        seed: Of the draws.
        cache: Folder in which candidates are kept, so that they are drawn once for all runs. Null
            keeps them in memory.
        live: Whether candidates that the cache lacks are drawn. If not, they are an error, which
            is told when they are first asked for: of questions that only a test asks, after the
            training, for what will be asked is not known here.
        separator: Between prompt and candidates. The corrector's tokenizer must know it.
        reads: `candidates`; or for a control `nothing` (the prompt alone), `shuffled` (the
            candidates of another question: in a batch the one before, of a batch with a single
            question that of the batch before; the very first one alone reads nothing).
        answer: `rewrite`; or for a comparison the candidate that is `best` by the corrector's
            likelihood, the `greedy` one, or by an `oracle` the one that scores best.
        tested_on: Another large model, whose candidates are read outside of training.

    Raises:
        CalmError: If a setting is out of range, or two contradict each other.
    """

    exempt = {  # noqa: RUF012
        "starts_as_anchor": "the corrector is another model than the anchor",
        "augmenting_used": "what is read is text; the rows `nothing` and `shuffled` are its test",
    }

    def __init__(
        self,
        corrector: BackboneSource | Mapping[str, Any] | None = None,
        fresh: bool = False,
        sampled: int = 4,
        temperature: float = 0.6,
        max_new_tokens: int = 64,
        few_shot: str = "",
        stop: Sequence[str] = (),
        seed: int = 0,
        cache: str | None = None,
        live: bool = True,
        separator: str = " | ",
        reads: Reads = "candidates",
        answer: Answer = "rewrite",
        tested_on: BackboneSource | Mapping[str, Any] | None = None,
    ) -> None:
        self.drawing = Drawing(sampled, temperature, max_new_tokens, few_shot, tuple(stop), seed)
        if not live and cache is None:
            raise CalmError("live=False: without a cache there is nothing to read. Name one.")
        if not separator:
            raise CalmError("separator='': something must stand between prompt and candidates.")
        if fresh and corrector is not None:
            raise CalmError("fresh draws new weights for a copy; for a corrector: weights: random.")
        self.corrector = _source(corrector)
        self.fresh = fresh
        self.sampled = sampled
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.few_shot = few_shot
        self.stop = list(stop)
        self.seed = seed
        self.cache = cache
        self.live = live
        self.separator = separator
        self.reads: Reads = reads
        self.answer: Answer = answer
        self.tested_on = _source(tested_on)
        if corrector is None and not fresh:
            same = "the corrector starts with the weights of a frozen model, and changes its copy"
            self.exempt = {**self.exempt, "frozen": same}
        if reads == "shuffled":
            other = "what an example reads depends on the others of its batch, on purpose"
            self.exempt = {**self.exempt, "text": other, "speed_paths": other}

    @override
    def settings(self) -> dict[str, Any]:
        sources = {
            name: None if source is None else asdict(source)
            for name, source in (("corrector", self.corrector), ("tested_on", self.tested_on))
        }
        return super().settings() | sources

    @override
    def compose(self, anchor: Backbone, augmenting: Sequence[Backbone]) -> RewritingModel:
        if self.corrector is None and not augmenting:
            raise CalmError(
                "Rewriting needs a model to train: give one as model.augmenting, of which a copy "
                "is trained, or as `corrector`."
            )
        corrector: Corrector
        frozen: Sequence[Backbone] = ()
        if self.corrector is not None:
            corrector = load_corrector(self.corrector)
        else:
            corrector, frozen = copy_of(augmenting[0], self.fresh), augmenting[:1]
        cache = None if self.cache is None else Path(self.cache).expanduser()
        return RewritingModel(
            anchor,
            corrector,
            frozen,
            self,
            partial(Pool, drawing=self.drawing, cache=cache, live=self.live),
            self.separator,
            self.reads,
            self.answer,
            None if self.tested_on is None else self.tested_on.load(),
        )


def _source(said: BackboneSource | Mapping[str, Any] | None) -> BackboneSource | None:
    """From a config, or from the settings of a saved model."""
    return BackboneSource(**said) if isinstance(said, Mapping) else said
