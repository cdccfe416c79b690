"""Grows a tree of texts out of a frozen model, level by level.

This is TG of `Preserving Knowledge in Large Language Model with Model-Agnostic Self-Decompression
<https://arxiv.org/abs/2406.11354>`_, sections 3.1 to 3.3: Wide-Tree, Balance-Tree and TG-PT. What
is drawn is a function of the settings and of the model, so a tree that was stopped grows on as if
it had not been.
"""

import random
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track

from calm_lightning.backbone import Backbone
from calm_lightning.collate import tokenize
from calm_lightning.contracts import CalmError
from calm_plugins.tasks.self_decompression.deduplication import Deduplication, embedder, judge
from calm_plugins.tasks.self_decompression.drawing import draw
from calm_plugins.tasks.self_decompression.roles import Roles
from calm_plugins.tasks.self_decompression.statistics import measure
from calm_plugins.tasks.self_decompression.store import Store
from calm_plugins.tasks.self_decompression.tree import ROOT, Node, Tree, children_of

_AT_ONCE = 1000
"""Parents whose children are judged before that is written down."""

Item = TypeVar("Item")


class Grower:
    """Grows the tree of one file.

    Args:
        backbone: The model that the texts are drawn from.
        roles: How it is asked.
        tree: How the tree grows.
        deduplication: Which children do not count.
        store: Where the texts are kept.
        at_a_time: Texts that are drawn together.
    """

    def __init__(
        self,
        backbone: Backbone,
        roles: Roles,
        tree: Tree,
        deduplication: Deduplication,
        store: Store,
        at_a_time: int,
    ) -> None:
        self.backbone, self.roles, self.tree, self.store = backbone, roles, tree, store
        self.deduplication, self.at_a_time = deduplication, at_a_time
        self.embed = embedder(deduplication, backbone)

    def grow(self) -> None:
        """Draw what is lacking, until the tree is finished.

        Raises:
            CalmError: If the start does not fit the model's context, or nothing worth keeping was
                drawn.
        """
        corpus, grown = self.store.corpus, len(self.store.corpus.nodes)
        parents = [ROOT]
        for level, branching in enumerate(self.tree.branching, start=1):
            parents = self._with_room(parents, level)
            names = [name for parent in parents for name in children_of(parent, branching)]
            self._draw(names, level)
            self._judge(parents, branching)
            kept = [name for name in names if name not in corpus.dropped]
            parents = [name for name in kept if self.roles.goes_on(corpus.nodes[name])]
        if corpus.statistics is None or len(corpus.nodes) > grown:
            statistics = measure(corpus)
            if not statistics["kept"]:
                raise CalmError(
                    f"{self.backbone.name!r} wrote {statistics['drawn']:,} texts, and all of them "
                    "are empty. Give it another start, or let it write more tokens."
                )
            self.store.finish(statistics)

    def _with_room(self, parents: Sequence[str], level: int) -> list[str]:
        """Those parents whose children fit the model's context."""
        context = self.backbone.context
        if context is None:
            return list(parents)
        most = context - self.tree.limit(level)
        prompts = [self._prompt(children_of(parent, 1)[0]) for parent in parents]
        lengths = [len(row.ids) for row in tokenize(self.backbone.require_tokenizer(), prompts)]
        fitting = [p for p, length in zip(parents, lengths, strict=True) if length <= most]
        told = (
            f"{self.tree.limit(level)} further tokens on level {level} do not fit the context of "
            f"{self.backbone.name!r}, which holds {context}"
        )
        if level == 1 and not fitting:
            raise CalmError(
                f"{told}: the start has {lengths[0]}. Lower max_new_tokens or shorten the start."
            )
        if len(fitting) < len(parents):
            rank_zero_info(
                f"{len(parents) - len(fitting):,} of {len(parents):,} texts are not continued: "
                f"{told}."
            )
        return fitting

    def _draw(self, names: Sequence[str], level: int) -> None:
        # The portions are those of a run that was never stopped, so the same texts share a batch.
        portions = list(_portions(names, self.at_a_time))
        nodes = self.store.corpus.nodes
        lacking = [each for each in portions if any(name not in nodes for name in each)]
        told = f"Level {level} of {self.tree.depth}, {len(names):,} texts"
        for portion in track(lacking, told, transient=True, disable=not lacking):
            starts = [self._start(name) for name in portion]
            seeds = [self.tree.seed_of(name) for name in portion]
            prompts = [self._prompt(name) for name in portion]
            drawn = draw(
                self.backbone, self.roles, prompts, seeds, self.tree, self.tree.limit(level)
            )
            made = [
                Node(name, one.text, start, seed, one.tokens, one.ended)
                for name, start, seed, one in zip(portion, starts, seeds, drawn, strict=True)
            ]
            self.store.add([node for node in made if node.id not in nodes])

    def _judge(self, parents: Sequence[str], branching: int) -> None:
        corpus = self.store.corpus
        for portion in _portions([p for p in parents if p not in corpus.judged], _AT_ONCE):
            self.store.judge(
                {
                    parent: judge(
                        [corpus.nodes[name] for name in children_of(parent, branching)],
                        self.deduplication,
                        self.embed,
                    )
                    for parent in portion
                }
            )

    def _prompt(self, name: str) -> str:
        """What the model is given to write the text of this name."""
        parent = name.rpartition(".")[0]
        nodes = self.store.corpus.nodes
        path = self.store.corpus.path(nodes[parent]) if parent != ROOT else []
        return self.roles.prompt(path, self._start(name))

    def _start(self, name: str) -> str:
        if name.count(".") > 1:
            return ""
        if self.tree.start_pattern is None:
            return self.tree.start
        chance = random.Random(f"{self.tree.seed_of(name)}/start")
        return self.tree.start + matching(self.tree.start_pattern, chance)


def matching(pattern: str, chance: random.Random) -> str:
    """A random text that matches a regular expression.

    Raises:
        CalmError: If it is none, or the package that does it is not installed.
    """
    try:
        from rstr import Rstr
    except ImportError:
        raise CalmError(
            "start_pattern needs the package rstr: pip install "
            "'calm-lightning[self_decompression]'."
        ) from None
    try:
        text: str = Rstr(chance).xeger(pattern)
    except (ValueError, KeyError, OverflowError, re.error) as error:
        raise CalmError(
            f"start_pattern={pattern!r} is not understood: {error}. It is a regular expression, "
            "such as [1-9][0-9][+-][1-9][0-9]=."
        ) from error
    return text


def _portions(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while portion := list(islice(rest, size)):
        yield portion
