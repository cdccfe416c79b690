"""Promises of the task on one's own files."""

import json
from pathlib import Path
from typing import Any

import pytest

from calm_lightning.contracts import CalmError, ExactMatch, Example
from calm_plugins.tasks.text_file import TextFile
from calm_plugins.tasks.text_file.data import cut

LINES = [{"prompt": f"{n}+1=", "target": str(n + 1)} for n in range(40)]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, LINES)) + "\n")
    return file


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    file = tmp_path / "story.txt"
    file.write_text("".join(f"Line {n} of a story.\n" for n in range(60)))
    return file


def refusal(file: Path, content: str | bytes, **settings: Any) -> str:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CalmError) as error:
        TextFile(file, evaluation=file, **settings).train_examples()
    assert str(file) in str(error.value)
    return str(error.value)


# JSON lines


def test_json_lines_become_prompts_and_targets(jsonl: Path) -> None:
    examples = TextFile(jsonl, evaluation=jsonl).train_examples()
    assert [(e.prompt, e.target) for e in examples] == [(x["prompt"], x["target"]) for x in LINES]
    assert all(e.ends for e in examples)


def test_fields_can_have_other_names_and_the_rest_is_meta(tmp_path: Path) -> None:
    file = tmp_path / "qa.json"
    file.write_text(
        '{"q": "Who?", "a": "Æ, the \\ud83d\\ude00", "level": 3, "prompt/hint": "Who? (a cat)"}'
    )
    (example,) = TextFile(file, file, prompt_field="q", target_field="a").train_examples()
    assert example == Example("Who?", "Æ, the 😀", {"level": 3, "prompt/hint": "Who? (a cat)"})


def test_blank_lines_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "windows.jsonl"
    line = '{"prompt": "a\u2028b", "target": "c"}'
    file.write_bytes(f"\ufeff{line}\r\n\r\n{line}".encode())
    assert TextFile(file, file).train_examples() == [Example("a\u2028b", "c")] * 2


def test_json_lines_are_scored_by_exact_match_unless_asked_otherwise(jsonl: Path) -> None:
    (by_match,) = TextFile(jsonl, jsonl, stop=("\n",)).evaluation_sets()
    assert by_match.scorer is not None
    assert isinstance(by_match.scorer(), ExactMatch)
    assert by_match.stop == ("\n",)
    (by_loss,) = TextFile(jsonl, jsonl, exact_match=False).evaluation_sets()
    assert by_loss.scorer is None


def test_answers_have_room_for_the_longest_target_in_any_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "", "target": "ab"}\n{"prompt": "", "target": "€€"}')
    assert TextFile(file, file).evaluation_sets()[0].max_new_tokens == 8
    assert TextFile(file, file, max_new_tokens=5).evaluation_sets()[0].max_new_tokens == 5


# Plain text


def test_plain_text_is_cut_into_pieces_without_prompt_or_end(plain: Path) -> None:
    examples = TextFile(plain, plain, characters=100).train_examples()
    assert "".join(e.target for e in examples) == plain.read_text()
    assert all(e.prompt == "" and not e.ends and len(e.target) <= 100 for e in examples)


def test_plain_text_is_scored_by_its_loss_alone(plain: Path) -> None:
    (evaluation_set,) = TextFile(plain, plain).evaluation_sets()
    assert evaluation_set.scorer is None


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("aaa bbb\nccc ddd", ["aaa bbb\n", "ccc ddd"]),  # after a line's end
        ("a\nbb cccc ddd", ["a\nbb cccc", " ddd"]),  # not at an early line end: before a space
        ("a\nbbbbbbbbbbbb", ["a", "\nbbbbbbbbb", "bbb"]),  # an early line end is still a space
        ("abcdefghijkl", ["abcdefghij", "kl"]),  # nothing to cut at
        ("aaaa bbbbb c", ["aaaa bbbbb", " c"]),  # a space just beyond the room
        ("abc", ["abc"]),
        ("          x", [" " * 9, " x"]),
    ],
)
def test_pieces_end_at_lines_then_words_then_anywhere(text: str, pieces: list[str]) -> None:
    assert cut(text, 10) == pieces


@pytest.mark.parametrize("characters", [1, 2, 3, 7, 1000])
def test_pieces_add_up_to_the_text_and_fit(characters: int) -> None:
    text = "Wörter, and\n\n  more\twords \r\n" * 9 + "x" * 30
    pieces = cut(text, characters)
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= characters for piece in pieces)


# What is evaluated


