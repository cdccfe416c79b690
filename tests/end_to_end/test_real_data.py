"""The real files: their counts, sacrebleu on them, and runs from the configs that name them.

They are looked for in the folder that CALM_DATA names, else in ../shared/data beside the
repository.
"""

import email
import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from calm_lightning.contracts import CalmError, Example
from calm_plugins.tasks.code.sandbox import Sandbox
from calm_plugins.tasks.gsm import Gsm
from calm_plugins.tasks.gsm.problems import read_problems
from calm_plugins.tasks.translation import Corpus, CorpusScores, Flores, Ntrex, PairFiles, Tatoeba

# ruff: noqa: RUF001  (other scripts are meant)
ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("CALM_DATA") or ROOT.parent / "shared" / "data")
SMOKE = ("translation", "gsm", "mixture")


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Path:
    if not (DATA / "flores200").is_dir():
        pytest.skip(f"no real data in {DATA}; CALM_DATA can name another folder")
    monkeypatch.setenv("CALM_DATA", str(DATA))
    return DATA


# Counts: the table in the data's README


def test_flores_has_25_languages_of_1012_sentences(data: Path) -> None:
    corpus = Flores(str(data / "flores200"))
    assert len(corpus.paths()) == 25
    assert {len(corpus.pairs(code, "eng_Latn")) for code in corpus.paths()} == {1012}


def test_ntrex_has_16_languages_of_1997_sentences(data: Path) -> None:
    corpus = Ntrex(str(data / "ntrex128"))
    assert len(corpus.paths()) == 16
    assert {len(corpus.pairs(code, "eng")) for code in corpus.paths()} == {1997}


def test_tatoeba_has_543521_pairs_in_93_languages(data: Path) -> None:
    corpus = Tatoeba(str(data / "tatoeba"))
    found = corpus.find("*-eng")
    assert len(found) == 93
    counts = [len(corpus.pairs(each.source, each.target)) for each in found]
    assert sum(counts) == 543_521
    assert min(counts) >= 1000


def test_gatitos_has_about_4000_words_in_eight_languages(data: Path) -> None:
    corpus = PairFiles(f"{data}/gatitos/{{source}}_{{target}}.tsv")
    found = corpus.find("*-en")
    assert len(found) == 8
    assert all(3900 < len(corpus.pairs(each.source, each.target)) < 6000 for each in found)


def test_gsm8k_has_7473_and_1319_problems_each_with_its_solution(data: Path) -> None:
    for split, count in (("train", 7473), ("test", 1319)):
        problems = read_problems(data / "gsm8k" / f"{split}.jsonl")
        assert len(problems) == count
        assert all(problem.solution for problem in problems)


def test_mgsm_has_250_problems_in_eleven_languages_all_of_one_answer(data: Path) -> None:
    (english, *others) = Gsm(evaluation={"mgsm": str(data / "mgsm")}).evaluation_sets()
    assert len(others) == 10
    wanted = [example.meta["answer"] for example in english.examples]
    assert len(wanted) == 250
    for each in others:
        assert [example.meta["answer"] for example in each.examples] == wanted


def test_every_solution_of_gsm8k_is_read_as_its_own_answer(data: Path) -> None:
    files = {"test": f"{data}/gsm8k/test.jsonl", "train": f"{data}/gsm8k/train.jsonl"}
    for style in ("gsm8k", "native"):
        for asked in Gsm(evaluation=files, style=style).evaluation_sets():  # type: ignore[arg-type]
            assert asked.scorer is not None
            scorer = asked.scorer()
            scorer.update([example.target for example in asked.examples], asked.examples)
            assert float(scorer.compute()["accuracy"]) == 1, (style, asked.name)


# sacrebleu


def damaged(text: str, rng: random.Random) -> str:
    """A sentence as a weak model might give it back: words or letters lost and swapped."""
    if rng.random() < 0.05:
        return ""
    parts = text.split(" ") if text.count(" ") > 2 else list(text)
    at = rng.randrange(len(parts))
    parts[0], parts[at] = parts[at], parts[0]
    return (" " if text.count(" ") > 2 else "").join(p for p in parts if rng.random() < 0.8)


def hypotheses(references: list[str]) -> list[str]:
    rng = random.Random(len(references))
    return [damaged(text, rng) for text in references]


