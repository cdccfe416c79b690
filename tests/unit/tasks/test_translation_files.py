"""Promises of the readers: what each layout means, and what is refused with file and line."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calm_lightning.contracts import CalmError
from calm_plugins.tasks.reading import expand
from calm_plugins.tasks.translation import (
    Corpus,
    Flores,
    Hub,
    LineFiles,
    Ntrex,
    PairFiles,
    Tatoeba,
)


def write(folder: Path, **files: str) -> str:
    """Files by name, with `__` for a point."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content.encode())
    return str(folder)


def refusal(corpus: Corpus, direction: str = "deu-eng") -> str:
    with pytest.raises(CalmError) as error:
        pairs(corpus, direction)
    return str(error.value)


def pairs(corpus: Corpus, direction: str) -> list[tuple[str, str]]:
    return [
        pair
        for each in corpus.find(direction)
        for pair in corpus.pairs(each.source, each.target)
    ]  # fmt: skip


# Layouts


@pytest.mark.parametrize("inner", ["", "devtest"])
def test_flores_is_a_file_for_each_language_and_split(tmp_path: Path, inner: str) -> None:
    folder = tmp_path / inner
    write(folder, deu_Latn__devtest="eins\nzwei\n", lij_Latn__devtest="un\ndoî\n", readme__md="-")
    write(folder, deu_Latn__dev="x\n", eng_Latn__dev="y\n")
    assert pairs(Flores(str(tmp_path)), "deu_Latn-lij_Latn") == [("eins", "un"), ("zwei", "doî")]
    assert pairs(Flores(str(tmp_path)), "lij-deu")[1] == ("doî", "zwei")
    if not inner:
        assert pairs(Flores(str(tmp_path), split="dev"), "deu-eng") == [("x", "y")]


def test_ntrex_has_its_english_as_the_source_and_lines_that_end_as_windows_does(
    tmp_path: Path,
) -> None:
    folder = write(
        tmp_path,
        **{"newstest2019-src__eng__txt": "one\r\ntwo\r\n",
           "newstest2019-ref__zho-CN__txt": "一\r\n二\r\n",
           "newstest2019-ref__deu__txt": "eins\r\nzwei\r\n"},
    )  # fmt: skip
    corpus = Ntrex(folder)
    assert pairs(corpus, "zho-CN-eng") == [("一", "one"), ("二", "two")]
    assert pairs(corpus, "eng-zho-CN") == [("one", "一"), ("two", "二")]
    assert pairs(corpus, "deu_Latn-eng_Latn") == [("eins", "one"), ("zwei", "two")]
    assert {each.label for each in corpus.find("*-eng")} == {"deu-eng", "zho-CN-eng"}


def test_tatoeba_is_gzipped_pairs_and_a_file_serves_both_directions(tmp_path: Path) -> None:
    for name in ("deu-eng", "uig_Arab-eng"):
        content = gzip.compress(f"{name} eins\tone\u2028 and a half\nzwei\ttwo\n".encode())
        (tmp_path / f"{name}.tsv.gz").write_bytes(content)
    corpus = Tatoeba(str(tmp_path))
    assert pairs(corpus, "deu-eng") == [("deu-eng eins", "one\u2028 and a half"), ("zwei", "two")]
    assert pairs(corpus, "eng-uig")[1] == ("two", "zwei")
    assert len(corpus.find("*-eng")) == 2


def test_any_text_pair_is_two_files(tmp_path: Path) -> None:
    folder = write(tmp_path, a__txt="eins\nzwei", b__txt="one\ntwo\n")
    corpus = LineFiles({"deu": f"{folder}/a.txt", "eng": f"{folder}/b.txt"})
    assert pairs(corpus, "deu-eng") == [("eins", "one"), ("zwei", "two")]


