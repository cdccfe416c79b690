"""Rewriting: candidates that are drawn once and kept, and a small model that learns from them."""

import copy
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration, TextStreamer

from calm_lightning.backbone import Backbone, BackboneSource
from calm_lightning.checkpoint import load, start_from
from calm_lightning.collate import IGNORED
from calm_lightning.contracts import CalmError, EvaluationSet, ExactMatch, Example, Task
from calm_lightning.language_model import PlainModel
from calm_lightning.module import CalmModule
from calm_lightning.run import quiet_libraries
from calm_lightning.testing import TinySource, tiny_backbone, tiny_tokenizer
from calm_lightning.testing.tokenizers import text_tokenizer
from calm_plugins.compositions.rewriting import Rewriting, drawing, pool
from calm_plugins.compositions.rewriting.corrector import log_likelihoods
from calm_plugins.compositions.rewriting.drawing import Drawing, GumbelNoise, draw
from calm_plugins.compositions.rewriting.store import Store

PROMPTS = ["abc", "x+y", "q"]
FEW: dict[str, Any] = {"sampled": 2, "max_new_tokens": 5, "separator": "|"}
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}


def anchor(seed: int = 0) -> Backbone:
    return tiny_backbone(
        width=16, layers=2, seed=seed, tokenizer=tiny_tokenizer(), name=f"large {seed}"
    )


def small() -> Backbone:
    return tiny_backbone("gpt2", 8, 1, seed=9, tokenizer=tiny_tokenizer(), name="small")


def built(**settings: Any) -> Any:
    return Rewriting(**{**FEW, **settings}).compose(anchor(), [small()]).eval()


def plain(backbone: Backbone) -> PlainModel:
    return PlainModel(backbone, lambda folder: None)


# ---------------------------------------------------------------- candidates


def test_the_first_candidate_is_the_models_own_answer() -> None:
    made = draw(plain(anchor()), PROMPTS, Drawing(3, max_new_tokens=5))
    assert [pool[0] for pool in made] == plain(anchor()).generate_text(PROMPTS, **GREEDY)
    assert {len(pool) for pool in made} == {4}
    assert all(len(set(pool)) > 1 for pool in made)


def test_candidates_do_not_depend_on_the_batch_they_are_drawn_in() -> None:
    how = Drawing(2, max_new_tokens=5)
    together = draw(plain(anchor()), PROMPTS, how)
    assert together == [draw(plain(anchor()), [prompt], how)[0] for prompt in PROMPTS]
    assert together[0][1:] != draw(plain(anchor()), PROMPTS[:1], Drawing(2, 0.6, 5, seed=1))[0][1:]


def test_examples_before_the_prompt_and_marks_after_the_answer_are_the_candidates_own() -> None:
    how = Drawing(1, max_new_tokens=5, few_shot="1+1=2;")
    (made,) = draw(plain(anchor()), ["2+2="], how)
    (whole,) = plain(anchor()).generate_text(["1+1=2;2+2="], **GREEDY)
    assert made[0] == whole
    (cut,) = draw(plain(anchor()), ["2+2="], Drawing(1, 0.6, 5, "1+1=2;", (whole[2],)))
    assert cut[0] == whole[: whole.index(whole[2])]


def test_noise_draws_by_the_temperature() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 0.5]])
    generator = torch.Generator().manual_seed(0)
    noise = GumbelNoise([generator], temperature=0.7)
    drawn = torch.tensor(
        [int(noise(torch.zeros(1, 1).long(), logits).argmax()) for _ in range(4000)]
    )
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, (logits[0] / 0.7).softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "wrong", [{"sampled": -1}, {"temperature": 0.0}, {"max_new_tokens": 0}], ids=str
)
def test_a_draw_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(CalmError, match=f"{name}={wrong[name]}"):
        Rewriting(**wrong)


# ---------------------------------------------------------------- the cache


class Forbidden(Exception):
    """Raised in place of drawing."""


