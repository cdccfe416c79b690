"""Promises of the parts of self-decompression: the draw, deduplication, statistics, pictures."""

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from calm_lightning.contracts import CalmError
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_plugins.tasks.self_decompression.deduplication import (
    Deduplication,
    choose,
    judge,
    mean_states,
    ngrams,
)
from calm_plugins.tasks.self_decompression.drawing import SeededDraw, draw
from calm_plugins.tasks.self_decompression.picture import picture
from calm_plugins.tasks.self_decompression.roles import roles_of
from calm_plugins.tasks.self_decompression.statistics import distinct, measure, self_similarity
from calm_plugins.tasks.self_decompression.tree import Corpus, Dropped, Node, Tree

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5])


def drawn(count: int = 4000, **settings: Any) -> Counter[int]:
    tree = Tree((1,), style="text", **settings)
    processor = SeededDraw(range(count), tree, 0, 1)
    scores = processor(torch.zeros(count, 0, dtype=torch.long), LOGITS.expand(count, -1))
    assert (scores > -torch.inf).sum(-1).eq(1).all()
    return Counter(scores.argmax(-1).tolist())


# The draw


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_by_their_probabilities(temperature: float) -> None:
    found, wanted = drawn(temperature=temperature), (LOGITS / temperature).softmax(-1)
    for token, probability in enumerate(wanted.tolist()):
        spread = (probability * (1 - probability) / 4000) ** 0.5
        assert abs(found[token] / 4000 - probability) < 4 * spread


def test_only_the_likeliest_are_drawn_where_that_is_asked() -> None:
    assert set(drawn(top_k=2)) == {0, 2}
    assert set(drawn(top_p=0.7)) == {0, 2}  # 0.56 and 0.21


def test_a_token_of_no_probability_is_never_drawn() -> None:
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf]])
    for number in (0.0, 1.0 - 1e-8, 1.0):
        processor = SeededDraw([0], Tree((1,), style="text"), 0, 1)
        processor.numbers[:] = number
        assert int(processor(torch.zeros(1, 0, dtype=torch.long), scores).argmax()) == 1


def test_a_text_follows_from_its_seed_whatever_is_drawn_beside_it() -> None:
    backbone = tiny_backbone(tokenizer=tiny_tokenizer(), scale=0.02, layers=2)
    tree = Tree((1,), style="text")
    roles = roles_of(backbone.require_tokenizer(), "tiny", tree)
    alone = draw(backbone, roles, ["ab"], [7], tree, 9)
    beside = draw(backbone, roles, ["longer", "ab", "x"], [3, 7, 5], tree, 9)
    assert beside[1] == alone[0]
    assert beside[0].text != beside[2].text


def test_the_end_is_not_part_of_a_text() -> None:
    backbone = tiny_backbone(tokenizer=tiny_tokenizer(), scale=0.02, layers=2)
    tokenizer, tree = backbone.require_tokenizer(), Tree((1,), style="text")
    roles = roles_of(tokenizer, "tiny", tree)
    several = draw(backbone, roles, ["a"] * 60, range(60), tree, 30)
    assert {each.ended for each in several} == {True, False}
    for each in several:
        length = len(tokenizer(each.text)["input_ids"])
        assert each.tokens == (length + 1 if each.ended or length < 30 else 30)


def test_texts_are_drawn_with_a_tokenizer_that_has_no_special_tokens() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = None
    assert not tokenizer.all_special_ids
    backbone = tiny_backbone(tokenizer=tokenizer, scale=0.02, layers=2)
    tree = Tree((1,), style="text", start="ab")
    roles = roles_of(tokenizer, "tiny", tree)
    for each in draw(backbone, roles, ["ab", "a"], [7, 8], tree, 9):
        assert (each.tokens, each.ended) == (9, False)
        assert each.text
    with pytest.raises(CalmError, match=r"'tiny' has no token that texts start with.*tree.start"):
        roles_of(tokenizer, "tiny", Tree((1,), style="text"))


# Deduplication


def brute_force(vectors: Tensor, keep: int, similarity: float, relevance: float) -> list[int]:
    """Maximal marginal relevance, as it is defined."""
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    mean = unit.mean(0) / unit.mean(0).norm()
    chosen: list[int] = []
    while len(chosen) < keep:
        best, best_score = -1, -float("inf")
        for i, one in enumerate(unit):
            nearest = max((float(one @ unit[j]) for j in chosen), default=-1.0)
            if i in chosen or nearest > similarity:
                continue
            score = relevance * float(one @ mean) - (1 - relevance) * nearest
            if score > best_score:
                best, best_score = i, score
        if best < 0:
            break
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("keep", [3, 12])
@pytest.mark.parametrize("relevance", [0.0, 0.3, 1.0])
def test_choosing_is_maximal_marginal_relevance(keep: int, relevance: float) -> None:
    vectors = torch.randn(12, 4)
    vectors[5] = 2 * vectors[2] + 0.01
    found = choose(vectors, keep, 0.7, relevance)
    chosen = {i for i, verdict in enumerate(found) if verdict is not None and verdict[0] == i}
    assert chosen == set(brute_force(vectors, keep, 0.7, relevance))
    for verdict in found:
        assert verdict is None or verdict[0] in chosen


