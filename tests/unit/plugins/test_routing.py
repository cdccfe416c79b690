"""Routing: who speaks, how that is learnt, and what is said across different tokenizers."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, TextStreamer

from calm_lightning.backbone import Backbone
from calm_lightning.checkpoint import load
from calm_lightning.collate import IGNORED
from calm_lightning.contracts import CalmError
from calm_lightning.language_model import PlainModel
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_lightning.testing.tokenizers import text_tokenizer
from calm_plugins.compositions.routing import Ensemble, PromptRouter, TokenRouter
from calm_plugins.compositions.routing.calibration import calibrate, read_prompts
from calm_plugins.compositions.routing.said import Said, stretches
from calm_plugins.compositions.routing.translation import Translation, token_texts

PROMPTS = ["abc", "x+y=1", "q"]
TARGETS = ["12", "zz9", "k"]


def anchor() -> Backbone:
    return tiny_backbone(width=16, layers=2, tokenizer=tiny_tokenizer(), name="the anchor")


def other(seed: int = 1, tokenizer: Any = None) -> Backbone:
    tokenizer = tokenizer or tiny_tokenizer()
    return tiny_backbone(
        "gpt2", width=8, layers=1, vocab=len(tokenizer), seed=seed, tokenizer=tokenizer
    )


def renumbered() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with other ids for the same characters."""
    said = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    tokens = list(said["model"]["vocab"])
    kept, moved = tokens[:2], tokens[2:]
    random.Random(3).shuffle(moved)
    said["model"]["vocab"] = {token: i for i, token in enumerate([*kept, *moved])}
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(said)),
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def disturb(model: nn.Module, noise: float = 0.5) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += noise * torch.randn_like(parameter)


def logits_of(backbone: Backbone, ids: Tensor) -> Tensor:
    return backbone.model(input_ids=ids).logits


def built(composition: Any, *augmenting: Backbone) -> Any:
    model = composition.compose(anchor(), list(augmenting) or [other()])
    disturb(model)
    return model.eval()


# ---------------------------------------------------------------- token by token


@pytest.mark.parametrize(("threshold", "speaker"), [(1.0, 0), (0.0, 1)])
def test_at_its_ends_the_threshold_silences_a_model(threshold: float, speaker: int) -> None:
    model = built(TokenRouter(threshold))
    ids = torch.randint(2, 90, (2, 6))
    wanted = [anchor(), other()][speaker]
    assert torch.equal(model(input_ids=ids).logits, logits_of(wanted, ids))
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)
    assert model.who_spoke().tolist() == [[speaker] * 4] * 2


def test_the_training_loss_is_the_marginal_likelihood() -> None:
    model = built(TokenRouter()).train()
    batch = model.encode(PROMPTS, TARGETS)
    ids, labels = batch["input_ids"], batch["labels"]
    own = {"attention_mask": batch["attention_mask"]}
    states = anchor().model(input_ids=ids, output_hidden_states=True, **own).hidden_states[-1]
    speaks = model.head(states[:, :-1]).sigmoid()[..., 0]
    wanted = labels[:, 1:]
    said = []
    for backbone in (anchor(), other()):
        probs = backbone.model(input_ids=ids, **own).logits[:, :-1].softmax(-1)
        said.append(probs.gather(-1, wanted.clamp(min=0)[..., None])[..., 0])
    mixed = (1 - speaks) * said[0] + speaks * said[1]
    expected = -mixed.log()[wanted != IGNORED].mean()
    torch.testing.assert_close(model(**batch).loss, expected, atol=1e-5, rtol=1e-5)


def test_the_head_learns_who_knows_the_next_token() -> None:
    model = TokenRouter().compose(anchor(), [other()]).train()
    ids = torch.randint(2, 14, (64, 3))
    labels = torch.full_like(ids, IGNORED)
    knows = ids[:, 1] < 8  # on these the augmenting model is right, on the others the anchor
    best = [logits_of(each, ids[:, :2])[:, -1].argmax(-1) for each in (anchor(), other())]
    labels[:, 2] = ids[:, 2] = torch.where(knows, best[1], best[0])
    optimizer = torch.optim.Adam([p for _, p in model.trainable_parameters()], 0.05)
    for _ in range(80):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.eval()
    said = model(input_ids=ids[:, :2]).logits[:, -1].argmax(-1)
    assert (said == labels[:, 2]).float().mean() > 0.9


