"""One backbone as a language model: its loss, its likelihood, and what it writes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from calm_lightning.backbone import Backbone
from calm_lightning.collate import IGNORED
from calm_lightning.contracts import CalmError
from calm_lightning.language_model import PlainModel, next_token_loss
from calm_lightning.testing import tiny_backbone, tiny_tokenizer


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone(tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def model(backbone: Backbone) -> PlainModel:
    return PlainModel(backbone, lambda folder: None)


def by_hand(backbone: Backbone, text: str, first: int) -> float:
    """Nats of the tokens from `first` on, one forward pass a token."""
    ids = backbone.require_tokenizer()(text)["input_ids"]
    nats = 0.0
    with torch.no_grad():
        for place in range(max(first, 1), len(ids)):
            logits = backbone.model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
            nats -= float(logits[ids[place]] - logits.exp().sum().log())
    return nats


def test_the_loss_is_the_mean_over_labelled_tokens_in_nats() -> None:
    logits = torch.randn(2, 4, 7)
    labels = torch.tensor([[3, IGNORED, 5, 2], [IGNORED, IGNORED, 6, IGNORED]])
    nats = [
        -math.log(torch.softmax(logits[row, place - 1].double(), -1)[labels[row, place]])
        for row, place in [(0, 2), (0, 3), (1, 2)]  # the first token has nothing before it
    ]
    assert float(next_token_loss(logits, labels)) == pytest.approx(sum(nats) / 3, rel=1e-5)


def test_the_models_loss_equals_one_computed_token_by_token(
    model: PlainModel, backbone: Backbone
) -> None:
    batch = model.encode(["12+3=", "4="], ["15", "4"], ends=False)
    nats = by_hand(backbone, "12+3=15", 5) + by_hand(backbone, "4=4", 2)
    assert float(model(**batch).loss) == pytest.approx(nats / 3, rel=1e-4)


def test_the_likelihood_is_the_sum_over_the_targets_tokens(
    model: PlainModel, backbone: Backbone
) -> None:
    assert model.loglikelihood("12+3=", "15") == pytest.approx(-by_hand(backbone, "12+3=15", 5))
    whole = model.loglikelihood("ab", "cd")
    assert whole == pytest.approx(
        model.loglikelihood("ab", "c") + model.loglikelihood("abc", "d"), rel=1e-4
    )


def test_an_answer_does_not_depend_on_its_neighbours(model: PlainModel) -> None:
    prompts = ["12+3=", "a", "hello, world"]
    together = model.generate_text(prompts, max_new_tokens=6, do_sample=False)
    alone = [model.generate_text([p], max_new_tokens=6, do_sample=False)[0] for p in prompts]
    assert together == alone
    assert all(together)


def test_an_answer_is_cut_before_the_first_stop(model: PlainModel) -> None:
    (whole,) = model.generate_text(["12+3="], max_new_tokens=6, do_sample=False)
    mark = whole[3]
    (short,) = model.generate_text(["12+3="], stop=["§", mark], max_new_tokens=6, do_sample=False)
    assert short == whole[: whole.index(mark)]


def test_a_stop_that_begins_in_the_prompt_is_none(model: PlainModel) -> None:
    (whole,) = model.generate_text(["12+3="], max_new_tokens=6, do_sample=False)
    for stop in ("=" + whole[0], "that the tokenizer cannot write: \u2603"):
        (said,) = model.generate_text(["12+3="], stop=[stop], max_new_tokens=6, do_sample=False)
        assert said == whole


def test_nothing_is_written_after_every_row_has_stopped(model: PlainModel) -> None:
    calls: list[int] = []
    hook = model.model.register_forward_hook(lambda *_: calls.append(1))
    (whole,) = model.generate_text(["12+3="], max_new_tokens=20, do_sample=False)
    calls.clear()
    model.generate_text(["12+3="], stop=[whole[1]], max_new_tokens=20, do_sample=False)
    hook.remove()
    assert len(calls) == whole.index(whole[1]) + 1


def test_texts_that_fit_are_told_from_those_that_do_not(model: PlainModel) -> None:
    assert model.fits(["x" * 64, "x" * 65]) == [True, False]
    assert model.fits(["x" * 60, "x" * 61], new_tokens=4) == [True, False]
    assert model.fits(["x" * 60, "x" * 60], ["yyy", "yyyy"]) == [True, False]  # and its end


def test_a_prompt_with_its_answer_must_fit_the_context(model: PlainModel) -> None:
    with pytest.raises(CalmError, match=r"needs 65 tokens, but the context .* holds 64"):
        model.encode(["x" * 65])
    with pytest.raises(CalmError, match=r"needs 70 tokens \(60 of the text, 10 to be generated\)"):
        model.generate_text(["a", "x" * 60], max_new_tokens=10)
    assert model.generate_text(["x" * 60], max_new_tokens=4)


def test_a_frozen_model_stays_in_eval_mode(model: PlainModel, backbone: Backbone) -> None:
    model.train()
    assert not backbone.model.training
    assert model.frozen_backbones == (backbone,)


def test_a_trained_model_has_no_anchor_of_its_own() -> None:
    backbone = tiny_backbone(tokenizer=tiny_tokenizer())
    backbone.model.requires_grad_(True)
    model = PlainModel(backbone, lambda folder: None, without_adapter=None)
    assert model.frozen_backbones == ()
    assert model.train().model.training
    with pytest.raises(CalmError, match="no longer exists"), model.anchor_only():
        pass


def test_the_adapter_is_off_only_while_it_is_asked_to_be() -> None:
    log = []

    @contextmanager
    def off() -> Iterator[None]:
        log.append("off")
        yield
        log.append("on")

    model = PlainModel(tiny_backbone(), lambda folder: None, off)
    with model.anchor_only():
        assert log == ["off"]
    assert log == ["off", "on"]


def test_texts_need_a_tokenizer_and_say_so() -> None:
    model = PlainModel(tiny_backbone(), lambda folder: None)
    with pytest.raises(CalmError, match="has no tokenizer"):
        model.encode(["a"])


def test_an_empty_prompt_is_continued_and_its_first_token_counts() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    model = PlainModel(tiny_backbone(tokenizer=tokenizer), lambda _: None)
    assert model.loglikelihood("", "ab") < model.loglikelihood("", "a") < 0
    (answer,) = model.generate_text([""], max_new_tokens=2, do_sample=False)
    assert answer
    tokenizer.eos_token = None
    with pytest.raises(CalmError, match="empty prompt"):
        model.generate_text([""], max_new_tokens=2)
