"""Data that is none: text, JSON lines, tables, benchmarks and corpora with a fault."""

import json

from .ground import Case, Maker, folder, linked, packed, task

FIT = "fit -c c.yaml --run run"
GSM = {"question": "1+2", "answer": "3\n#### 3"}
HUMANEVAL = {
    "task_id": "a/0", "prompt": "def f(x):\n    'Same.'\n", "entry_point": "f",
    "canonical_solution": "    return x", "test": "def check(candidate):\n    assert candidate(1)",
}  # fmt: skip
MBPP = {
    "task_id": 11, "text": "Add.", "code": "def f(x): return x", "test_list": ["assert f(1) == 1"],
}  # fmt: skip
DEEP = "[" * 100_000
DIGITS = "9" * 5000


def given(
    kind: str, name: str, content: str | bytes | Maker, *says: str, **options: object
) -> Case:
    """`calm fit` on a task whose options name files, one of them with this content."""
    (title, options_of, file) = _TASKS[kind]
    config = task(title, **{**options_of, **options})
    return Case(f"{kind}: {name}", FIT, (file, *says), {"c.yaml": config, file: content})


def said(kind: str, name: str, line: object, *says: str) -> Case:
    """The same with one line of JSON."""
    return given(kind, name, json.dumps(line) + "\n", "line 1", *says)


def optioned(kind: str, name: str, *says: str, **options: object) -> Case:
    """The same with an option at fault, and good files."""
    (title, options_of, _) = _TASKS[kind]
    config = task(title, **{**options_of, **options})
    return Case(f"{kind}: {name}", FIT, says, {"c.yaml": config})


_TASKS = {
    "text": ("TextFile", {"train": "a.txt"}, "a.txt"),
    "packed text": ("TextFile", {"train": "a.txt.gz"}, "a.txt.gz"),
    "json lines": ("TextFile", {"train": "a.jsonl"}, "a.jsonl"),
    "gsm": ("Gsm", {"train": ["a.jsonl"], "evaluation": {"a": "a.jsonl"}}, "a.jsonl"),
    "mgsm": ("Gsm", {"train": ["a_de.tsv"], "evaluation": {"a": "a_de.tsv"}}, "a_de.tsv"),
    "exemplars": ("Gsm", {
        "evaluation": {"a": "configs/smoke/data/gsm/test.jsonl"}, "shots": 1, "exemplars": "e.py",
    }, "e.py"),
    "humaneval": ("Code", {"humaneval": "h.jsonl", "allow_code_execution": True}, "h.jsonl"),
    "mbpp": ("Code", {"mbpp": "m.jsonl", "allow_code_execution": True, "mbpp_shots": 0}, "m.jsonl"),
    "functions": ("Code", {"functions": "f.jsonl", "describe_shots": 0}, "f.jsonl"),
    "code": ("Code", {"functions": "code", "describe_shots": 0}, "code"),
    "tsv": ("Translation", {
        "corpora": {"a": {"class_path": "PairFiles", "init_args": {
            "files": "a.tsv", "languages": ["deu", "eng"]}}},
        "train": [{"corpus": "a", "directions": ["deu-eng"]}],
    }, "a.tsv"),
    "pairs": ("Translation", {
        "corpora": {"a": {"class_path": "PairFiles", "init_args": {
            "files": "a.jsonl", "languages": ["deu", "eng"]}}},
        "train": [{"corpus": "a", "directions": ["deu-eng"]}],
    }, "a.jsonl"),
    "tatoeba": ("Translation", {
        "corpora": {"a": {"class_path": "Tatoeba", "init_args": {"folder": "t"}}},
        "evaluation": [{"corpus": "a", "directions": ["deu-eng"]}],
    }, "t/deu-eng.tsv.gz"),
    "flores": ("Translation", {
        "corpora": {"a": {"class_path": "Flores", "init_args": {"folder": "f"}}},
        "evaluation": [{"corpus": "a", "directions": ["deu-eng"]}],
    }, "f/deu_Latn.devtest"),
    "ntrex": ("Translation", {
        "corpora": {"a": {"class_path": "Ntrex", "init_args": {"folder": "n"}}},
        "evaluation": [{"corpus": "a", "directions": ["deu-eng"]}],
    }, "n/newstest2019-ref.deu.txt"),
    "mixture": ("Mixture", {
        "tasks": {"a": {"class_path": "TextFile", "init_args": {"train": "a.txt"}}},
    }, "a.txt"),
}  # fmt: skip