def check_equal(label: str, code: str, references: list[str]) -> None:
    said = hypotheses(references)
    tokenizer = {"zho": "zh", "jpn": "char", "kor": "char"}.get(code[:3], "13a")
    scorer = CorpusScores({label: code}, ("chrfpp", "bleu"), tokenizer)
    examples = [Example("", text, {"direction": label}) for text in references]
    for start in range(0, len(said), 64):
        scorer.update(said[start : start + 64], examples[start : start + 64])
    independent = {
        "chrf": CHRF(), "chrfpp": CHRF(word_order=2), "bleu": BLEU(tokenize=tokenizer, force=True),
    }  # fmt: skip
    for kind, metric in independent.items():
        wanted = metric.corpus_score(said, [references])
        assert 0 < wanted.score < 100, (label, kind)
        assert scorer.score(kind, label).score == wanted.score, (label, kind)
        assert scorer.signatures()[kind] == str(metric.get_signature())


def sentences(data: Path, code: str) -> list[str]:
    """The sentences of a language: FLORES where it has it, else 400 of Tatoeba."""
    flores: Corpus = Flores(str(data / "flores200"))
    if "_" in code:
        return [text for text, _ in flores.pairs(code, "eng_Latn")]
    return [text.strip() for text, _ in Tatoeba(str(data / "tatoeba")).pairs(code, "eng")[:400]]


SCRIPTS = {
    "deu_Latn": "Latin", "bak_Cyrl": "Cyrillic", "uig_Arab": "Arabic", "zho_Hans": "Han",
    "tha_Thai": "Thai", "ell": "Greek", "heb": "Hebrew", "hye": "Armenian", "hin": "Devanagari",
    "ben": "Bengali", "kor": "Hangul", "jpn": "Kana",
}  # fmt: skip


@pytest.mark.parametrize("code", SCRIPTS)
def test_scores_equal_sacrebleus_on_real_sentences_of_twelve_scripts(data: Path, code: str) -> None:
    check_equal(f"eng-{code}", code, sentences(data, code))


def test_ter_equals_sacrebleus_on_real_sentences(data: Path) -> None:
    references = sentences(data, "deu_Latn")[:80]
    said = hypotheses(references)
    scorer = CorpusScores({"a-b": "deu"}, ("ter",))
    scorer.update(said, [Example("", text, {"direction": "a-b"}) for text in references])
    wanted = TER().corpus_score(said, [references])
    assert scorer.score("ter", "a-b").score == wanted.score > 0


ONE_OF_TWO = """
import json, sys
import torch.distributed as dist
from calm_lightning.contracts import Example
from calm_plugins.tasks.translation import CorpusScores

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
corpora = json.load(open(f"{folder}/corpora.json"))
scorer = CorpusScores({label: each["code"] for label, each in corpora.items()}, ("bleu",), "13a")
for label, each in corpora.items():
    cut = len(each["said"]) * 7 // 10  # seven tenths here, three there
    mine = slice(0, cut) if rank == 0 else slice(cut, None)
    said, references = each["said"][mine], each["references"][mine]
    scorer.update(said, [Example("", text, {"direction": label}) for text in references])
scores = {name: float(score) for name, score in scorer.compute().items()}
json.dump({"scores": scores, "seen": len(said)}, open(f"{folder}/{rank}.json", "w"))
dist.destroy_process_group()
"""