@pytest.mark.parametrize("name", ["p.tsv", "p.tsv.gz"])
def test_columns_are_told_by_number_or_by_a_first_line(tmp_path: Path, name: str) -> None:
    text = b"id\tde\ten\n1\teins\tone\n2\tzwei\ttwo\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    file = str(tmp_path / name)
    by_name = PairFiles(file, languages=("deu", "eng"), fields=("de", "en"))
    assert pairs(by_name, "deu-eng") == [("eins", "one"), ("zwei", "two")]
    by_number = PairFiles(file, languages=("deu", "eng"), fields=(2, 3))
    assert pairs(by_number, "eng-deu") == [("en", "de"), ("one", "eins"), ("two", "zwei")]


def test_json_lines_have_fields_named_by_the_codes_or_otherwise(tmp_path: Path) -> None:
    plain, nested = tmp_path / "p.jsonl", tmp_path / "de-en.jsonl"
    plain.write_text(json.dumps({"deu": "eins", "eng": "one"}) + "\n\n")
    nested.write_text(json.dumps({"translation": {"de": "eins", "en": "one"}}))
    assert pairs(PairFiles(str(plain), languages=("deu", "eng")), "deu-eng") == [("eins", "one")]
    inside = PairFiles(
        f"{tmp_path}/{{source}}-{{target}}.jsonl",
        fields=("translation.{source}", "translation.{target}"),
    )
    assert pairs(inside, "en-de") == [("one", "eins")]


def test_variables_and_home_are_put_into_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, deu_Latn__devtest="eins\n", eng_Latn__devtest="one\n")
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    assert pairs(Flores("$SOME_DATA"), "deu-eng") == [("eins", "one")]
    assert pairs(LineFiles("${SOME_DATA}/{language}.devtest"), "deu-eng") == [("eins", "one")]
    assert expand("~/x") == Path.home() / "x"
    monkeypatch.delenv("SOME_DATA")
    assert "SOME_DATA is not set" in refusal(Flores("$SOME_DATA"))


# A data set of the hub: a local folder is read by the same library


def hub(folder: Path, **settings: Any) -> Hub:
    pytest.importorskip("datasets")
    rows = [{"translation": {"de": f"satz {n}", "en": f"sentence {n}"}} for n in range(5)]
    rows.append({"translation": {"de": "", "en": "no source"}})
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Hub(str(folder), languages=("de", "en"), **settings)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_is_read_by_its_fields(tmp_path: Path, streaming: bool) -> None:
    corpus = hub(tmp_path, streaming=streaming)
    assert len(pairs(corpus, "de-en")) == 5  # the row without a source is left out
    assert pairs(corpus, "en-de")[2] == ("sentence 2", "satz 2")
    assert len(pairs(hub(tmp_path, rows=3, streaming=streaming), "de-en")) == 3


@pytest.mark.filterwarnings("ignore")
def test_rows_without_a_side_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        pairs(hub(tmp_path), "de-en")
    assert "split train, de-en: 1 of 6 rows are left out because a side is missing" in caplog.text


def test_a_stream_that_breaks_off_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def rows(*args: Any, **options: Any) -> Iterator[dict[str, Any]]:
        yield {"translation": {"de": "eins", "en": "one"}}
        raise ConnectionError("the line went dead")

    monkeypatch.setattr(datasets, "load_dataset", rows)
    message = refusal(Hub("some/pairs", ("de", "en"), streaming=True), "de-en")
    for word in ("'some/pairs'", "cannot be read: the line went dead", "needs a network"):
        assert word in message


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    message = refusal(Hub("nobody/no-such-pairs", languages=("deu", "eng"), config="deu-eng"))
    assert "'nobody/no-such-pairs'" in message
    assert "deu-eng" in message
    assert "needs a network, or a copy in the cache" in message
    assert "split 'dev'" in refusal(hub(tmp_path, split="dev"), "de-en")
    fields = hub(tmp_path, fields=("{source}", "{target}"))
    assert "row 1: no field 'de'; the fields are 'translation'" in refusal(fields, "de-en")


# Refusals


