"""What a tree is like: how much of it counts, and how varied it is."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from calm_plugins.tasks.reading import normal_form
from calm_plugins.tasks.self_decompression.deduplication import ngrams
from calm_plugins.tasks.self_decompression.tree import Corpus, Node

_WORD = re.compile(r"\w+|[^\w\s]")
_SAMPLE = 1000
"""Texts whose similarity to one another is measured."""


def measure(corpus: Corpus) -> dict[str, Any]:
    """Figures of a whole tree, and of each of its levels.

    Returns:
        `drawn`, `kept` and the numbers dropped, by reason; `tokens` drawn, and those of the texts
        kept; the share that the model `ended` itself; `distinct_1` and `_2` (different words, and
        pairs of words, among all: Li et al., NAACL 2016); `self_similarity`, the mean cosine of
        two texts' character trigrams; `same`, the share of texts that occur elsewhere in the tree,
        under another parent perhaps. All of the texts kept, where nothing else is said.
    """
    levels = sorted({node.level for node in corpus.nodes.values()})
    whole = _figures(corpus, list(corpus.nodes.values()))
    each = [[node for node in corpus.nodes.values() if node.level == level] for level in levels]
    return whole | {"levels": [_figures(corpus, nodes) for nodes in each]}


def _figures(corpus: Corpus, drawn: Sequence[Node]) -> dict[str, Any]:
    kept = [node for node in drawn if node.id not in corpus.dropped]
    why = Counter(corpus.dropped[node.id].why for node in drawn if node.id in corpus.dropped)
    texts = [node.whole for node in kept]
    occurring = Counter(map(normal_form, texts))
    return {
        "drawn": len(drawn),
        "kept": len(kept),
        "empty": why["empty"],
        "duplicate": why["duplicate"],
        "surplus": why["surplus"],
        "tokens": sum(node.tokens for node in drawn),
        "tokens_kept": sum(node.tokens for node in kept),
        "ended": _share([node.ended for node in kept]),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "self_similarity": self_similarity(texts),
        "same": _share([occurring[normal_form(text)] > 1 for text in texts]),
    }


def distinct(texts: Sequence[str], n: int) -> float:
    """Share of n words in a row that are different from all others; 0 if there are none."""
    words = [_WORD.findall(text) for text in texts]
    found = Counter(tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1))
    return round(len(found) / found.total(), 4) if found else 0.0


def self_similarity(texts: Sequence[str]) -> float:
    """Mean cosine of two different texts, of a sample if there are many; 0 if there is only one."""
    chosen = random.Random(0).sample(list(texts), min(len(texts), _SAMPLE))
    if len(chosen) < 2:
        return 0.0
    vectors = torch.nn.functional.normalize(ngrams(chosen), dim=-1)
    pairs = len(chosen) * (len(chosen) - 1)
    # The square of the sum's length is the sum of all cosines, each text's own among them.
    return round((float(vectors.sum(0).pow(2).sum()) - len(chosen)) / pairs, 4)


def _share(said: Sequence[bool]) -> float:
    return round(fmean(said), 4) if said else 0.0