def test_only_the_head_is_trained() -> None:
    for composition, count in ((TokenRouter(), 17), (PromptRouter(), 17), (Ensemble(), 1)):
        model = composition.compose(anchor(), [other()])
        assert sum(p.numel() for _, p in model.trainable_parameters()) == count
        model.train()
        assert not any(module.training for module in model.anchor.modules())
        model(**model.encode(PROMPTS, TARGETS)).loss.backward()
        frozen = [p for backbone in model.frozen_backbones for p in backbone.model.parameters()]
        assert all(p.grad is None for p in frozen)


def test_of_several_models_the_likeliest_is_measured_against_the_anchor() -> None:
    model = built(TokenRouter(), other(1), other(2))
    ids = torch.randint(2, 90, (16, 9))
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6)
    assert set(model.who_spoke().flatten().tolist()) == {0, 1, 2}
    texts = [{said.speaker for said in row} for row in model.last_said()]
    assert set().union(*texts) == {"anchor", "augmenting 0", "augmenting 1"}


# ---------------------------------------------------------------- who spoke


@pytest.mark.parametrize("composition", [TokenRouter(), Ensemble(), PromptRouter()], ids=repr)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_what_was_said_by_whom_adds_up_to_the_answers(composition: Any, options: Any) -> None:
    model = built(composition)
    answers = model.generate_text(PROMPTS, max_new_tokens=8, do_sample=False, **options)
    assert ["".join(said.text for said in row) for row in model.last_said()] == answers
    assert model.last_marked()[0].startswith(("[anchor]", "[augmenting]"))


def test_an_answer_that_was_cut_is_told_as_far_as_it_goes() -> None:
    model = built(TokenRouter())
    (whole,) = model.generate_text(["abc"], max_new_tokens=8, do_sample=False)
    (cut,) = model.generate_text(["abc"], stop=[whole[3]], max_new_tokens=8, do_sample=False)
    assert len(cut) < len(whole)
    assert "".join(said.text for said in model.last_said()[0]) == cut


def test_each_speaker_is_the_one_whose_token_was_taken() -> None:
    model = built(TokenRouter())
    ids = torch.randint(2, 90, (3, 7))
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    sequences = model.generate(input_ids=ids, **options)
    speakers = model.who_spoke()
    assert len(set(speakers.flatten().tolist())) == 2
    best = torch.stack([logits_of(b, sequences)[:, 6:-1].argmax(-1) for b in (anchor(), other())])
    assert torch.equal(best.gather(0, speakers[None])[0], sequences[:, 7:])


def test_a_character_of_several_tokens_belongs_to_whoever_ends_it() -> None:
    tokenizer = text_tokenizer("byte_bpe_split")
    ids = tokenizer("a\U0001f980b")["input_ids"]
    assert tokenizer.decode(ids[:2]).endswith("\ufffd")
    said = stretches(tokenizer, ids, [0, 0, *[1] * (len(ids) - 2)], 1)
    assert said == [Said("anchor", "a"), Said("augmenting", "\U0001f980b")]


def test_nobody_has_spoken_before_anything_was_said() -> None:
    with pytest.raises(CalmError, match="Nothing was generated yet"):
        built(TokenRouter()).last_said()


def test_with_the_anchor_alone_it_spoke_alone() -> None:
    model = built(TokenRouter(0.0))
    with model.anchor_only():
        (answer,) = model.generate_text(["abc"], max_new_tokens=4, do_sample=False)
    assert model.last_said() == [[Said("anchor", answer)]]


# ---------------------------------------------------------------- all at once


def test_an_ensemble_is_the_weighted_mean_of_distributions() -> None:
    model = Ensemble(anchor_share=0.7).compose(anchor(), [other(1), other(2)]).eval()
    assert model.weights == pytest.approx([0.7, 0.15, 0.15])
    ids = torch.randint(2, 90, (2, 6))
    probs = [logits_of(b, ids).softmax(-1) for b in (anchor(), other(1), other(2))]
    expected = 0.7 * probs[0] + 0.15 * probs[1] + 0.15 * probs[2]
    torch.testing.assert_close(model(input_ids=ids).logits.exp(), expected)


def test_all_models_count_alike_unless_told_otherwise() -> None:
    model = Ensemble().compose(anchor(), [other(1), other(2)])
    assert model.weights == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5])
def test_a_weight_at_which_nothing_can_be_learnt_is_refused(share: float) -> None:
    with pytest.raises(CalmError, match=f"anchor_share={share}"):
        Ensemble(anchor_share=share)