def test_without_an_evaluation_file_the_last_share_is_held_out(jsonl: Path) -> None:
    task = TextFile(jsonl, held_out=0.1)
    (held_out,) = task.evaluation_sets()
    assert held_out.name == "held_out"
    assert [e.prompt for e in task.train_examples()] == [x["prompt"] for x in LINES[:36]]
    assert [e.prompt for e in held_out.examples] == [x["prompt"] for x in LINES[36:]]


@pytest.mark.parametrize("held_out", [0.001, 0.999])
def test_both_sides_of_a_held_out_share_get_an_example(jsonl: Path, held_out: float) -> None:
    task = TextFile(jsonl, held_out=held_out)
    assert len(task.train_examples()) >= 1
    assert len(task.evaluation_sets()[0].examples) >= 1
    assert len(task.train_examples()) + len(task.evaluation_sets()[0].examples) == 40


def test_evaluation_files_have_names_and_each_its_own_format(jsonl: Path, plain: Path) -> None:
    task = TextFile(plain, {"sums": str(jsonl), "story": str(plain)})
    sets = task.evaluation_sets()
    assert [(s.name, s.scorer is None) for s in sets] == [("sums", False), ("story", True)]
    assert "".join(e.target for e in task.train_examples()) == plain.read_text()
    (unnamed,) = TextFile(plain, str(jsonl)).evaluation_sets()
    assert (unnamed.name, len(unnamed.examples)) == ("evaluation", 40)


def test_the_tasks_own_settings_pass_through(jsonl: Path) -> None:
    task = TextFile(jsonl, batch_size=3, seed=5)
    assert (task.batch_size, task.seed, task.generated) == (3, 5, False)
    assert sum(len(batch) for batch in task.train_dataloader()) == 36  # 38, less an unfilled batch


# Refusals


def test_a_malformed_line_is_named_with_its_fault(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    good = json.dumps(LINES[0])
    message = refusal(file, f'{good}\n\n{{"prompt": "a" "target": "b"}}\n')
    assert f"{file}, line 3: not JSON" in message
    assert "Expecting ',' delimiter, column 16" in message
    assert '{"prompt": "2+2=", "target": "4"}' in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            '{"prompt": "a", "answer": "b"}',
            ["no field 'target'", "'prompt', 'answer'", "target_field"],
        ),
        ("{}", ["no field 'prompt'", "none"]),
        ('["a", "b"]', ["a list instead of an object"]),
        ("3", ["3 instead of an object"]),
        ('{"prompt": "a", "target": 4}', ["'target' holds 4, not text"]),
        ('{"prompt": null, "target": "4"}', ["'prompt' holds null, not text"]),
        ('{"prompt": "a", "target": ""}', ["'target' is empty"]),
        ('{"prompt": "a", "target": "\\ud83d"}', ["both halves"]),
    ],
)
def test_a_line_without_prompt_and_target_is_refused(
    tmp_path: Path, line: str, words: list[str]
) -> None:
    message = refusal(tmp_path / "bad.jsonl", f"{json.dumps(LINES[0])}\n{line}\n")
    assert all(word in message for word in ["line 2", *words])


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.txt"])
@pytest.mark.parametrize("content", ["", " \n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    assert f"empty: {len(content)} bytes" in refusal(tmp_path / name, content)


def test_a_file_that_is_not_utf8_is_refused_with_the_byte(tmp_path: Path) -> None:
    message = refusal(tmp_path / "latin.txt", "née".encode() + "é".encode("latin-1") + b"x")
    assert "not UTF-8: byte 4 (0xe9)" in message
    assert "iconv" in message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalmError, match=r"nowhere\.txt: no such file"):
        TextFile(tmp_path / "nowhere.txt").train_examples()
    (tmp_path / "inside.txt").write_text("x")
    with pytest.raises(CalmError, match=r"is a folder; .*inside\.txt"):
        TextFile(tmp_path).evaluation_sets()


@pytest.mark.parametrize(
    ("name", "content", "way_out"),
    [
        ("one.jsonl", '{"prompt": "a", "target": "b"}', "as evaluation."),
        ("one.txt", "a b", "characters=512."),
    ],
)
def test_a_file_too_short_to_hold_out_anything_is_refused(
    tmp_path: Path, name: str, content: str, way_out: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(CalmError, match="too short to hold out") as error:
        TextFile(file).train_examples()
    assert str(file) in str(error.value)
    assert str(error.value).endswith(way_out)
    assert len(TextFile(file, evaluation=file).train_examples()) == 1


@pytest.mark.parametrize(
    "settings", [{"held_out": 0.0}, {"held_out": 1.0}, {"characters": 0}, {"max_new_tokens": 0}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(CalmError, match=rf"{name}.*got {value}"):
        TextFile("never_read.txt", **settings)
