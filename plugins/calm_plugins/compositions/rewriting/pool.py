"""The pool of candidates: drawn live from a frozen model, or taken from the cache."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch.utils.data import get_worker_info

from calm_lightning.contracts import CalmError
from calm_lightning.language_model import PlainModel
from calm_plugins.compositions.rewriting.drawing import Drawing, batches, draw
from calm_plugins.compositions.rewriting.store import Candidates, Store, missing


class Pool:
    """The candidates of one model.

    Args:
        model: Who writes them.
        drawing: How.
        cache: Folder in which they are kept; None keeps them in memory.
        live: Whether what the cache lacks is drawn. If not, it is an error.
    """

    def __init__(
        self, model: PlainModel, drawing: Drawing, cache: Path | None, live: bool = True
    ) -> None:
        self.model = model
        self.drawing = drawing
        self.cache = cache
        self.live = live
        self._opened: Store | None = None
        self._others: dict[str, str | None] = {}  # of the last batch: whose candidates each reads

    @property
    def store(self) -> Store:
        """Where the candidates are, opened when they are first needed.

        Raises:
            CalmError: If the cache is damaged.
        """
        if self._opened is None:
            backbone = self.model.backbone
            about = {
                "model": backbone.fingerprint(),
                "tokenizer": backbone.tokenizer_fingerprint(),
                **asdict(self.drawing),
            }
            about["stop"] = list(self.drawing.stop)
            self._opened = Store(self.cache, about, self.drawing.count)
        return self._opened

    def of(self, prompts: Sequence[str]) -> list[Candidates]:
        """The candidates of each prompt, the greedy one first.

        Raises:
            CalmError: If some are not in the cache and may not, or cannot, be drawn.
        """
        lacking = missing(self.store, prompts)
        if lacking:
            self.store.look_again()
            lacking = missing(self.store, prompts)
        if lacking and not self.live:
            raise CalmError(self._not_in_cache(lacking))
        if lacking and get_worker_info() is not None:
            raise CalmError(
                f"{len(lacking)} prompts have no candidates yet, and they are not drawn in the "
                "worker processes of a data loader. Set data.num_workers to 0 for the first epoch, "
                "or draw them before: `model.fill(prompts)` with a cache."
            )
        for portion in batches(lacking, self.drawing):
            drawn = draw(self.model, portion, self.drawing)
            self.store.add(dict(zip(portion, drawn, strict=True)))
        return [self.store[prompt] for prompt in prompts]

    def has_room(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts fit the model's context, with what stands before them and a candidate."""
        asked = [self.drawing.few_shot + prompt for prompt in prompts]
        return self.model.fits(asked, new_tokens=self.drawing.max_new_tokens)

    def of_others(self, prompts: Sequence[str]) -> list[Candidates]:
        """The candidates of another question for each: never its own.

        In a batch each reads those of the question before it, the first one those of the last. One
        that comes alone reads those of the batch before, and none if there was none. The same
        questions, or some of them, read the same when they come again at once, as when they are
        answered and then scored.

        Raises:
            CalmError: As `of`.
        """
        distinct = list(dict.fromkeys(prompts))
        if not self._others.keys() >= set(distinct):
            first = distinct[-1] if len(distinct) > 1 else next(reversed(self._others), None)
            self._others = dict(zip(distinct, [first, *distinct[:-1]], strict=True))
        others = [self._others[prompt] for prompt in prompts]
        pools = iter(self.of([other for other in others if other is not None]))
        return [() if other is None else next(pools) for other in others]

    def _not_in_cache(self, lacking: Sequence[str]) -> str:
        name = self.model.backbone.name
        if not len(self.store):
            there = "; ".join(self.store.others()) or "nothing"
            return (
                f"The cache {self.cache} holds no candidates of {name!r} "
                f"({self.store.place}) made with these settings; it holds: {there}. Give the model "
                "and the settings that it was made with, or draw live: live: true."
            )
        return (
            f"The cache {self.cache} has candidates of {name!r} for {len(self.store)} prompts, but "
            f"not for {len(lacking)} of these, the first being {lacking[0][:60]!r}. Was it made "
            "for other data? Draw what is missing by live: true."
        )