def test_files_of_unequal_length_are_refused_with_both_counts(tmp_path: Path) -> None:
    folder = write(tmp_path, deu__txt="a\nb\nc\n", eng__txt="a\nb\n")
    message = refusal(LineFiles(f"{folder}/{{language}}.txt"))
    assert f"{folder}/deu.txt has 3 lines" in message
    assert f"{folder}/eng.txt has 2" in message


def test_an_empty_line_is_refused_because_it_may_hide_a_shift(tmp_path: Path) -> None:
    folder = write(tmp_path, deu__txt="a\n\nc\n", eng__txt="a\nb\nc\n")
    assert f"{folder}/deu.txt, line 2: empty" in refusal(LineFiles(f"{folder}/{{language}}.txt"))


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, deu_Latn__devtest="", eng_Latn__devtest="a\n")
    message = refusal(Flores(folder))
    assert "deu_Latn.devtest is empty: 0 bytes" in message
    missing = refusal(Flores(folder, split="dev"))
    assert f"{folder}/{{language}}.dev: files of two languages are needed, but none" in missing
    assert "split" in missing


@pytest.mark.parametrize(
    ("content", "fields", "words"),
    [
        ("eins\tone\nzwei\n", None, ["p.tsv, line 2", "columns 1 and 2", "found 1 column: 'zwei'"]),
        ("eins\tone\nzwei\t \n", None, ["line 2", "found 2 columns"]),
        ("eins\tone\n", (1, 4), ["line 1", "columns 1 and 4"]),
        ("de\ten\neins\tone\n", ("de", "fr"), ["line 1: no column 'fr'", "'de', 'en'"]),
    ],
)
def test_rows_without_the_columns(
    tmp_path: Path, content: str, fields: Any, words: list[str]
) -> None:
    file = f"{write(tmp_path, p__tsv=content)}/p.tsv"
    message = refusal(PairFiles(file, languages=("deu", "eng"), fields=fields))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"deu": "a", "en": "b"}', ["p.jsonl, line 2: no field 'eng'", "'deu', 'en'"]),
        ('{"deu": "a", "eng": 3}', ["line 2: 'eng' holds 3, not text"]),
        ('{"deu": "a", "eng": " "}', ["line 2: 'eng' is empty"]),
        ('{"deu": "a", "eng": "\\ud83d"}', ["line 2: 'eng' holds half"]),
        ('{"deu": "a" "eng": "b"}', ["line 2: not JSON", "column 13", '{"deu": "...", "eng"']),
        ("[1]", ["line 2: a list instead of an object"]),
    ],
)
def test_json_rows_without_the_fields(tmp_path: Path, line: str, words: list[str]) -> None:
    folder = write(tmp_path, p__jsonl=f'{{"deu": "a", "eng": "b"}}\n{line}\n')
    message = refusal(PairFiles(f"{folder}/p.jsonl", languages=("deu", "eng")))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b broken", ["cannot be read"]),
        (gzip.compress(b"a\tb\xff", mtime=0), ["not UTF-8", "0xff"]),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "deu-eng.tsv.gz").write_bytes(content)
    message = refusal(Tatoeba(str(tmp_path)))
    for word in ["deu-eng.tsv.gz", *words]:
        assert word in message


def test_folders_and_files_that_are_not_there(tmp_path: Path) -> None:
    assert "no such folder" in refusal(Flores(str(tmp_path / "nowhere")))
    assert "no such files" in refusal(Tatoeba(str(tmp_path)))
    message = refusal(LineFiles({"deu": str(tmp_path / "a.txt"), "eng": str(tmp_path / "b.txt")}))
    assert "a.txt: no such file" in message


def test_the_languages_of_a_file_of_pairs_have_to_be_told() -> None:
    with pytest.raises(CalmError, match="either in the path"):
        PairFiles("pairs.tsv")
    with pytest.raises(CalmError, match="either in the path"):
        PairFiles("{source}-{target}.tsv", languages=("deu", "eng"))