def refuse(*_: Any) -> Any:
    raise Forbidden


def filled(folder: Path, **settings: Any) -> Any:
    made = built(cache=str(folder), **settings)
    made.fill(PROMPTS)
    return made


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.jsonl"))


def test_what_was_drawn_once_is_never_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = filled(tmp_path)
    monkeypatch.setattr(pool, "draw", refuse)
    again = built(cache=str(tmp_path))
    assert again.sources(PROMPTS) == first.sources(PROMPTS)
    with pytest.raises(Forbidden):
        again.fill(["another"])


def test_a_stop_half_way_loses_only_what_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "_AT_A_TIME", 3)  # one prompt at a time
    calls: Iterator[int] = iter(range(9))

    def stop(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(pool, "draw", stop)
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path)
    kept = built(cache=str(tmp_path)).pool.store
    assert [prompt in kept for prompt in PROMPTS] == [True, True, False]
    monkeypatch.setattr(pool, "draw", draw)
    assert filled(tmp_path).sources(PROMPTS) == built().sources(PROMPTS)


def test_a_line_without_an_end_counts_as_not_written(tmp_path: Path) -> None:
    filled(tmp_path)
    (shard,) = shards(tmp_path)
    whole = shard.read_text()
    shard.write_text(whole[:-4])
    assert built(cache=str(tmp_path)).pool.store._known.keys() == set(PROMPTS[:-1])
    filled(tmp_path)
    assert shard.read_text() == whole[:-4]  # nobody writes into another one's file
    assert len(shards(tmp_path)) == 2
    assert len(built(cache=str(tmp_path)).pool.store) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is damaged.*others are kept"),
        ('{"prompt": "abc"}', "line 2 is damaged"),
        ('{"prompt": "abc", "candidates": ["a"]}', "line 2: 1 candidates where 3"),
        ('{"prompt": "abc", "candidates": [1, 2, 3]}', "line 2: 3 candidates where 3 texts"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    filled(tmp_path)
    (shard,) = shards(tmp_path)
    lines = shard.read_text().split("\n")
    lines[1] = line
    shard.write_text("\n".join(lines))
    with pytest.raises(CalmError, match=message):
        filled(tmp_path)


def test_bytes_that_are_no_text_are_damage(tmp_path: Path) -> None:
    filled(tmp_path)
    (shard,) = shards(tmp_path)
    shard.write_bytes(shard.read_bytes().replace(b"x+y", b"x\xffy"))
    with pytest.raises(CalmError, match="line 2 is damaged"):
        filled(tmp_path)


def test_two_that_write_at_a_time_disturb_each_other_in_nothing(tmp_path: Path) -> None:
    one, two = built(cache=str(tmp_path)), built(cache=str(tmp_path))
    assert len(one.pool.store) == len(two.pool.store) == 0
    for prompt in PROMPTS:
        one.fill([prompt])
        two.fill([prompt + "2"])
    written = [shard.read_text() for shard in shards(tmp_path)]
    one.fill([prompt + "2" for prompt in PROMPTS])  # the other one has drawn them
    assert [shard.read_text() for shard in shards(tmp_path)] == written
    assert len(built(cache=str(tmp_path)).pool.store) == 6
    assert len(shards(tmp_path)) == 2


@pytest.mark.parametrize(
    "other", [{"sampled": 1}, {"temperature": 0.7}, {"few_shot": "1"}, {"seed": 1}, {"stop": ["z"]}]
)
def test_candidates_made_in_another_way_are_not_mixed_up(tmp_path: Path, other: Any) -> None:
    filled(tmp_path)
    assert len(built(cache=str(tmp_path), **other).pool.store) == 0


def test_of_a_cache_for_other_data_is_told(tmp_path: Path) -> None:
    filled(tmp_path)
    asked = built(cache=str(tmp_path), live=False)
    assert asked.generate_text(PROMPTS, **GREEDY) == built().generate_text(PROMPTS, **GREEDY)
    with pytest.raises(CalmError, match=r"'large 0' for 3 prompts.*not for 1.*'new'.*other data"):
        asked.encode(["abc", "new"])


def test_of_a_cache_of_another_model_is_told(tmp_path: Path) -> None:
    filled(tmp_path, sampled=1)
    before = shards(tmp_path)[0].read_bytes()
    strange = Rewriting(**{**FEW, "cache": str(tmp_path), "live": False}).compose(
        anchor(5), [small()]
    )
    print_of_it = anchor().fingerprint()[:12]
    with pytest.raises(CalmError, match=rf"no candidates of 'large 5'.*has model='{print_of_it}"):
        strange.encode(PROMPTS)
    assert shards(tmp_path)[0].read_bytes() == before


def test_of_a_cache_of_another_tokenizer_is_told(tmp_path: Path) -> None:
    filled(tmp_path, sampled=1)
    same_weights = anchor()
    same_weights.tokenizer = copy.deepcopy(same_weights.require_tokenizer())
    same_weights.tokenizer.add_tokens(["12"])
    strange = Rewriting(**{**FEW, "cache": str(tmp_path), "live": False}).compose(
        same_weights, [small()]
    )
    with pytest.raises(CalmError, match=r"no candidates of 'large 0'.*has tokenizer='"):
        strange.encode(PROMPTS)


def test_a_folder_that_was_renamed_is_refused(tmp_path: Path) -> None:
    place = filled(tmp_path).pool.store.place
    other = built(cache=str(tmp_path), seed=3).pool.store.place
    place.rename(other)
    with pytest.raises(CalmError, match=r"was made for something else.*nothing was changed"):
        built(cache=str(tmp_path), seed=3).fill(PROMPTS)


def test_a_cache_is_a_folder_that_says_what_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(CalmError, match="is a file; name a folder"):
        built(cache=str(file)).fill(PROMPTS)
    place = filled(tmp_path / "cache").pool.store.place
    (place / "about.json").write_text("{")
    with pytest.raises(CalmError, match=r"about\.json does not say"):
        built(cache=str(tmp_path / "cache")).fill(PROMPTS)


def test_without_a_cache_nothing_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    built().fill(PROMPTS)
    assert not list(tmp_path.iterdir())
    with pytest.raises(CalmError, match="live=False: without a cache"):
        Rewriting(live=False)


def test_a_write_that_fails_is_told_and_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, {"model": "m"}, 1)
    store.add({"a": ("1",)})
    (shard,) = shards(tmp_path)
    opened = Path.open

    def full(path: Path, *arguments: Any, **options: Any) -> Any:
        with opened(path, *arguments, **options) as stream:
            stream.write('{"prompt": "half')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(CalmError, match=r"cannot be written.*No space.*are kept there"):
            store.add({"b": ("2",)})
    store.add({"c": ("3",)})
    assert shard.read_text().endswith("half")
    assert Store(tmp_path, {"model": "m"}, 1)._known == {"a": ("1",), "c": ("3",)}