# ---------------------------------------------------------------- different tokenizers


def test_a_translation_says_the_same_by_other_ids() -> None:
    speaker = other(tokenizer=renumbered())
    ids = tiny_tokenizer()("abc12")["input_ids"]
    said, rest = Translation(anchor(), speaker).next_tokens([ids], torch.device("cpu"))
    theirs = speaker.require_tokenizer()
    own = torch.tensor([theirs("abc12")["input_ids"]])
    expected = logits_of(speaker, own)[0, -1].softmax(-1)
    for character in "az05~":
        mine, yours = (t.convert_tokens_to_ids([character])[0] for t in (tiny_tokenizer(), theirs))
        assert mine != yours
        assert float(said[0, mine]) == pytest.approx(float(expected[yours]), rel=1e-4)
    assert float(said[0, 1]) == pytest.approx(float(expected[1]), rel=1e-4)  # the end is the end
    assert float(rest[0, 0]) == pytest.approx(float(expected[0]), abs=1e-5)  # padding has no text


def test_at_every_place_a_translated_model_has_read_what_is_before_it() -> None:
    speaker = other(tokenizer=renumbered())
    model = built(TokenRouter(0.0), speaker)
    assert model.others == (0,)
    ours, theirs = (
        torch.tensor([t("abc12")["input_ids"]]) for t in (tiny_tokenizer(), renumbered())
    )
    said = model(input_ids=ours).logits.exp()
    alone, own = logits_of(speaker, theirs).softmax(-1), logits_of(anchor(), ours).softmax(-1)
    rest = alone[..., 0]  # padding has no text, so the anchor decides
    for character in "az05~":
        mine, yours = (
            t.convert_tokens_to_ids([character])[0] for t in (tiny_tokenizer(), renumbered())
        )
        torch.testing.assert_close(said[..., mine], alone[..., yours] + rest * own[..., mine])


def test_a_longer_token_goes_to_the_token_that_begins_it() -> None:
    reader = text_tokenizer("byte_bpe")
    speaker = tiny_backbone("gpt2", 8, 1, len(reader), tokenizer=reader)
    places = Translation(anchor(), speaker)._places
    texts = token_texts(reader)
    long = [token for token, text in enumerate(texts) if text and len(text) > 2 and token in places]
    assert long
    for token in long:
        assert texts[token][0] == tiny_tokenizer().decode([places[token]])  # type: ignore[index]


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe", "unigram", "wordpiece"])
@pytest.mark.parametrize("composition", [TokenRouter(), Ensemble()], ids=repr)
def test_other_tokens_are_mixed_alike_with_and_without_a_cache(kind: str, composition: Any) -> None:
    reader = text_tokenizer(kind)
    writer = text_tokenizer("byte_bpe_split")
    first = tiny_backbone(width=16, layers=2, vocab=len(writer), tokenizer=writer)
    model = composition.compose(first, [other(tokenizer=reader)])
    disturb(model)
    model.eval()
    prompts = ["The quick", "Straße 3", "д"]
    batch = model.encode(prompts)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_logits": True, "eos_token_id": None}
    cached, plain = (model.generate(**batch, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    for one, two in zip(cached.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    length = batch["input_ids"].shape[1]
    labels = cached.sequences.clone()
    labels[:, :length] = IGNORED
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 6), value=1)
    loss = model(input_ids=cached.sequences, attention_mask=mask, labels=labels).loss
    spoken = torch.stack(plain.logits, 1).log_softmax(-1)
    expected = -spoken.gather(-1, cached.sequences[:, length:, None]).mean()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)


def test_half_a_character_is_the_anchors_own_affair() -> None:
    writer = text_tokenizer("byte_bpe_split")
    first = tiny_backbone(width=16, layers=2, vocab=len(writer), tokenizer=writer)
    ids = writer("\U0001f980")["input_ids"]  # a crab, of which no token is the whole
    assert len(ids) > 1
    translation = Translation(first, other(tokenizer=text_tokenizer("unigram")))
    said, rest = translation.next_tokens([ids[:-1], ids], torch.device("cpu"))
    assert float(said[0].sum()) == 0
    assert float(rest[0]) == 1
    assert float(said[1].sum()) > 0


