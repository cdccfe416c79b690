"""Corpora that the library `datasets` reads: those of the Hugging Face hub, or local folders."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from calm_lightning.contracts import CalmError
from calm_plugins.tasks.reading import describe, field
from calm_plugins.tasks.translation.corpora import Corpus, Pair, with_codes


class Hub(Corpus):
    """A data set of the Hugging Face hub, or a folder that `datasets.load_dataset` reads.

    Rows in which a side is missing or empty are left out, and their number is said.

    Args:
        name: Such as `Helsinki-NLP/opus-100`, or a folder.
        languages: The codes in it, which nothing else tells.
        split: As `datasets` names it; `validation`, `test[:500]`.
        config: Name of its configuration; `{source}-{target}` stands for the codes, and is tried
            in the other order too.
        fields: Where the two sentences are; `translation.{source}` is a field in a field.
        rows: Read no more than so many.
        streaming: Read row by row instead of downloading everything first.
        revision: Branch, tag or commit.

    Raises:
        CalmError: When it is used: if it cannot be had, or a row lacks the fields.
    """

    def __init__(
        self,
        name: str,
        languages: tuple[str, ...],
        split: str = "train",
        config: str | None = None,
        fields: tuple[str, str] = ("translation.{source}", "translation.{target}"),
        rows: int | None = None,
        streaming: bool = False,
        revision: str | None = None,
    ) -> None:
        self.name, self.languages, self.split, self.config = name, languages, split, config
        self.fields, self.rows, self.streaming, self.revision = fields, rows, streaming, revision
        self._pairs: dict[tuple[str, str], list[Pair]] = {}

    def __str__(self) -> str:
        return self.name

    @override
    def directions(self) -> Sequence[tuple[str, str]]:
        return [(a, b) for a in self.languages for b in self.languages if a != b]

    @override
    def pairs(self, source: str, target: str) -> Sequence[Pair]:
        if (source, target) not in self._pairs:
            read = list(self._read(source, target))
            pairs = [(one, other) for one, other in read if one.strip() and other.strip()]
            if len(pairs) < len(read):
                rank_zero_info(
                    f"{self.name}, split {self.split}, {source}-{target}: "
                    f"{len(read) - len(pairs):,} of {len(read):,} rows are left out because a side "
                    "is missing or empty."
                )
            self._pairs[source, target] = pairs
        return self._pairs[source, target]

    def _read(self, source: str, target: str) -> Iterator[Pair]:
        names = [with_codes(each, source, target) for each in self.fields]
        for number, row in enumerate(islice(self._rows(source, target), self.rows), start=1):
            where = f"{self.name}, split {self.split}, row {number}"
            one, other = (field(row, name, where) for name in names)
            for name, value in zip(names, (one, other), strict=True):
                if value is not None and not isinstance(value, str):
                    raise CalmError(f"{where}: {name!r} holds {describe(value)}, not text.")
            yield one or "", other or ""

    def _rows(self, source: str, target: str) -> Iterator[dict[str, Any]]:
        try:
            import datasets
        except ImportError:
            raise CalmError(
                "Data sets of the hub need the package datasets: pip install 'calm-lightning[hub]'."
            ) from None
        orders = [(source, target), (target, source)]
        configs = list(dict.fromkeys(self.config and with_codes(self.config, *o) for o in orders))
        options = {"split": self.split, "streaming": self.streaming, "revision": self.revision}
        problem: Exception | None = None
        for config in configs:
            try:
                rows = datasets.load_dataset(self.name, config, **options)
            except Exception as error:  # whatever goes wrong in there, the user chose the name
                problem = problem or error
                continue
            try:
                yield from rows  # streamed ones are read only now
            except Exception as error:
                problem = error
                break
            return
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else repr(problem)
        raise CalmError(
            f"The data set {self.name!r} (configuration {' or '.join(map(str, configs))}, split "
            f"{self.split!r}) cannot be read: {reason} Check the name; reading from the hub needs "
            "a network, or a copy in the cache of an earlier run. A local folder does as well."
        ) from problem