def test_odd_texts_survive_the_disk(tmp_path: Path) -> None:
    odd = {"a\u2028b\n": ("\x00", "\u00e9\U0001f980", '"\\n')}
    Store(tmp_path, {"model": "m"}, 3).add(odd)
    again = Store(tmp_path, {"model": "m"}, 3)
    assert {prompt: again[prompt] for prompt in odd} == odd


def test_a_worker_process_does_not_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    made = built()
    made.fill(PROMPTS)
    monkeypatch.setattr(pool, "get_worker_info", lambda: "a worker")
    made.encode(PROMPTS)
    with pytest.raises(CalmError, match=r"1 prompts have no candidates.*num_workers"):
        made.encode(["new"])


# ---------------------------------------------------------------- what the corrector reads


def test_the_corrector_reads_prompt_and_candidates() -> None:
    made = built()
    pools = draw(plain(anchor()), PROMPTS, Drawing(2, max_new_tokens=5))
    expected = ["|".join([p, *c]) + "|" for p, c in zip(PROMPTS, pools, strict=True)]
    assert made.sources(PROMPTS) == expected
    batch = made.encode(PROMPTS, ["1", "2", "3"])
    read = [ids[mask.bool()].tolist() for ids, mask in zip(*list(batch.values())[:2], strict=True)]
    ends = [f"{source}{t}<eos>" for source, t in zip(expected, "123", strict=True)]
    assert tiny_tokenizer().batch_decode(read) == ends
    assert made.last_candidates == pools