def test_a_tokenizer_that_cannot_write_what_the_other_says_is_refused() -> None:
    few = tiny_tokenizer(5)
    digits = tiny_backbone(width=16, layers=2, vocab=5, tokenizer=few)
    with pytest.raises(CalmError, match=r"can write only .* of the .* tokens"):
        Ensemble().compose(digits, [other(tokenizer=text_tokenizer("characters"))])


def test_other_ids_without_tokenizers_are_refused() -> None:
    with pytest.raises(CalmError, match="no tokenizers are given"):
        Ensemble().compose(tiny_backbone(vocab=97), [tiny_backbone(vocab=40)])


# ---------------------------------------------------------------- prompt by prompt


def test_a_prompt_is_answered_as_by_the_model_alone() -> None:
    model = built(PromptRouter(), other(1), other(2))
    prompts = [*PROMPTS, "hello", "7*8=", "Zq", "(((", "u u u"]
    chosen = model.route(prompts)
    assert len(set(chosen)) > 1
    answers = model.generate_text(prompts, max_new_tokens=5, do_sample=False)
    for prompt, speaker, answer in zip(prompts, chosen, answers, strict=True):
        backbone = [anchor(), other(1), other(2)][speaker]
        alone = PlainModel(backbone, lambda folder: None)
        assert alone.generate_text([prompt], max_new_tokens=5, do_sample=False) == [answer]
    assert [row[0].speaker for row in model.last_said()] == [
        "anchor" if speaker == 0 else f"augmenting {speaker - 1}" for speaker in chosen
    ]


def test_ids_are_continued_by_the_model_that_texts_are_answered_by() -> None:
    for decide_by in ("state", "likelihood"):
        model = built(PromptRouter(decide_by))
        answers = model.generate_text(PROMPTS, max_new_tokens=5, do_sample=False)
        batch = model.encode(PROMPTS)
        sequences = model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0)
        new = sequences[:, batch["input_ids"].shape[1] :]
        assert model.anchor_backbone.require_tokenizer().batch_decode(new) == answers
        assert model.who_spoke()[:, 0].tolist() == model.route(PROMPTS)


def test_several_answers_to_a_prompt_stay_together() -> None:
    model = built(PromptRouter(), other(1), other(2))
    prompts = [*PROMPTS, "hello", "7*8="]
    assert len(set(model.route(prompts))) > 1
    answers = model.generate_text(prompts, max_new_tokens=4, num_beams=2, num_return_sequences=2)
    one_by_one = [
        answer
        for prompt in prompts
        for answer in model.generate_text(
            [prompt], max_new_tokens=4, num_beams=2, num_return_sequences=2
        )
    ]
    assert answers == one_by_one


