"""A small model's beginning: every text can be read, and what is there is not written over."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from calm_lightning.backbone import BackboneSource
from calm_lightning.contracts import CalmError
from calm_lightning.fresh_model import main, texts_of, train_tokenizer, write_model

TEXTS = ["the cat sat on the mat", "the dog sat", "der Hund saß"] * 20


@pytest.mark.parametrize("text", ["the cat", "naïve 猫\n\t🙂", "", " two  spaces "])
def test_every_text_comes_back(text: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_frequent_words_are_one_token_and_the_size_is_kept() -> None:
    tokenizer = train_tokenizer(TEXTS, 290)
    assert len(tokenizer.tokenize(" sat")) == 1
    assert len(tokenizer) <= 290
    with pytest.raises(CalmError, match="at least 259, for all bytes: got 100"):
        train_tokenizer(TEXTS, 100)


def test_what_is_written_is_a_backbone_with_random_weights(tmp_path: Path) -> None:
    write_model(tmp_path, train_tokenizer(TEXTS, 280), 64, 2, 48)
    backbone = BackboneSource(str(tmp_path), weights="random").load()
    assert (backbone.width, backbone.num_layers, backbone.context) == (64, 2, 48)
    assert backbone.require_tokenizer().pad_token_id == 0
    with pytest.raises(CalmError, match="already holds a model"):
        write_model(tmp_path, train_tokenizer(TEXTS, 280), 64, 2, 48)
    with pytest.raises(CalmError, match="multiple of 32"):
        write_model(tmp_path / "other", train_tokenizer(TEXTS, 280), 65, 2, 48)


def config(folder: Path) -> Path:
    file = folder / "lines.txt"
    file.write_text("the cat sat on the mat\n" * 200)
    said = {"data": {"class_path": "TextFile", "init_args": {"train": str(file)}}}
    (folder / "run.yaml").write_text(yaml.safe_dump(said))
    return folder / "run.yaml"


def test_the_texts_are_those_that_the_task_trains_on(tmp_path: Path) -> None:
    assert all("the cat sat" in text for text in texts_of(config(tmp_path)))
    (tmp_path / "none.yaml").write_text("model: {}")
    for name in ("none.yaml", "missing.yaml"):
        with pytest.raises(CalmError, match="no `data` can be read"):
            texts_of(tmp_path / name)
    (tmp_path / "odd.yaml").write_text("data: {class_path: Nothing}")
    with pytest.raises(CalmError, match=r"odd\.yaml: its `data` is none"):
        texts_of(tmp_path / "odd.yaml")


def test_two_models_may_share_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = config(tmp_path)

    def run(*options: object) -> None:
        monkeypatch.setattr(sys, "argv", ["fresh_model", *map(str, options)])
        main()

    run(tmp_path / "a", "--texts", file, "--vocabulary", 300, "--width", 64)
    run(tmp_path / "b", "--like", tmp_path / "a", "--layers", 2, "--width", 32)
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name) for name in "ab"]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
    assert configs[0]["vocab_size"] == configs[1]["vocab_size"]
    with pytest.raises(SystemExit, match="already holds a model"):
        run(tmp_path / "a", "--like", tmp_path / "a")