def test_without_candidates_nobody_is_asked_for_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "draw", refuse)
    assert built(reads="nothing").sources(PROMPTS) == ["abc|", "x+y|", "q|"]


def test_shuffled_each_example_reads_what_was_written_for_the_one_before() -> None:
    pools = draw(plain(anchor()), PROMPTS, Drawing(2, max_new_tokens=5))
    made = built(reads="shuffled")
    made.sources(PROMPTS)
    assert made.last_candidates == [pools[2], pools[0], pools[1]]
    made.sources(PROMPTS[:1])
    assert made.last_candidates == [pools[2]]


def test_shuffled_no_question_reads_its_own_candidates_however_it_comes() -> None:
    pools = dict(zip(PROMPTS, built().pool.of(PROMPTS), strict=True))
    made = built(reads="shuffled")

    def read(*prompts: str) -> list[tuple[str, ...]]:
        made.sources(prompts)
        return list(made.last_candidates)

    first, second, third = PROMPTS
    assert read(first) == read(first) == [()]  # nobody came before
    assert read(second) == read(second) == [pools[first]]  # asked, and then scored
    assert read(third) == [pools[second]]
    assert read(first, first, second) == [pools[second], pools[second], pools[first]]
    assert read() == []


@pytest.mark.parametrize("size", [1, 3])
def test_shuffled_a_question_is_scored_with_what_it_was_answered_with(size: int) -> None:
    made = built(reads="shuffled")
    for start in range(0, 3, size):
        prompts = PROMPTS[start : start + size]
        made.fits(prompts)
        made.generate_text(prompts, **GREEDY)
        answered = made.last_candidates
        made.encode(prompts[-1:], ["1"])  # of the others the answer does not fit, say
        assert made.last_candidates == answered[-1:]


def test_a_separator_must_be_known_to_the_corrector() -> None:
    few = tiny_tokenizer(37)
    with pytest.raises(CalmError, match=r"separator='\|': .* cannot write it"):
        Rewriting(**FEW).compose(anchor(), [tiny_backbone(vocab=37, tokenizer=few)])
    with pytest.raises(CalmError, match="separator=''"):
        Rewriting(separator="")


@pytest.mark.parametrize("what", ["encode", "generate"])
def test_a_pool_that_the_corrector_cannot_hold_is_told_and_kept(tmp_path: Path, what: str) -> None:
    made = built(sampled=4, max_new_tokens=12, cache=str(tmp_path))  # its context holds 64
    with pytest.raises(
        CalmError, match=r"cannot read a prompt with its 5 candidates of up to 12.*are kept in"
    ):
        made.encode(PROMPTS) if what == "encode" else made.generate_text(PROMPTS, **GREEDY)
    assert len(built(sampled=4, max_new_tokens=12, cache=str(tmp_path)).pool.store) == 3


def test_a_prompt_that_the_large_model_cannot_hold_is_its_own_fault() -> None:
    with pytest.raises(CalmError, match=r"context of 'large 0' holds 64") as refusal:
        built().encode(["a" * 70])
    assert "candidates" not in str(refusal.value)


# ---------------------------------------------------------------- what does not fit

OF_ALL_LENGTHS = ["abc", "a" * 30, "a" * 50, "a" * 60]
"""The last one is too long for the large model, the third with its pool for the corrector."""


