"""lm-evaluation-harness on a composed model, on tasks of our own: there is no network."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import calm_lightning as calm
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError
from calm_lightning.evaluation import evaluate, evaluate_command, table
from calm_lightning.language_model import PlainModel
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_lightning.testing.case import disturb
from calm_plugins.compositions.cross_attention import CrossAttention

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness, the extra evaluate")
pytestmark = pytest.mark.filterwarnings("ignore")  # its packages' own

CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
target_delimiter: ""
generation_kwargs: {until: [";"], max_gen_toks: 3, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
QUESTIONS = [f"{n}+{n % 7}=" for n in range(10, 22)]
CHOICES = ["15", "abc", "x", "7;"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tasks and their data."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = (json.dumps({"question": q, "choices": CHOICES}) for q in QUESTIONS)
    (folder / "data.jsonl").write_text("\n".join(lines))
    for text in (CHOICE, WRITTEN):
        name = text.split()[1]
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(folder / "data.jsonl")))
    return folder


def make(**settings: Any) -> ComposedModel:
    tokenizer = tiny_tokenizer()
    anchor, augmenting = (tiny_backbone(seed=seed, tokenizer=tokenizer) for seed in (0, 1))
    composed = calm.compose(anchor, [augmenting], CrossAttention(**settings))
    disturb(composed, 0.4)
    return composed


@pytest.fixture(scope="module")
def model() -> ComposedModel:
    return make()


@pytest.fixture(scope="module")
def found(model: ComposedModel, tasks: Path) -> dict[str, Any]:
    return evaluate(model, ["choice", "written"], include_path=tasks, batch_size=5)


def accuracy(model: PlainModel | ComposedModel) -> float:
    """Share of questions whose first choice is the likeliest, by the model's own likelihood."""
    best = [max(CHOICES, key=lambda c: model.loglikelihood(q, c)) for q in QUESTIONS]
    return sum(choice == CHOICES[0] for choice in best) / len(best)


def test_every_model_is_asked_and_each_answers_for_itself(
    model: ComposedModel, found: dict[str, Any]
) -> None:
    alone = [PlainModel(backbone, lambda _: None) for backbone in model.backbones]
    expected = [accuracy(each) for each in (model, *alone)]
    rows = found["rows"]
    assert list(rows) == ["composed", "anchor alone", "augmenting model alone"]
    assert [row["choice"]["acc,none"] for row in rows.values()] == pytest.approx(expected)
    assert found["examples"] == {"choice": 12, "written": 12}