def corpus(name: str, options: object, *says: str, **files: str | bytes | Maker) -> Case:
    """A translation from a corpus of this kind."""
    parts = {
        "corpora": {"a": options}, "evaluation": [{"corpus": "a", "directions": ["deu-eng"]}],
    }  # fmt: skip
    inside = {file.replace("__", "."): content for file, content in files.items()}
    return Case(f"corpus: {name}", FIT, says, {"c.yaml": task("Translation", **parts), **inside})


def lines(files: object) -> object:
    """A corpus with a file for each language."""
    return {"class_path": "LineFiles", "init_args": {"files": files}}


def pairs(**options: object) -> object:
    """A corpus with a pair a line."""
    return {"class_path": "PairFiles", "init_args": options}


CASES = [
    # ------------------------------------------------------------------ plain text
    given("text", "empty", "", "empty"),
    given("text", "blank", " \n\n", "empty"),
    given("text", "binary", bytes(range(256)) * 20, "not UTF-8"),
    given("text", "Latin-1", "Größe und Maß".encode("latin-1"), "not UTF-8", "iconv"),
    given("text", "UTF-16", "some text of some length".encode("utf-16"), "not UTF-8"),
    given("text", "a folder", folder, "is a folder"),
    given("text", "a link to itself", linked("a.txt"), "cannot be read"),
    given("text", "a link to a device", linked("/dev/zero"), "device"),
    given("text", "too short", "a", "too short"),
    optioned("text", "a null character in its name", "a\0b", "cannot be read", train="a\0b"),
    optioned("text", "a name of 300 letters", "aaaa", "cannot be read", train="a" * 300),
    optioned("text", "a file that leads nowhere", "../../nowhere.txt", "no such file",
             train="../../nowhere.txt"),
    optioned("text", "a share that is no number", "held_out", "nan", held_out=float("nan")),
    optioned("text", "no file at all", "train", train=None),
    optioned("text", "a list of files", "train", train=["a.txt"]),
    given("packed text", "not packed", "text", "cannot be read"),
    given("packed text", "cut off", packed(b"text" * 1000)[:-20], "cannot be read"),
    given("packed text", "a bomb", packed(b" " * (70 * 2**20)), "unpack to more"),
    given("packed text", "packed binary", packed(b"\xff\xfe"), "not UTF-8"),
    given("mixture", "binary inside of a task", b"\xff\xfe", "not UTF-8"),
    optioned("mixture", "a weight that is no number", "Weights", weights={"a": float("nan")}),
    optioned("mixture", "a temperature without end", "temperature", temperature=float("inf")),
    optioned("mixture", "a task that leads out", "../a", tasks={"../a": {
        "class_path": "TextFile", "init_args": {"train": "a.txt"}}}),
    # ------------------------------------------------------------------ JSON lines
    given("json lines", "not JSON", "prompt: 1\n", "line 1", "not JSON"),
    given("json lines", "nested without end", DEEP, "line 1", "deeply"),
    given("json lines", "a number of 5,000 digits", f'{{"prompt": {DIGITS}}}', "line 1", "digits"),
    given("json lines", "a number", "5\n", "line 1", "5 instead of an object"),
    given("json lines", "a list", "[1]\n", "line 1", "a list instead of an object"),
    given("json lines", "a pickle", b"\x80\x04\x95\x05\x00\x00\x00", "not UTF-8"),
    said("json lines", "no target", {"prompt": "1"}, "'target'"),
    said("json lines", "an empty target", {"prompt": "1", "target": ""}, "'target' is empty"),
    said("json lines", "a target that is a number", {"prompt": "1", "target": 2}, "'target'", "2"),
    said("json lines", "a prompt that is a list", {"prompt": ["1"], "target": "2"}, "'prompt'"),
    said("json lines", "half a pair of escapes", {"prompt": "\ud800", "target": "2"}, "half"),
    # ------------------------------------------------------------------ grade-school maths
    given("gsm", "not JSON", "Question: 1+2?\n", "line 1", "not JSON"),
    given("gsm", "nested without end", DEEP, "line 1", "deeply"),
    given("gsm", "a number of 5,000 digits", f'{{"answer": {DIGITS}}}', "line 1", "digits"),
    given("gsm", "binary", b"\xff\x00", "not UTF-8"),
    said("gsm", "no answer", {"question": "1+2"}, "'answer'"),
    said("gsm", "an answer without a number", {**GSM, "answer": "three"}, "three"),
    said("gsm", "an answer that is a list", {**GSM, "answer": [3]}, "'answer'", "a list"),
    said("gsm", "an answer that is no number", {**GSM, "answer": float("nan")}, "NaN"),
    said("gsm", "a number that is a mapping", {**GSM, "answer_number": {"a": 3}},
         "'answer_number'", "an object"),
    said("gsm", "a solution that is a number", {**GSM, "answer_number": 3, "answer": 5},
         "'answer'", "5"),
    said("gsm", "a question that is a number", {**GSM, "question": 5}, "'question'"),
    said("gsm", "half a pair of escapes", {**GSM, "question": "\udfff"}, "half"),
    optioned("gsm", "exemplars that are not there", "no such file", "nowhere.jsonl",
             train=["configs/smoke/data/gsm/train.jsonl"],
             evaluation={"a": "configs/smoke/data/gsm/test.jsonl"}, shots=1,
             exemplars="nowhere.jsonl"),
    optioned("gsm", "a folder without problems", "mgsm", "configs", evaluation={"a": "configs"}),
    optioned("gsm", "a style that is none", "style", "evil", style="evil"),
    given("mgsm", "one column", "Wie viel ist 1+2?\n", "line 1", "tab"),
    given("mgsm", "three columns", "a\tb\tc\n", "line 1", "3 columns"),
    given("mgsm", "a number that is none", "1+2?\tdrei\n", "line 1", "drei"),
    given("mgsm", "a number of 5,000 digits", f"1+2?\t{DIGITS}\n", "line 1", "999"),
    given("mgsm", "binary", b"1+2\t\xff\n", "not UTF-8"),
    given("exemplars", "a program", "open('harm', 'w')\n", "MGSM_EXEMPLARS"),
    given("exemplars", "a call", "MGSM_EXEMPLARS = __import__('os').system('touch harm')\n",
          "ValueError"),
    given("exemplars", "not Python", "MGSM_EXEMPLARS = {\n", "SyntaxError"),
    given("exemplars", "nested without end", "MGSM_EXEMPLARS = " + "-" * 100_000 + "1\n", "Error"),
    given("exemplars", "numbers for texts", "MGSM_EXEMPLARS = {'en': {1: {'q': 1, 'a': 2}}}\n",
          "en"),
    # ------------------------------------------------------------------ programs
    said("humaneval", "no test", {k: v for k, v in HUMANEVAL.items() if k != "test"}, "'test'"),
    said("humaneval", "a prompt that is not Python", {**HUMANEVAL, "prompt": "def f(:"},
         "'prompt'", "not Python"),
    said("humaneval", "a prompt without its function", {**HUMANEVAL, "prompt": "x = 1\n"}, "'f'"),
    said("humaneval", "a test that checks nothing", {**HUMANEVAL, "test": "pass"}, "check"),
    said("humaneval", "a prompt that is nested without end",
         {**HUMANEVAL, "prompt": "x = " + "-" * 100_000 + "1"}, "'prompt'", "not Python"),
    said("humaneval", "a null character", {**HUMANEVAL, "prompt": "def f(x):\n    '\0'"}, "prompt"),
    given("humaneval", "one problem twice", f"{json.dumps(HUMANEVAL)}\n" * 2, "twice"),
    given("humaneval", "nested without end", DEEP, "line 1", "deeply"),
    optioned("humaneval", "no leave to run programs", "allow_code_execution",
             allow_code_execution=False),
    said("mbpp", "a number that is a word", {**MBPP, "task_id": "11"}, "'task_id'"),
    said("mbpp", "no tests", {**MBPP, "test_list": []}, "'test_list'"),
    said("mbpp", "tests that are numbers", {**MBPP, "test_list": [1]}, "'test_list'"),
    said("mbpp", "a test that is not Python", {**MBPP, "test_list": ["assert ("]}, "'test_list'"),
    said("mbpp", "a solution that is nested without end", {**MBPP, "code": "(" * 5000}, "'code'"),
    given("mbpp", "one problem twice", f"{json.dumps(MBPP)}\n" * 2, "twice"),
    given("mbpp", "none that are asked", json.dumps({**MBPP, "task_id": 10**30}), "none of"),
    # ------------------------------------------------------------------ descriptions of code
    given("functions", "not JSON", "def f(): pass\n", "line 1", "not JSON"),
    said("functions", "tokens that are numbers", {"code_tokens": [1], "docstring_tokens": ["a"]},
         "'code_tokens'"),
    said("functions", "no tokens", {"code_tokens": [], "docstring_tokens": []}, "'code_tokens'"),
    said("functions", "half a pair of escapes",
         {"code_tokens": ["\ud800"], "docstring_tokens": ["a"]}, "'code_tokens'"),
    given("functions", "nested without end", DEEP, "line 1", "deeply"),
    given("code", "an empty folder", folder, "no Python function"),
    Case("code: a folder of nothing but harm", FIT, ("code", "no Python function"), {
        "c.yaml": task("Code", functions="code", describe_shots=0),
        "code/a.py": b"\xff\xfe", "code/b.py": "x = " + "-" * 100_000 + "1", "code/c.py": "\0",
        "code/d.py": linked("d.py"), "code/e.py": "(" * 5000, "code/f.py": folder,
        "code/g.py": "open('harm', 'w')\n",
    }),
    # ------------------------------------------------------------------ translation
    given("tsv", "one column", "Hallo\n", "line 1", "1 column"),
    given("tsv", "an empty side", "Hallo\t\n", "line 1", "columns 1 and 2"),
    given("tsv", "binary", b"a\t\xff\n", "not UTF-8"),
    given("pairs", "no field of a language", '{"deu": "a"}\n', "line 1", "'eng'"),
    given("pairs", "a list for a sentence", '{"deu": "a", "eng": ["b"]}\n', "line 1", "'eng'"),
    given("pairs", "half a pair of escapes", '{"deu": "\\ud800", "eng": "b"}\n', "line 1", "half"),
    given("pairs", "nested without end", DEEP, "line 1", "deeply"),
    given("tatoeba", "not packed", "a\tb\n", "cannot be read"),
    given("tatoeba", "cut off", packed(b"a\tb\n" * 100)[:-9], "cannot be read"),
    given("tatoeba", "one column", packed(b"a\n"), "line 1"),
    given("tatoeba", "a bomb", packed(b"a\tb\n" * (20 * 2**20)), "unpack to more"),
    Case("flores: files of different lengths", FIT, ("2 lines", "eng_Latn"), {
        "c.yaml": task("Translation", **_TASKS["flores"][1]),
        "f/deu_Latn.devtest": "a\nb\n", "f/eng_Latn.devtest": "a\n",
    }),
    Case("flores: an empty line", FIT, ("deu_Latn.devtest", "line 2"), {
        "c.yaml": task("Translation", **_TASKS["flores"][1]),
        "f/deu_Latn.devtest": "a\n\nb\n", "f/eng_Latn.devtest": "a\nb\nc\n",
    }),
    Case("flores: binary", FIT, ("deu_Latn.devtest", "not UTF-8"), {
        "c.yaml": task("Translation", **_TASKS["flores"][1]),
        "f/deu_Latn.devtest": b"\xff\n", "f/eng_Latn.devtest": "a\n",
    }),
    Case("flores: one language", FIT, ("deu_Latn", "two languages"), {
        "c.yaml": task("Translation", **_TASKS["flores"][1]), "f/deu_Latn.devtest": "a\n",
    }),
    Case("flores: no folder", FIT, ("no such folder",),
         {"c.yaml": task("Translation", **_TASKS["flores"][1])}),
    Case("ntrex: no English", FIT, ("two languages",), {
        "c.yaml": task("Translation", **_TASKS["ntrex"][1]), "n/newstest2019-ref.deu.txt": "a\n",
    }),
    corpus("a path without a place for the language", lines("a.txt"), "a.txt", "{language}"),
    corpus("a path with the language twice", lines("{language}/{language}.txt"), "once"),
    corpus("a path with an unknown field", lines("{language}.{split}"), "{language}"),
    corpus("a variable that is not set", lines("$NO_SUCH_VARIABLE_HERE/{language}"),
           "NO_SUCH_VARIABLE_HERE"),
    corpus("a user that there is not", lines("~nobody-at-all/{language}"), "nobody-at-all"),
    corpus("columns from 0", pairs(files="a.tsv", languages=["deu", "eng"], fields=[0, 1]),
           "columns count from 1", a__tsv="a\tb\n"),
    corpus("columns below 0", pairs(files="a.tsv", languages=["deu", "eng"], fields=[-9, 1]),
           "columns count from 1", a__tsv="a\tb\n"),
    corpus("a field that reaches for Python",
           pairs(files="a.jsonl", languages=["deu", "eng"],
                 fields=["{source.__class__}", "{target[0]}"]),
           "line 1", "{source.__class__}", a__jsonl='{"deu": "a", "eng": "b"}\n'),
    corpus("a column that is not there",
           pairs(files="a.tsv", languages=["deu", "eng"], fields=["deu", "eng"]),
           "a.tsv, line 1", "'deu'", a__tsv="a\tb\n"),
    corpus("a corpus of another kind", {"class_path": "TextFile"}, "TextFile"),
    corpus("a data set that is not there",
           {"class_path": "Hub", "init_args": {"name": "../../nowhere",
                                               "languages": ["deu", "eng"]}}, "../../nowhere"),
]  # fmt: skip
