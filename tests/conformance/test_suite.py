"""The tools of the suite: tiny backbones and their tokenizer, the report, the messages."""

import string

import pytest
import torch

from calm_lightning.contracts import CalmError
from calm_lightning.testing import (
    CHECKS,
    FAMILIES,
    PROMISES,
    Case,
    augmenting_report,
    check,
    tiny_backbone,
    tiny_tokenizer,
)
from calm_lightning.testing.tiny import OTHER_FAMILIES
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.single import Single


@pytest.mark.parametrize("family", FAMILIES + OTHER_FAMILIES)
def test_tiny_backbones_depend_on_their_seed_and_say_something(family: str) -> None:
    first, again, other = (tiny_backbone(family, seed=seed) for seed in (3, 3, 4))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    logits = first.model(input_ids=torch.arange(10)[None]).logits
    assert logits.std(dim=1).mean() > 0.3  # what is read matters to what is said


def test_a_width_without_room_for_four_even_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="width=20 must be a multiple of 8"):
        tiny_backbone(width=20)


def test_the_tiny_tokenizer_has_one_token_for_every_printable_character() -> None:
    tokenizer = tiny_tokenizer(97)
    text = string.printable[:95]
    ids = tokenizer(text)["input_ids"]
    assert (len(ids), len(set(ids))) == (95, 95)
    assert tokenizer.decode(ids) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 97)
    with pytest.raises(ValueError, match="vocab=500 must be from 3 to 102"):
        tiny_tokenizer(500)


def test_every_promise_has_a_check_and_a_sentence() -> None:
    assert list(PROMISES) == list(CHECKS)
    assert all(sentence.endswith(".") for sentence in PROMISES.values())


def test_without_pytest_one_call_checks_everything() -> None:
    check(Case(Single(), "gpt2"))


def test_one_call_names_every_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Liar(Single):
        def __init__(self) -> None:
            super().__init__(train=True)
            self.exempt = {name: "not at issue here" for name in PROMISES}
            del self.exempt["frozen"], self.exempt["anchor_only"]

    with pytest.raises(AssertionError, match=r"(?s)anchor_only: .*frozen: .*own weights"):
        check(Case(Liar()))


def test_the_report_needs_states_to_disturb_and_rows_to_shuffle() -> None:
    model = Case(CrossAttention()).model
    batch = model.encode(["abc", "de"], ["f", "g"])
    report = augmenting_report(model, batch)
    assert report.keys() == {"as_is", "shuffled", "zeroed"}
    assert len(set(report.values())) == 3
    with pytest.raises(CalmError, match="at least two"):
        augmenting_report(model, model.encode(["abc"], ["f"]))
    with pytest.raises(CalmError, match="no augmenting states"):
        augmenting_report(Case(Single()).model, batch)