@pytest.mark.parametrize(
    ("settings", "fitting"),
    [
        ({}, [True, True, False, False]),
        ({"answer": "best"}, [True, True, False, False]),
        ({"answer": "greedy"}, [True, True, True, False]),
        ({"answer": "oracle"}, [True, True, True, False]),
        ({"few_shot": "1" * 35}, [True, False, False, False]),
        ({"reads": "shuffled"}, [True, True, False, False]),
        ({"reads": "nothing"}, [True, True, True, False]),
    ],
    ids=str,
)
def test_what_fits_is_what_can_be_drawn_and_read(settings: Any, fitting: list[bool]) -> None:
    made = built(**settings)
    assert made.fits(OF_ALL_LENGTHS, new_tokens=5) == fitting
    assert made.fits(OF_ALL_LENGTHS[::-1], new_tokens=5) == fitting[::-1]
    if made.answer == "oracle":
        return  # it is asked by a task
    for prompt, fits in zip(OF_ALL_LENGTHS, fitting, strict=True):
        with nullcontext() if fits else pytest.raises(CalmError, match="context"):
            made.generate_text([prompt], **GREEDY)


def test_what_fits_with_its_target_can_be_learnt_from() -> None:
    made = built()
    prompts, targets = OF_ALL_LENGTHS[1::-1] * 2, ["1", "1", "1" * 40, "1" * 40]
    flags = made.fits(prompts, targets, ends=[True, False, True, False])
    assert flags == [True, True, False, True]
    for prompt, target, fits in zip(prompts, targets, flags, strict=True):
        if fits:
            made.encode([prompt], [target], ends=False)
    with made.anchor_only():
        assert made.fits(OF_ALL_LENGTHS, new_tokens=5) == [True, True, True, False]


def test_whether_it_fits_is_known_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    monkeypatch.setattr(pool, "draw", refuse)
    assert built(cache=str(tmp_path)).fits(PROMPTS, new_tokens=5) == [True] * 3
    with pytest.raises(Forbidden):
        built(cache=str(tmp_path)).fits(["new"], new_tokens=5)


class Asked(Task):
    """Questions, of which the last two do not fit."""

    def train_examples(self) -> list[Example]:
        return [Example("abc", "1")]

    def evaluation_sets(self) -> list[EvaluationSet]:
        examples = [Example(prompt, "1") for prompt in OF_ALL_LENGTHS]
        return [EvaluationSet("asked", examples, ExactMatch, max_new_tokens=5)]


def test_a_question_that_does_not_fit_is_not_answered_and_the_others_are() -> None:
    quiet_libraries()
    module = CalmModule(TinySource(0), Rewriting(**FEW), [TinySource(1)])
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.test(module, datamodule=Asked(), verbose=False)
    scores = trainer.callback_metrics
    assert scores["test/asked/too_long"] == 2
    assert torch.isfinite(scores["test/asked/loss_nats"])
    assert len(module.outcomes["asked"]) == 4


# ---------------------------------------------------------------- learning


