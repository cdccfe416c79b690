"""Texts drawn out of a frozen model, learnt by `calm fit`; and what the demo's anchor says."""

import re
from pathlib import Path
from typing import Any

import pytest

from calm_lightning.backbone import BackboneSource
from calm_plugins.tasks.self_decompression import SelfDecompression
from calm_plugins.tasks.self_decompression.deduplication import Deduplication, _sentences
from calm_plugins.tasks.self_decompression.store import read
from calm_plugins.tasks.self_decompression.tree import Tree

SMOKE = "configs/smoke/self_decompression.yaml"
ANCHOR = BackboneSource("configs/models/key_value/anchor")
SUM = re.compile(r"(\d+(?:[+-]\d+)+)=(-?\d+)")


def value(expression: str) -> int:
    return sum(int(number) for number in re.findall(r"[+-]?\d+", expression))


def test_the_texts_are_drawn_once_and_learnt(calm: Any, tmp_path: Path) -> None:
    cache = tmp_path / "texts.jsonl"
    options = ("-c", SMOKE, "--data.cache", cache)
    outcome = calm("fit", *options, "--run", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    found = re.search(r"held_out/loss_nats\s+(\d+\.\d+)\s+(\d+\.\d+)", outcome.out)
    assert found is not None, outcome.out
    assert float(found[2]) < float(found[1])
    before = cache.read_bytes()
    assert (tmp_path / "texts.jsonl.png").exists()
    assert calm("test", "--run", tmp_path / "run").status == 0
    assert cache.read_bytes() == before
    message = calm("fit", *options, "--run", tmp_path / "other", "--data.tree.seed=1").message
    assert "tree.seed=0, not 1" in message
    assert cache.read_bytes() == before


def test_the_anchors_own_sums_can_be_drawn_from_it(tmp_path: Path) -> None:
    """Its training data are not read: what it answers is right as often as it knows."""
    pattern = "([1-9][0-9][+-]){1,2}[1-9][0-9]="
    tree = Tree((60,), 12, "text", start_pattern=pattern, temperature=0.3)
    task = SelfDecompression(ANCHOR, tmp_path / "sums.jsonl", tree, Deduplication("text"))
    texts = [example.prompt + example.target for example in task.train_examples()]
    sums = [match for text in texts if (match := SUM.fullmatch(text))]
    right = [match for match in sums if value(match[1]) == int(match[2])]
    assert len(texts) > 50
    assert len(sums) == len(texts)
    assert len(right) > 0.8 * len(sums)


def test_sentences_are_compared_by_an_embedding_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("sentence_transformers.models")
    from sentence_transformers import SentenceTransformer

    words = transformers.Transformer("configs/models/key_value/anchor")
    pooling = transformers.Pooling(words.get_embedding_dimension())
    SentenceTransformer(modules=[words, pooling], device="cpu").save(str(tmp_path / "model"))
    vectors = _sentences(str(tmp_path / "model"))(["10+22=32", "10+22=32", "99"])
    assert vectors.shape == (3, 128)
    assert vectors[0].equal(vectors[1])
    assert not vectors[0].allclose(vectors[2])
    tree = Tree((8,), 6, "text")
    settings = Deduplication("sentences", str(tmp_path / "model"), keep=(5,))
    task = SelfDecompression(ANCHOR, tmp_path / "texts.jsonl", tree, settings)
    task.prepare_data()
    assert len(read(tmp_path / "texts.jsonl").kept()) <= 5