def test_no_two_that_are_kept_are_alike_and_every_duplicate_is_like_one() -> None:
    vectors = torch.randn(30, 3)
    cosine = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    found = choose(vectors, 30, 0.8, 0.5)
    kept = [i for i, verdict in enumerate(found) if verdict is not None and verdict[0] == i]
    assert 1 < len(kept) < 30
    assert all(cosine[i, j] <= 0.8 for i, j in combinations(kept, 2))
    for i, verdict in enumerate(found):
        assert verdict is not None
        if i not in kept:
            assert float(cosine[i, verdict[0]]) == pytest.approx(verdict[1], abs=1e-5)
            assert verdict[1] > 0.8


def siblings(*texts: str) -> list[Node]:
    return [Node(f"0.{number}", text) for number, text in enumerate(texts)]


def test_what_is_empty_or_said_twice_does_not_count() -> None:
    nodes = siblings("Two  and", " \n", "two and", "three")
    dropped = judge(nodes, Deduplication("text"), None)
    assert dropped == {"0.1": Dropped("empty"), "0.2": Dropped("duplicate", "0.0", 1.0)}
    assert judge(nodes, Deduplication("nothing"), None) == {"0.1": Dropped("empty")}


def test_texts_alike_in_their_characters_are_duplicates() -> None:
    nodes = siblings(
        "Which one is the largest planet?", "Why do cats purr?", "Which is the largest planet?"
    )
    (name,) = judge(nodes, Deduplication("ngrams"), ngrams)
    assert name in ("0.0", "0.2")


def test_what_is_beyond_the_number_kept_is_surplus() -> None:
    nodes = siblings("one", "twenty", "three hundred", "a million")
    dropped = judge(nodes, Deduplication("ngrams", keep=(3,)), ngrams)
    assert [each.why for each in dropped.values()] == ["surplus"]


def test_texts_with_different_starts_are_different() -> None:
    nodes = [Node("0.0", "=4", "2+2"), Node("0.1", "=4", "1+3"), Node("0.2", "=4", "2+2")]
    assert list(judge(nodes, Deduplication("text"), None)) == ["0.2"]


def test_states_are_those_of_the_text_alone_whatever_stands_beside_it() -> None:
    backbone = tiny_backbone(tokenizer=tiny_tokenizer())
    together = mean_states(["abc", "a longer one"], backbone)
    for row, text in zip(together, ["abc", "a longer one"], strict=True):
        torch.testing.assert_close(row, mean_states([text], backbone)[0])
        ids = torch.tensor([backbone.require_tokenizer()(text)["input_ids"]])
        states = backbone.decoder(ids).last_hidden_state
        torch.testing.assert_close(row, states[0].mean(0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"by": "sentences"}, "needs a sentence_model"),
        ({"by": "ngrams", "sentence_model": "x"}, "nothing else has a use"),
        ({"by": "text", "keep": (3,)}, "by=text has none"),
        ({"by": "text", "similarity": 0.5}, "by=text has none"),
        ({"similarity": 1.5}, "similarity=1.5"),
        ({"keep": (0,)}, "at least 1"),
        ({"relevance": 2.0}, "relevance=2.0"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CalmError, match=words):
        Deduplication(**settings)


# Statistics and pictures


def test_different_words_are_counted() -> None:
    assert distinct(["a b a", "a b!"], 1) == 0.5  # a, b, ! of six
    assert distinct(["a b a", "a b!"], 2) == 0.75  # (a b), (b a), (b !) of four
    assert distinct([""], 1) == 0.0


def test_self_similarity_is_the_mean_over_all_pairs() -> None:
    texts = ["hello there", "hello you", "10+22=32", "hello there"]
    vectors = ngrams(texts)
    cosine = torch.nn.functional.cosine_similarity
    pairs = [float(cosine(a, b, dim=0)) for a, b in combinations(vectors, 2)]
    assert self_similarity(texts) == pytest.approx(sum(pairs) / len(pairs), abs=1e-4)
    assert self_similarity(["one"]) == 0.0


@pytest.fixture
def corpus() -> Corpus:
    nodes = [
        Node("0.0", "one two", tokens=3),
        Node("0.1", "one two", tokens=3),
        Node("0.2", "three", tokens=5, ended=False),
        Node("0.0.0", "ten", tokens=1),
        Node("0.0.1", " ", tokens=1),
        Node("0.2.0", "ten", tokens=1),
    ]
    dropped = {"0.1": Dropped("duplicate", "0.0", 1.0), "0.0.1": Dropped("empty")}
    about = {
        "model": {"path": "tiny"},
        "tree": {"branching": [3, 2], "style": "text", "start": "$x_1$ 好", "start_pattern": None,
                 "system": None},
    }  # fmt: skip
    return Corpus(about, {node.id: node for node in nodes}, dropped)


def test_a_tree_is_measured_as_a_whole_and_by_level(corpus: Corpus) -> None:
    found = measure(corpus)
    assert (found["drawn"], found["kept"], found["duplicate"], found["empty"]) == (6, 4, 1, 1)
    assert (found["tokens"], found["tokens_kept"]) == (14, 10)
    assert found["ended"] == 0.75
    assert found["same"] == 0.5
    assert [level["drawn"] for level in found["levels"]] == [3, 3]


def test_a_picture_is_drawn_of_any_tree_and_any_script(corpus: Corpus, tmp_path: Path) -> None:
    picture(corpus, tmp_path / "small.png")
    wide = {f"0.{i}": Node(f"0.{i}", f"text {i}") for i in range(500)}
    about = {**corpus.about, "tree": {**corpus.about["tree"], "branching": [500]}}
    picture(Corpus(about, wide), tmp_path / "wide.png")
    small, large = ((tmp_path / name).stat().st_size for name in ("small.png", "wide.png"))
    assert 1000 < small < large