def test_trained_by_targets_it_learns_whose_loss_is_lower() -> None:
    model = PromptRouter().compose(anchor(), [other()]).train()
    rng = random.Random(0)
    prompts = ["".join(rng.choices("abcdefgh", k=4)) for _ in range(48)]
    speaks = [prompt[-1] in "abcd" for prompt in prompts]
    alone = [PlainModel(each, lambda folder: None) for each in (anchor(), other())]
    targets = [
        alone[int(who)].generate_text([prompt], max_new_tokens=4, do_sample=False)[0]
        for prompt, who in zip(prompts, speaks, strict=True)
    ]
    batch = model.encode(prompts, targets, ends=False)
    optimizer = torch.optim.Adam([p for _, p in model.trainable_parameters()], 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    right = sum(a == int(b) for a, b in zip(model.route(prompts), speaks, strict=True))
    assert right / len(prompts) > 0.9


def test_the_loss_is_that_of_the_model_that_answers() -> None:
    for decide_by in ("state", "likelihood"):
        model = built(PromptRouter(decide_by))
        total, count = 0.0, 0
        for prompt, target, who in zip(PROMPTS, TARGETS, model.route(PROMPTS), strict=True):
            alone = PlainModel([anchor(), other()][who], lambda folder: None)
            total -= alone.loglikelihood(prompt, target)
            count += len(target)
        batch = model.encode(PROMPTS, TARGETS, ends=False)
        assert float(model(**batch).loss) == pytest.approx(total / count, rel=1e-4)


def test_by_likelihood_the_score_is_that_of_the_prompt() -> None:
    model = PromptRouter("likelihood").compose(anchor(), [other()]).eval()
    own, theirs = (PlainModel(b, lambda folder: None) for b in (anchor(), other()))
    gain = theirs.loglikelihood("a", "bcd") - own.loglikelihood("a", "bcd")
    (score,) = model.scores(["abcd"]).tolist()
    assert score == pytest.approx(torch.tensor(gain / 3).sigmoid().item(), rel=1e-4)


# ---------------------------------------------------------------- prompts in other tokens


@pytest.mark.parametrize("decide_by", ["state", "likelihood"])
def test_a_model_with_other_tokens_answers_in_its_own(decide_by: Any) -> None:
    reader = text_tokenizer("characters")
    model = built(PromptRouter(decide_by, threshold=0.0), other(tokenizer=reader))
    prompts = ["The fox", "dog"]
    assert model.route(prompts) == [1, 1]
    alone = PlainModel(other(tokenizer=reader), lambda folder: None)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert model.generate_text(prompts, **options) == alone.generate_text(prompts, **options)
    targets = ["es", "s"]
    nats = -sum(alone.loglikelihood(p, t) for p, t in zip(prompts, targets, strict=True))
    loss = model(**model.encode(prompts, targets, ends=False)).loss
    assert float(loss) == pytest.approx(nats / 3, rel=1e-4)  # three tokens of the anchor
    model.train()
    assert torch.isfinite(model(**model.encode(prompts, targets)).loss)


def test_what_is_printed_is_in_the_words_of_whoever_answers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = built(PromptRouter(threshold=0.0), other(tokenizer=text_tokenizer("characters")))
    streamer = TextStreamer(tiny_tokenizer(), skip_prompt=True)
    (answer,) = model.generate_text(["dog"], streamer=streamer, max_new_tokens=5, do_sample=False)
    assert capsys.readouterr().out.strip() == answer.strip()


def test_in_token_ids_it_cannot_answer() -> None:
    model = built(PromptRouter(), other(tokenizer=text_tokenizer("characters")))
    with pytest.raises(CalmError, match=r"other tokens than the anchor.*generate_text"):
        model.generate(**model.encode(PROMPTS), max_new_tokens=2)
    batch = {k: v for k, v in model.encode(["a"], ["b"]).items() if "augmenting" not in k}
    with pytest.raises(CalmError, match="none of its own in the batch"):
        model(**batch)
    with model.anchor_only():
        assert model.generate(**model.encode(PROMPTS), max_new_tokens=2).shape[0] == 3


# ---------------------------------------------------------------- thresholds and shares


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_a_calibrated_threshold_gives_the_wanted_share(share: float) -> None:
    model = built(PromptRouter())
    rng = random.Random(1)
    prompts = ["".join(rng.choices("abcxyz0123+-", k=5)) for _ in range(40)]
    found = model.calibrate(prompts, share)
    assert found.share == pytest.approx(share, abs=1 / 40)
    routed = sum(who > 0 for who in model.route(prompts))
    assert routed / 40 == pytest.approx(found.share)


def test_equal_scores_cannot_be_shared_out_and_that_is_told() -> None:
    assert calibrate(torch.full((8,), 0.5), 0.3).share == 0.0


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 1.2])
def test_a_share_is_between_nothing_and_everything(share: float) -> None:
    with pytest.raises(CalmError, match=f"share={share}.*between 0 and 1"):
        PromptRouter(share=share, calibration="prompts.txt")
    with pytest.raises(CalmError, match=f"share={share}.*between 0 and 1"):
        built(PromptRouter()).calibrate(PROMPTS, share)


@pytest.mark.parametrize("threshold", [-0.1, 1.1])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    for kind in (PromptRouter, TokenRouter):
        with pytest.raises(CalmError, match=f"threshold={threshold}.*between 0 and 1"):
            kind(threshold=threshold)
    with pytest.raises(CalmError, match=f"threshold={threshold}"):
        built(PromptRouter()).threshold = threshold


def test_a_share_needs_prompts() -> None:
    with pytest.raises(CalmError, match="the two go together"):
        PromptRouter(share=0.5)
    with pytest.raises(CalmError, match="the two go together"):
        PromptRouter(calibration="prompts.txt")