def test_the_corrector_learns_and_the_models_it_came_from_do_not() -> None:
    large, little = anchor(), small()
    made = Rewriting(**FEW).compose(large, [little])
    before = [b.fingerprint(exact=True) for b in made.frozen_backbones]
    start = {name: p.detach().clone() for name, p in made.trainable_parameters()}
    made.train()
    assert made.corrector.training
    assert not made.anchor.model.training
    batch = made.encode(PROMPTS, ["12", "3", "z"])
    optimizer = torch.optim.Adam([p for _, p in made.trainable_parameters()], 0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = made(**batch).loss
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    assert made.frozen_backbones == (large, little)
    assert [b.fingerprint(exact=True) for b in made.frozen_backbones] == before
    frozen = [p for b in made.frozen_backbones for p in b.model.parameters()]
    assert not any(p.requires_grad or p.grad is not None for p in frozen)
    assert all(not torch.equal(p, start[name]) for name, p in made.trainable_parameters())


def test_fresh_it_starts_with_weights_of_its_own() -> None:
    torch.manual_seed(9)  # the seed of the model that it is a copy of
    fresh, copied = (dict(built(fresh=new).trainable_parameters()) for new in (True, False))
    assert fresh.keys() == copied.keys()
    first = next(iter(fresh))
    assert not torch.equal(fresh[first], copied[first])


def test_saved_and_loaded_it_answers_alike(tmp_path: Path) -> None:
    made = built()
    for _, weight in made.trainable_parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    made.save_pretrained(tmp_path)
    again = load(tmp_path, anchor(), [small()])
    assert again.generate_text(PROMPTS, **GREEDY) == made.generate_text(PROMPTS, **GREEDY)
    with pytest.raises(CalmError, match="anchor model"):
        load(tmp_path, anchor(3), [small()])


def test_switched_off_it_is_the_anchor() -> None:
    made = built()
    with made.anchor_only():
        assert made.generate_text(PROMPTS, **GREEDY) == plain(anchor()).generate_text(
            PROMPTS, **GREEDY
        )
    assert made.generate_text(PROMPTS, **GREEDY) != plain(anchor()).generate_text(PROMPTS, **GREEDY)


def test_an_answer_is_printed_in_words_of_the_corrector(capsys: pytest.CaptureFixture[str]) -> None:
    made = built()
    streamer = TextStreamer(tiny_tokenizer())
    (answer,) = made.generate_text(PROMPTS[:1], streamer=streamer, **GREEDY)
    assert capsys.readouterr().out.strip() == answer.strip()


def test_a_conversation_is_refused() -> None:
    with pytest.raises(CalmError, match="conversation is not rewritten"):
        built().chat([{"role": "user", "content": "hello"}])


# ---------------------------------------------------------------- rows of a comparison


def test_greedy_and_best_are_candidates() -> None:
    pools = built().pool.of(PROMPTS)
    assert built(answer="greedy").generate_text(PROMPTS) == [each[0] for each in pools]
    made = built(answer="best")
    answers = made.generate_text(PROMPTS)
    for source, answer, candidates in zip(made.sources(PROMPTS), answers, pools, strict=True):
        ends = [f"{candidate}<eos>" for candidate in candidates]
        likely = [made.corrector.loglikelihood(source, end) for end in ends]
        assert answer == candidates[likely.index(max(likely))]


def test_an_oracle_knows_the_truth_and_nothing_else() -> None:
    pools = built().pool.of(PROMPTS)
    examples = [
        Example(PROMPTS[0], pools[0][2]), Example(PROMPTS[1], "not there"),
        Example(PROMPTS[2], pools[2][1]),
    ]  # fmt: skip
    kind = EvaluationSet("set", examples, ExactMatch)
    made = built(answer="oracle")
    answers = made.answer_examples(examples, PROMPTS, kind)
    assert [answers[0], answers[2]] == [examples[0].target, examples[2].target]
    assert answers[1] in pools[1]
    with pytest.raises(CalmError, match="by a task, not by a prompt"):
        made.generate_text(PROMPTS)
    with pytest.raises(CalmError, match="no score for a single answer"):
        made.answer_examples(examples, PROMPTS, EvaluationSet("set", examples, None))


def test_any_other_answer_to_examples_is_that_to_their_prompts() -> None:
    kind = EvaluationSet("set", [], ExactMatch, max_new_tokens=5)
    examples = [Example(prompt, "1") for prompt in PROMPTS]
    made = built()
    assert made.answer_examples(examples, PROMPTS, kind) == made.generate_text(PROMPTS, **GREEDY)


@pytest.mark.parametrize("answer", ["greedy", "oracle"])
def test_where_the_corrector_has_no_part_nothing_is_trained(answer: Any) -> None:
    assert list(built(answer=answer).trainable_parameters()) == []


@pytest.mark.parametrize("answer", ["greedy", "oracle"])
def test_of_a_trained_corrector_another_answer_can_be_asked(tmp_path: Path, answer: Any) -> None:
    trained = built()
    for _, weight in trained.trainable_parameters():
        weight.data += 0.1
    trained.save_pretrained(tmp_path / "trained")
    made = built(answer=answer)
    start_from(made, tmp_path / "trained")
    assert made.own_state().keys() == trained.own_state().keys()
    assert all(torch.equal(made.own_state()[n], w) for n, w in trained.own_state().items())
    made.save_pretrained(tmp_path / "again")
    load(tmp_path / "again", anchor(), [small()])


def test_another_large_model_can_take_its_place(tmp_path: Path) -> None:
    large = anchor(5)
    large.model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    own, theirs = (draw(plain(b), PROMPTS, Drawing(2, 0.6, 5)) for b in (anchor(), large))
    assert own != theirs
    made = built(tested_on={"path": str(tmp_path)})
    assert made.pool.of(PROMPTS) == theirs
    assert made.train().pool.of(PROMPTS) == own
    assert made.frozen_backbones[0].name == "large 0"
    swapped = built()
    swapped.swap(large)
    assert swapped.pool.of(PROMPTS) == theirs
    assert swapped.train().pool.of(PROMPTS) == own
    assert not any("tested_on" in name for name, _ in made.trainable_parameters())


def test_settings_with_sources_build_the_same_again(tmp_path: Path) -> None:
    source = BackboneSource(str(tmp_path), weights="random", seed=3)
    composition = Rewriting(corrector=source, stop=["\n"])
    said = json.loads(json.dumps(composition.settings()))
    assert Rewriting(**said).corrector == source
    assert Rewriting(**said).settings() == composition.settings()


# ---------------------------------------------------------------- other correctors


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder-decoder with its tokenizer."""
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = text_tokenizer("unigram")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        pad_token_id=1, eos_token_id=1, decoder_start_token_id=1, initializer_factor=5.0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_encoder(t5: Path, **settings: Any) -> Any:
    settings = {**FEW, "separator": " -- ", "corrector": {"path": str(t5)}, **settings}
    return Rewriting(**settings).compose(anchor(), []).eval()


def test_an_encoder_decoder_reads_the_source_and_is_asked_for_the_target(t5: Path) -> None:
    made = with_encoder(t5)
    targets = ["the lazy dog", "42"]
    batch = made.encode(PROMPTS[:2], targets)
    tokenizer = text_tokenizer("unigram")
    model = T5ForConditionalGeneration.from_pretrained(t5).eval()
    total, count = 0.0, 0
    for source, target in zip(made.sources(PROMPTS[:2]), targets, strict=True):
        labels = torch.tensor([tokenizer(target)["input_ids"]])
        ids = torch.tensor([tokenizer(source)["input_ids"]])
        loss = model(input_ids=ids, labels=labels).loss
        total += float(loss.detach()) * labels.shape[1]
        count += labels.shape[1]
    assert int((batch["labels"][:, 1:] != IGNORED).sum()) == count  # as the trainer counts
    assert float(made(**batch).loss.detach()) == pytest.approx(total / count, rel=1e-4)
    alone = [float(log_likelihoods(made.corrector, [s], [t])) for s, t in
             zip(made.sources(PROMPTS[:2]), targets, strict=True)]  # fmt: skip
    assert -sum(alone) == pytest.approx(total, rel=1e-4)


def test_an_encoder_decoder_answers_alone_as_in_a_batch(t5: Path) -> None:
    made = with_encoder(t5)
    options = {"max_new_tokens": 6, "do_sample": False}
    together = made.generate_text(PROMPTS, **options)
    assert together == [made.generate_text([prompt], **options)[0] for prompt in PROMPTS]
    mark = max(together, key=len)[2]
    cut = made.generate_text(PROMPTS, stop=[mark], **options)
    assert cut == [text.split(mark)[0] for text in together]
    assert made.generate_text(PROMPTS, stop=["\u2603"], **options) == together  # it cannot write it
    beams = made.generate_text(PROMPTS, num_beams=3, max_new_tokens=6)
    assert len(beams) == len(PROMPTS)


def test_an_encoder_decoder_is_trained_saved_and_loaded(t5: Path, tmp_path: Path) -> None:
    made = with_encoder(t5).train()
    batch = made.encode(PROMPTS, ["the fox", "dog", "old"])
    optimizer = torch.optim.Adam([p for _, p in made.trainable_parameters()], 0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = made(**batch).loss
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0]
    assert len(made.frozen_backbones) == 1
    made.eval().save_pretrained(tmp_path)
    again = load(tmp_path, anchor())
    options = {"max_new_tokens": 6, "do_sample": False}
    assert again.generate_text(PROMPTS, **options) == made.generate_text(PROMPTS, **options)


def test_built_from_a_config_a_corrector_has_the_weights_of_its_seed(t5: Path) -> None:
    first, same, other = (
        next(with_encoder(t5, corrector={"path": str(t5), "weights": "random", "seed": seed})
             .trainable_parameters())[1]
        for seed in (1, 1, 2)
    )  # fmt: skip
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("decoder_only", [False, True])
def test_every_run_draws_a_corrector_of_its_own(
    t5: Path, tmp_path: Path, decoder_only: bool
) -> None:
    small().model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    source = {"path": str(tmp_path if decoder_only else t5), "weights": "random"}
    separator = "|" if decoder_only else " -- "

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        torch.rand(seed)  # what else a run has drawn by then plays no part
        made = Rewriting(**FEW | {"corrector": source, "separator": separator})
        return next(made.compose(anchor(), []).trainable_parameters())[1]

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


def test_an_encoder_decoder_tells_what_fits_it(t5: Path) -> None:
    made = with_encoder(t5)
    made.corrector.model.config.max_position_embeddings = 24
    texts = ["the fox", "the lazy dog " * 5]
    assert made.corrector.fits(texts, new_tokens=23) == [True, False]
    assert made.corrector.fits(texts, new_tokens=24) == [False, False]
    assert made.corrector.fits(texts[:1] * 2, texts) == [True, False]
    made.corrector.encode(texts[:1], texts[:1])
    for wrong in (texts, texts[:1]), (texts[:1], texts):
        with pytest.raises(CalmError, match="context"):
            made.corrector.encode(wrong[0][-1:], wrong[1][-1:])


def test_a_corrector_can_be_read_from_a_folder(tmp_path: Path) -> None:
    small().model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    made = Rewriting(corrector={"path": str(tmp_path)}, **FEW).compose(anchor(), [])
    assert made.frozen_backbones == (made.anchor_backbone,)
    assert made.generate_text(PROMPTS, **GREEDY) == built().generate_text(PROMPTS, **GREEDY)
    assert all(name.startswith("corrector.") for name, _ in made.trainable_parameters())


def test_a_corrector_in_few_bits_is_refused(t5: Path) -> None:
    source = {"path": str(t5), "quantization": "torchao_int8"}
    with pytest.raises(CalmError, match=r"quantization=torchao_int8: .* cannot be trained"):
        Rewriting(corrector=source).compose(anchor(), [])


def test_a_corrector_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CalmError, match=r"corrector '.*nowhere' could not be loaded"):
        Rewriting(corrector={"path": str(tmp_path / "nowhere")}).compose(anchor(), [])
    with pytest.raises(CalmError, match="needs a model to train"):
        Rewriting().compose(anchor(), [])
    with pytest.raises(CalmError, match="fresh draws new weights for a copy"):
        Rewriting(fresh=True, corrector={"path": "somewhere"})
