"""Which of a node's children are worth keeping: no two alike, and together as varied as can be.

Texts become vectors, and children are chosen one by one by maximal marginal relevance (Carbonell
and Goldstein, SIGIR 1998): the next one is typical of what the model says here, and unlike those
that were chosen before. A text too like a chosen one is its duplicate.

The paper (arXiv 2406.11354) does so with questions and sentence embeddings, and gives neither
thresholds nor weights. Here it is done on every level, answers and base models' texts included.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from calm_lightning.backbone import Backbone
from calm_lightning.collate import pad_right, tokenize
from calm_lightning.contracts import CalmError
from calm_plugins.tasks.reading import normal_form
from calm_plugins.tasks.self_decompression.tree import Dropped, Node

By = Literal["nothing", "text", "ngrams", "states", "sentences"]
Embed = Callable[[Sequence[str]], Float[Tensor, "texts width"]]

_SIMILARITY = {"ngrams": 0.8, "states": 0.98, "sentences": 0.9}
_N = 3
_BUCKETS = 2048
_AT_A_TIME = 64
"""Texts that the model reads together."""


@dataclass
class Deduplication:
    """How siblings are compared.

    Attributes:
        by: What makes two siblings alike. `nothing`: none are; `text`: the same words, but for case
            and white space; and, beyond that, the cosine of two vectors: `ngrams` of three
            characters each; `states`, the model's own last hidden states, averaged; `sentences`,
            the embeddings of `sentence_model`.
        sentence_model: A folder or hub name, as the package sentence-transformers takes it.
        similarity: Cosine above which a sibling is a duplicate; null is 0.8 for ngrams, 0.98 for
            states (those of one model are all alike), 0.9 for sentences.
        keep: How many children of each node are kept, level by level; null keeps all that are no
            duplicates.
        relevance: What counts in choosing: 1 asks for typical texts only, 0 for varied ones only.

    Raises:
        CalmError: If a setting makes no sense.
    """

    by: By = "ngrams"
    sentence_model: str | None = None
    similarity: float | None = None
    keep: tuple[int, ...] | None = None
    relevance: float = 0.5

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise CalmError(f"by is {self.by!r}, not one of {', '.join(get_args(By))}.")
        if (self.by == "sentences") != (self.sentence_model is not None):
            raise CalmError(
                f"by={self.by} and sentence_model={self.sentence_model}: `by: sentences` needs a "
                "sentence_model, and nothing else has a use for one."
            )
        if self.by in _SIMILARITY and self.similarity is None:
            self.similarity = _SIMILARITY[self.by]
        if self.by not in _SIMILARITY and (self.keep or self.similarity is not None):
            raise CalmError(
                f"keep and similarity need vectors to compare, and by={self.by} has none. Take "
                f"one of {', '.join(_SIMILARITY)}."
            )
        if self.similarity is not None and not 0 < self.similarity <= 1:
            raise CalmError(f"similarity={self.similarity} must be above 0, and at most 1.")
        if self.keep is not None:
            self.keep = tuple(self.keep)
            if not self.keep or min(self.keep) < 1:
                raise CalmError(f"keep={list(self.keep)}: at least 1 on each level.")
        if not 0 <= self.relevance <= 1:
            raise CalmError(f"relevance={self.relevance} is a share between 0 and 1.")

    def kept_at(self, level: int) -> int | None:
        """How many children are kept on a level, counted from 1; None keeps all."""
        return None if self.keep is None else self.keep[level - 1]


def judge(
    siblings: Sequence[Node], settings: Deduplication, embed: Embed | None
) -> dict[str, Dropped]:
    """Which siblings do not count, and why.

    Args:
        siblings: All children of one node, the first one first.
        settings: How they are compared.
        embed: Makes vectors of texts; None compares the words only.
    """
    dropped: dict[str, Dropped] = {}
    first: dict[str, Node] = {}
    for node in siblings:
        words = normal_form(node.whole)
        if not node.text.strip():
            dropped[node.id] = Dropped("empty")
        elif settings.by != "nothing" and words in first:
            dropped[node.id] = Dropped("duplicate", first[words].id, 1.0)
        else:
            first.setdefault(words, node)
    left = [node for node in siblings if node.id not in dropped]
    if embed is not None and len(left) > 1:
        assert settings.similarity is not None
        vectors = embed([node.whole for node in left])
        keep = settings.kept_at(left[0].level) or len(left)
        chosen = choose(vectors, keep, settings.similarity, settings.relevance)
        for number, verdict in enumerate(chosen):
            if verdict is None:
                dropped[left[number].id] = Dropped("surplus")
            elif verdict[0] != number:
                like, similarity = verdict
                dropped[left[number].id] = Dropped("duplicate", left[like].id, round(similarity, 4))
    return dropped


def choose(
    vectors: Float[Tensor, "texts width"], keep: int, similarity: float, relevance: float
) -> list[tuple[int, float] | None]:
    """Choose texts by maximal marginal relevance.

    Args:
        vectors: Of the texts.
        keep: Most that are chosen.
        similarity: Cosine above which a text is a duplicate of one that was chosen.
        relevance: Weight of being typical (the cosine with the mean), against that of being unlike
            all that were chosen.

    Returns:
        For each text the number of the chosen one that it is like, and their similarity: itself if
        it was chosen; None if it is merely left over.
    """
    vectors = torch.nn.functional.normalize(vectors.float(), dim=-1)
    typical = vectors @ torch.nn.functional.normalize(vectors.mean(0), dim=-1)
    nearest = torch.full((len(vectors),), -1.0)
    like = torch.full((len(vectors),), -1)
    score = relevance * typical
    chosen = 0
    while chosen < keep:
        number = int(score.argmax())
        if score[number] == -torch.inf:
            break  # all others are duplicates
        cosine = vectors @ vectors[number]
        closer = (cosine > nearest) & (score > -torch.inf)
        nearest[closer], like[closer] = cosine[closer], number
        out = nearest > similarity
        out[number] = True
        like[number] = number
        score = (relevance * typical - (1 - relevance) * nearest).masked_fill(
            out | (score == -torch.inf), -torch.inf
        )
        chosen += 1
    return [
        (int(like[i]), float(nearest[i])) if score[i] == -torch.inf else None
        for i in range(len(vectors))
    ]


def embedder(settings: Deduplication, backbone: Backbone) -> Embed | None:
    """What makes vectors of texts; None if only words are compared.

    Raises:
        CalmError: If the sentence model cannot be loaded.
    """
    if settings.by == "ngrams":
        return ngrams
    if settings.by == "states":
        return lambda texts: mean_states(texts, backbone)
    if settings.by == "sentences":
        assert settings.sentence_model is not None
        return _sentences(settings.sentence_model)
    return None


def ngrams(texts: Sequence[str]) -> Float[Tensor, "texts buckets"]:
    """How often each text holds each three characters in a row, hashed into so many buckets."""
    counts = torch.zeros(len(texts), _BUCKETS)
    for row, text in zip(counts, texts, strict=True):
        padded = f" {normal_form(text)} "
        for start in range(max(1, len(padded) - _N + 1)):
            row[zlib.crc32(padded[start : start + _N].encode()) % _BUCKETS] += 1
    return counts


@torch.no_grad()
def mean_states(texts: Sequence[str], backbone: Backbone) -> Float[Tensor, "texts width"]:
    """The model's last hidden states, averaged over each text's tokens."""
    tokenizer, device = backbone.require_tokenizer(), backbone.model.device
    means = []
    for start in range(0, len(texts), _AT_A_TIME):
        rows = tokenize(tokenizer, texts[start : start + _AT_A_TIME])
        batch = {name: each.to(device) for name, each in pad_right(rows, 0).items()}
        mask = batch["attention_mask"]
        states = backbone.decoder(batch["input_ids"], attention_mask=mask).last_hidden_state
        real = mask.unsqueeze(-1).to(states)
        means.append(((states * real).sum(1) / real.sum(1)).float().cpu())
    return torch.cat(means)


def _sentences(path: str) -> Embed:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise CalmError(
            "`by: sentences` needs the package sentence-transformers: "
            "pip install 'calm-lightning[self_decompression]'."
        ) from None
    try:
        model = SentenceTransformer(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CalmError(
            f"sentence_model={path!r} could not be loaded: {first} Name a folder, or a model of "
            "the Hugging Face hub, that sentence-transformers can read."
        ) from error

    def embed(texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        vectors: Tensor = model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return vectors.float().cpu()

    return embed