def test_the_share_is_met_on_the_prompts_of_a_file_and_again_after_training(tmp_path: Path) -> None:
    prompts = [f"{a}{b}" for a in "abcd" for b in "wxyz"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    model = PromptRouter(share=0.25, calibration=str(file)).compose(anchor(), [other()]).eval()
    assert model.threshold == 0.5  # untrained, all prompts score alike
    for _ in range(2):
        model.train()
        model(**model.encode(["a"], ["b"])).loss.backward()
        disturb(model)
        model.eval()
        assert sum(who > 0 for who in model.route(prompts)) == 4


def test_prompts_of_a_plain_file_are_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo\u2028still two\n")
    assert read_prompts(file) == ["one", "two\u2028still two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"promt": "b"}\n', "line 2: expected an object"),
        ("p.jsonl", '{"prompt": 3}\n', "line 1: .*is 3"),
        ("p.jsonl", "nothing\n", "line 1: expected"),
        ("p.txt", "\n \n", "no prompt in it"),
    ],
)
def test_a_file_of_prompts_at_fault_is_told(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CalmError, match=message):
        read_prompts(tmp_path / name)


def test_prompts_that_cannot_be_read_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    router = PromptRouter(share=0.5, calibration=str(tmp_path / "prompts.txt"))
    with pytest.raises(CalmError, match=r"prompts\.txt: its prompts cannot be read"):
        router.compose(anchor(), [other()])
    (tmp_path / "prompts.txt").write_text("short\n" + "x" * 80)  # the contexts hold 64
    with pytest.raises(CalmError, match=r"prompts\.txt: 1 of its prompts .* first: 'xxx"):
        router.compose(anchor(), [other()])


def test_a_model_is_saved_with_the_threshold_that_was_found(tmp_path: Path) -> None:
    model = built(PromptRouter())
    found = model.calibrate([*PROMPTS, "u", "v+w"], 0.4)
    model.save_pretrained(tmp_path)
    again = load(tmp_path, anchor(), [other()])
    assert again.threshold == found.threshold  # type: ignore[attr-defined]
    assert again.route(PROMPTS) == model.route(PROMPTS)  # type: ignore[attr-defined]


# ---------------------------------------------------------------- at fault


@pytest.mark.parametrize("composition", [TokenRouter(), Ensemble(), PromptRouter()], ids=repr)
def test_there_must_be_somebody_to_choose(composition: Any) -> None:
    with pytest.raises(CalmError, match="needs an augmenting model"):
        composition.compose(anchor(), [])


def test_a_cache_of_the_anchor_alone_is_refused() -> None:
    model = built(TokenRouter())
    ids = torch.randint(2, 90, (1, 4))
    with model.anchor_only():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(CalmError, match="filled by the anchor alone"):
        model(input_ids=ids, past_key_values=cache)


def test_a_foreign_cache_is_refused() -> None:
    ids = torch.randint(2, 90, (1, 4))
    cache = anchor().model(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(CalmError, match="goes on from the cache that it returned"):
        built(TokenRouter())(input_ids=ids, past_key_values=cache)


def test_a_routed_prompt_cannot_be_disturbed_without_a_word() -> None:
    model = built(PromptRouter())
    with model.disturbed("zero"), pytest.raises(CalmError, match="answers cannot be disturbed"):
        model.generate_text(["2"], max_new_tokens=1)


def test_one_row_alone_is_disturbed_too() -> None:
    model, ids = built(Ensemble()), torch.tensor([[5, 6, 7]])
    with model.disturbed("shuffle"):
        shuffled = model(input_ids=ids).logits
    assert not torch.allclose(shuffled, model(input_ids=ids).logits)


def test_an_unknown_model_cannot_be_disturbed() -> None:
    with (
        pytest.raises(CalmError, match=r"no augmenting model \[1\]"),
        built(Ensemble()).disturbed("zero", 1),
    ):
        pass


def test_models_are_disturbed_one_by_one_or_together() -> None:
    model = built(Ensemble(), other(1), other(2))
    ids = torch.randint(2, 90, (2, 6))
    with model.disturbed("zero"):
        together = model(input_ids=ids).logits
    with model.disturbed("zero", 0), model.disturbed("zero", 1):
        assert torch.equal(model(input_ids=ids).logits, together)
    with model.disturbed("zero", 1):
        assert not torch.allclose(model(input_ids=ids).logits, together)


def test_what_was_decided_moves_with_the_rows_of_the_cache() -> None:
    model = built(PromptRouter())
    ids = torch.randint(2, 90, (3, 4))
    cache = model(input_ids=ids, use_cache=True).past_key_values
    cache.decision = torch.tensor([[0.0], [1.0], [2.0]])
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert cache.decision.flatten().tolist() == [2, 0, 0]
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3]))
    assert cache.decision.flatten().tolist() == [2, 0]
    cache.reset()
    assert cache.decision is None