def test_the_anchor_scores_as_lm_eval_scores_it(
    model: ComposedModel, found: dict[str, Any], tasks: Path
) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    plain = HFLM(pretrained=model.anchor, tokenizer=tiny_tokenizer(), max_length=64, batch_size=3)
    said = lm_eval.simple_evaluate(
        plain, tasks=["choice", "written"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )  # fmt: skip
    assert said["results"] == found["rows"]["anchor alone"]


def test_likelihoods_are_the_models_own(model: ComposedModel) -> None:
    """Padded on the right, without a mask, in batches: what counts is in no way disturbed."""
    from lm_eval.api.instance import Instance

    from calm_lightning.harness import HarnessModel

    pairs = [("12+3=", "15"), ("a", "bcd"), ("12+3=12+3=", "x")]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    for answering in (model, make(augmenting_sees="prompt")):
        said = HarnessModel(answering, 3, 64).loglikelihood(requests)
        own = [answering.loglikelihood(*pair) for pair in pairs]
        assert [nats for nats, _ in said] == pytest.approx(own, rel=1e-4)


def test_answers_are_lm_evals_own_and_rows_that_have_ended_leave(model: ComposedModel) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from calm_lightning.harness import HarnessModel

    anchor = PlainModel(model.anchor_backbone, lambda _: None)
    (first,) = anchor.generate_text([QUESTIONS[0]], max_new_tokens=40, do_sample=False)
    how = {"until": [first[1]], "max_gen_toks": 40, "do_sample": False}
    prompts = [*QUESTIONS[:4], QUESTIONS[0]]
    requests = [Instance("generate_until", {}, (prompt, how), 0) for prompt in prompts]
    plain = HFLM(pretrained=model.anchor, tokenizer=tiny_tokenizer(), max_length=64, batch_size=5)
    expected = plain.generate_until(requests)
    assert len(set(map(len, expected))) > 1  # they end at different places
    rows: list[int] = []
    count = model.anchor_backbone.layers[0].register_forward_hook(
        lambda layer, args, output: rows.append(len(args[0]))
    )
    try:
        said = HarnessModel(anchor, 5, 64).generate_until(requests)
    finally:
        count.remove()
    assert said == expected
    assert rows[0] == 4  # a prompt that is asked twice is read once
    assert min(rows) < 4


@pytest.mark.parametrize("as_eos", [False, True], ids=["a stop text", "the tokenizer's own end"])
def test_special_tokens_end_answers_as_lm_evals(as_eos: bool) -> None:
    """Also where the model's settings do not know them."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from calm_lightning.harness import HarnessModel

    def special() -> Any:
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
        if as_eos:
            tokenizer.eos_token = "<|im_end|>"
        return tokenizer

    tokenizer = special()
    backbone = tiny_backbone(vocab=len(tokenizer), tokenizer=tokenizer)
    backbone.model.generation_config.eos_token_id = None
    plain, end = PlainModel(backbone, lambda _: None), tokenizer.convert_tokens_to_ids("<|im_end|>")
    batch = plain.encode(QUESTIONS[:1])
    (usual,) = plain.answer_ids(batch, max_new_tokens=24, do_sample=False)
    with torch.no_grad():  # the end is said wherever this token would be
        head = backbone.model.get_output_embeddings().weight
        head[end] = 1.05 * head[usual[4]]
    how = {"until": [] if as_eos else ["<|im_end|>"], "max_gen_toks": 24, "do_sample": False}
    hflm = HFLM(pretrained=backbone.model, tokenizer=special(), max_length=64, batch_size=1)
    for question in QUESTIONS[:2]:
        request = [Instance("generate_until", {}, (question, dict(how)), 0)]
        assert HarnessModel(plain, 5, 64).generate_until(request) == hflm.generate_until(request)
    answers = plain.answer_ids(plain.encode(QUESTIONS[:3]), ["<|im_end|>"], max_new_tokens=24)
    assert len(answers[0]) <= 5
    assert all(answer[-1] == end or len(answer) == 24 for answer in answers)


def test_the_model_is_as_it_was(tasks: Path) -> None:
    model, ids = make(), torch.tensor([[5, 6, 7]])
    model.anchor_backbone.require_tokenizer().padding_side = "right"
    before = model(input_ids=ids).logits, [b.fingerprint(exact=True) for b in model.backbones]
    evaluate(model, ["written"], limit=2, include_path=tasks)
    assert torch.equal(model(input_ids=ids).logits, before[0])
    assert [backbone.fingerprint(exact=True) for backbone in model.backbones] == before[1]
    assert model.anchor_backbone.require_tokenizer().padding_side == "right"


def test_a_plain_model_has_one_row(model: ComposedModel, tasks: Path) -> None:
    plain = PlainModel(model.anchor_backbone, lambda _: None)
    found = calm.evaluate(plain, ["choice"], limit=3, include_path=tasks)
    assert list(found["rows"]) == ["model"]
    assert found["examples"] == {"choice": 3}


def test_the_table_has_a_line_for_each_metric() -> None:
    rows = {
        name: {"sums": {"alias": "sums", "em,none": x, "em_stderr,none": e, "f1,strict": 1.0}}
        for name, x, e in (("composed", 0.75, 0.125), ("anchor alone", 0.5, "N/A"))
    }
    assert table({"rows": rows, "examples": {"sums": 12}}).splitlines() == [
        "| task | metric | examples | composed | anchor alone |",
        "|---|---|---:|---:|---:|",
        "| sums | em | 12 | 0.7500 ± 0.1250 | 0.5000 |",
        "| sums | f1, strict | 12 | 1.0000 | 1.0000 |",
    ]


def test_the_command_prints_the_table_and_writes_json(
    found: dict[str, Any], tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("calm_lightning.evaluation.evaluate", lambda *a, **k: found)
    for name in ("evaluation.json", "evaluation-2.json"):
        evaluate_command(str(tmp_path), ["choice"])
        printed = capsys.readouterr().out
        assert table(found) in printed
        assert f"Written: {tmp_path / name}" in printed
    said = json.loads((tmp_path / "evaluation.json").read_text())
    assert said["rows"]["composed"]["choice"] == found["rows"]["composed"]["choice"]
    assert said["settings"]["tasks"] == ["choice", "written"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, "No task was named"),
        ({"limit": 0}, "--limit must be a number above 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"include_path": "nowhere"}, "--include-path 'nowhere' is not a folder"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CalmError, match=message):
        evaluate("folder", **{"tasks": ["choice"], **options})


def test_data_that_is_not_there_is_told_with_the_reason(
    model: ComposedModel, tasks: Path, tmp_path: Path
) -> None:
    (tmp_path / "lost.yaml").write_text(CHOICE.replace("choice\n", "lost\n", 1))
    with pytest.raises(CalmError, match="lm_eval could not run lost: "):
        evaluate(model, ["lost"], include_path=tmp_path)


def test_a_json_file_goes_into_a_folder_that_exists(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "none" / "x.json"):
        with pytest.raises(CalmError, match="name a file in a folder that exists"):
            evaluate_command("folder", ["choice"], out=str(out))