def two_processes(folder: Path, corpora: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What each of two processes computes that have uneven shares of the corpora."""
    (folder / "corpora.json").write_text(json.dumps(corpora))
    started = [
        subprocess.Popen([sys.executable, "-c", ONE_OF_TWO, str(rank), str(folder)])
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def check_two_processes(folder: Path, texts: dict[str, list[str]]) -> None:
    corpora = {
        f"eng-{code}": {"code": code, "references": lines, "said": hypotheses(lines)}
        for code, lines in texts.items()
    }
    first, second = two_processes(folder, corpora)
    assert first["scores"] == second["scores"]
    assert first["seen"] != second["seen"]
    metrics = {"chrf": CHRF(), "bleu": BLEU(force=True)}
    for kind, metric in metrics.items():
        wanted = {
            f"{kind}/direction={label}": metric.corpus_score(
                each["said"], [each["references"]]
            ).score
            for label, each in corpora.items()
        }
        for name, score in wanted.items():
            assert 100 * first["scores"][name] == pytest.approx(score, rel=1e-14)
        mean = sum(wanted.values()) / len(wanted)
        assert 100 * first["scores"][kind] == pytest.approx(mean, rel=1e-14)


def test_two_processes_with_uneven_shares_have_the_score_of_the_whole(tmp_path: Path) -> None:
    lines = ["We leave at eight in the morning.", "The river is wide here.", "Who has the key?"] * 7
    other = ["Утром мы уезжаем в восемь.", "Здесь река широкая.", "У кого ключ?"] * 9
    check_two_processes(tmp_path, {"eng": lines, "rus": other})


def test_two_processes_score_real_sentences_of_twelve_scripts(data: Path, tmp_path: Path) -> None:
    check_two_processes(tmp_path, {code: sentences(data, code)[:301] for code in SCRIPTS})


# Runs


@pytest.mark.parametrize("name", SMOKE)
def test_the_smoke_config_fits_and_tests(calm: Any, tmp_path: Path, name: str) -> None:
    fitted = calm("fit", "-c", f"configs/smoke/{name}.yaml", "--run", tmp_path)
    assert fitted.status == 0, fitted.err
    tested = calm("test", "--run", tmp_path)
    assert tested.status == 0, tested.err
    expected = {
        "translation": ["flores.deu-eng", "flores.eng-deu", "pairs", "chrf", "bleu", "ter"],
        "gsm": ["gsm8k", "mgsm.de", "mgsm.sw", "accuracy", "strict_match"],
        "mixture": ["kv.num_math", "translation.pairs", "gsm.gsm8k"],
    }[name]
    for word in expected:
        assert word in fitted.out


TINY = ("--model.anchor.path=configs/models/tiny/anchor", "--model.anchor.weights=random")
TWO = (*TINY, "--model.augmenting=[{path: configs/models/tiny/augmenting, weights: random}]",
       "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--model.warmup_steps=1",
       "--trainer.num_sanity_val_steps=0")  # fmt: skip


def with_itself(data: Path) -> tuple[str, ...]:
    """A real small model that reads 256 tokens, augmented with itself."""
    model = f"{data}/checkpoints/BabyLlama-105"
    return (*TWO, f"--model.anchor.path={model}", "--model.anchor.weights=pretrained",
            f"--model.augmenting=[{{path: {model}}}]")  # fmt: skip


def run_real(
    calm: Any, tmp_path: Path, command: str, config: str, changed: dict[str, Any], *options: str
) -> Any:
    """A config for real data, made small enough for models that hold 128 characters or 256."""
    smaller = tmp_path / "smaller.yaml"
    smaller.write_text(yaml.safe_dump({"data": {"init_args": changed}}))
    outcome = calm(
        command, "-c", config, "-c", smaller, "--run", tmp_path / "run", *options,
        "--trainer.accelerator=cpu",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    return outcome


def test_translation_runs_on_real_data_from_its_config(
    calm: Any, data: Path, tmp_path: Path
) -> None:
    config = "configs/translation/tatoeba.yaml"
    settings = yaml.safe_load((ROOT / config).read_text())["data"]["init_args"]
    for part in settings["train"]:
        part["max_characters"] = 20
    for part in settings["evaluation"]:
        part |= {"max_characters": 60, "limit": 3}
    changed = {"train": settings["train"], "evaluation": settings["evaluation"], "stop": [],
               "prompt": "{source}=", "max_new_tokens": 4}  # fmt: skip
    outcome = run_real(calm, tmp_path, "fit", config, changed, *TWO)
    for name in ("tatoeba.ilo-eng", "ntrex.uig-eng", "flores.kab-eng"):
        assert f"{name}/chrf" in outcome.out


def test_flores_is_asked_with_exemplars_from_its_config(
    calm: Any, data: Path, tmp_path: Path
) -> None:
    config = "configs/translation/flores.yaml"
    (part,) = yaml.safe_load((ROOT / config).read_text())["data"]["init_args"]["evaluation"]
    part |= {"max_characters": 60, "limit": 1, "shots": 1}
    changed = {"evaluation": [part], "prompt": "{source} = ", "separator": "; ", "stop": [";"],
               "max_new_tokens": 8}  # fmt: skip
    anchor = f"--model.anchor.path={data}/checkpoints/BabyLlama-105"
    outcome = run_real(calm, tmp_path, "test", config, changed, anchor)
    assert len(re.findall(r"direction=\w", outcome.out)) == 30  # ten languages, three scores


def test_gsm_runs_on_real_data_from_its_config(calm: Any, data: Path, tmp_path: Path) -> None:
    lines = (data / "gsm8k" / "train.jsonl").read_text().splitlines()
    shortest = sorted(lines, key=len)[:12]
    for name, chosen in (("asked", shortest[:4]), ("learnt", shortest[4:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(chosen))
    changed = {"train": [str(tmp_path / "learnt.jsonl")], "max_new_tokens": 4,
               "evaluation": {"gsm8k": str(tmp_path / "asked.jsonl")}}  # fmt: skip
    config = "configs/gsm/gsm8k.yaml"
    outcome = run_real(calm, tmp_path, "fit", config, changed, *with_itself(data))
    assert "gsm8k/strict_match" in outcome.out


def test_mgsm_is_asked_in_its_own_languages_from_its_config(
    calm: Any, data: Path, tmp_path: Path
) -> None:
    changed = {"languages": ["de", "th"], "shots": 0, "limit": 2, "samples": 2, "temperature": 0.8,
               "max_new_tokens": 4}  # fmt: skip
    anchor = f"--model.anchor.path={data}/checkpoints/BabyLlama-105"
    outcome = run_real(calm, tmp_path, "test", "configs/gsm/mgsm_native.yaml", changed, anchor)
    for word in ("mgsm.de", "mgsm.th", "majority"):
        assert word in outcome.out


def test_code_runs_on_real_data_from_its_config(calm: Any, data: Path, tmp_path: Path) -> None:
    try:
        Sandbox().check()
    except CalmError as error:
        pytest.skip(str(error))
    with gzip.open(data / "humaneval" / "HumanEval.jsonl.gz", "rt") as stream:
        shortest = sorted(stream.read().splitlines(), key=len)[:2]
    (tmp_path / "humaneval.jsonl").write_text("\n".join(shortest))
    rows = map(json.loads, (data / "mbpp" / "mbpp.jsonl").read_text().splitlines()[10:510])
    with_a_test = (row | {"test_list": row["test_list"][:1]} for row in rows)
    few = sorted(with_a_test, key=lambda row: len(row["text"] + row["code"] + row["test_list"][0]))
    (tmp_path / "mbpp.jsonl").write_text("\n".join(map(json.dumps, few[:3])))
    changed = {"humaneval": str(tmp_path / "humaneval.jsonl"), "mbpp": str(tmp_path / "mbpp.jsonl"),
               "functions": str(Path(email.__file__).parent), "mbpp_shots": 0, "describe_shots": 0,
               "longest_function": 300, "evaluation_functions": 2, "max_new_tokens": 4,
               "max_new_tokens_of_descriptions": 4}  # fmt: skip
    config = "configs/code/humaneval_mbpp.yaml"
    outcome = run_real(calm, tmp_path, "test", config, changed, *with_itself(data))
    for word in ("humaneval", "mbpp", "pass@1", "code_to_text", "chrf"):
        assert word in outcome.out
    for name, count in (("humaneval", 2), ("mbpp", 3)):
        outcomes = (tmp_path / "run" / "outcomes" / f"{name}.jsonl").read_text().splitlines()
        assert len(outcomes) == count


def test_codexglue_runs_from_its_config(
    calm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a few functions of our own: CodeXGLUE itself is not among the real data."""
    monkeypatch.setenv("CALM_DATA", str(tmp_path))
    ours = ROOT / "configs" / "smoke" / "data" / "code"
    languages = ("go", "java", "javascript", "php", "python", "ruby")
    for language in languages:
        folder = tmp_path / "codexglue" / language
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            shutil.copy(ours / f"functions_{split}.jsonl", folder / f"{split}.jsonl")
    changed = {"describe_shots": 0, "stop_early": False, "max_new_tokens_of_descriptions": 4}
    outcome = run_real(calm, tmp_path, "test", "configs/code/codexglue.yaml", changed, *TWO)
    for language in languages:
        assert f"code_to_text_{language}" in outcome.out
