"""Files of `calm compare` that would cost hours, memory or somebody's files."""

from .bad_configs import BOMB
from .ground import Case, folder, linked

ROW = "rows: [{name: a}]\n"


def compared(name: str, content: str | bytes, *says: str) -> Case:
    """`calm compare` with this file."""
    return Case(f"compare: {name}", "compare c.yaml --out run", ("c.yaml", *says),
                {"c.yaml": content})  # fmt: skip


CASES = [
    # ------------------------------------------------------------------ files
    compared("empty", "", "rows"),
    compared("binary", b"\x00\xff\xfe", "cannot be read"),
    compared("not UTF-8", b"name: \xe9\n", "cannot be read"),
    compared("a list", "- 1\n", "mapping"),
    compared("a call", "rows: !!python/object/apply:os.system ['touch harm']\n", "os.system"),
    Case("compare: missing", "compare nowhere.yaml --out run", ("nowhere.yaml",)),
    Case("compare: a folder", "compare c.yaml --out run", ("c.yaml",), {"c.yaml": folder}),
    # ------------------------------------------------------------------ bombs
    compared("an alias bomb", f"{BOMB}{ROW}", "100,000 entries"),
    compared("a bomb in a row", f"{BOMB}rows: [{{name: a, config: *a9}}]\n", "100,000 entries"),
    compared("nested brackets", "rows: " + "[" * 100_000, "100 collections"),
    compared("an alias inside of itself", "rows: &a [{name: a, config: *a}]\n", "stands inside"),
    compared("a number of 5,000 digits", f"{ROW}threads: {'9' * 5000}\n", "4300 digits"),
    # ------------------------------------------------------------------ extends
    compared("extends itself", f"extends: c.yaml\n{ROW}", "leads back"),
    Case("compare: extends in a circle", "compare c.yaml --out run", ("leads back", "d.yaml"),
         {"c.yaml": f"extends: d.yaml\n{ROW}", "d.yaml": f"extends: ../ground/c.yaml\n{ROW}"}),
    Case("compare: extends itself by a link", "compare c.yaml --out run", ("leads back",),
         {"c.yaml": f"extends: d.yaml\n{ROW}", "d.yaml": linked("c.yaml")}),
    compared("extends a list", f"extends: [c.yaml]\n{ROW}", "extends"),
    Case("compare: extends what is not there", "compare c.yaml --out run", ("nowhere.yaml",),
         {"c.yaml": f"extends: ../nowhere.yaml\n{ROW}"}),
    Case("compare: extends a bomb", "compare c.yaml --out run", ("d.yaml", "100,000 entries"),
         {"c.yaml": f"extends: d.yaml\n{ROW}", "d.yaml": BOMB}),
    # ------------------------------------------------------------------ rows
    compared("rows of one name", "rows: [{name: a}, {name: a}]\n", "two rows have one name"),
    compared("a row that leads out", "rows: [{name: ../../a}]\n", "../../a", "row 1"),
    compared("an absolute row", "rows: [{name: /etc/a}]\n", "/etc/a"),
    compared("a hidden row", "rows: [{name: .a}]\n", ".a"),
    compared("a row with a null character", 'rows: [{name: "a\\0b"}]\n', "name of a folder"),
    compared("a row without a name", "rows: [{train: false}]\n", "row 1", "name"),
    compared("a row that is a number", "rows: [5]\n", "row 1", "5"),
    compared("rows that are a mapping", "rows: {a: b}\n", "rows"),
    compared("no rows", "rows: []\n", "rows"),
    compared("unknown entries of all kinds", f"{ROW}1: a\nnull: b\nfoo: c\n", "unknown", "foo"),
    compared("unknown entries of a row", "rows: [{name: a, 1: b, foo: c}]\n", "JSON", "in quotes"),
    compared("a config that is a list", "rows: [{name: a, config: [1]}]\n", "row 1", "mapping"),
    compared("weights of itself", "rows: [{name: a, weights_of: a}]\n", "weights_of"),
    compared("weights of a list", "rows: [{name: a, weights_of: [a]}]\n", "weights_of"),
    compared("only rows that there are not", f"{ROW}only: [b]\n", "only", "b"),
    compared("other data in one row", "rows: [{name: a, config: {data: {}}}]\n", "own_budget"),
    # ------------------------------------------------------------------ values
    compared("a name that leads out", f"{ROW}name: ../../results\n", "../../results"),
    compared("huge seeds", f"{ROW}seeds: [{10**40}]\n", "seeds"),
    compared("seeds that are truths", f"{ROW}seeds: [true]\n", "seeds"),
    compared("no seeds", f"{ROW}seeds: []\n", "seeds"),
    compared("threads below 0", f"{ROW}threads: -1\n", "threads"),
    compared("a paper without figures", f"{ROW}paper: {{a: {{b: many}}}}\n", "paper"),
    compared("samples that are no number", f"{ROW}samples: {{a: .inf}}\n", "samples"),
    compared("columns of numbers", f"{ROW}columns: [1, 2]\n", "columns"),
    compared("a budget that is none", f"{ROW}budget: hours\n", "budget"),
    Case("compare: a row that is not there", "compare c.yaml --out run --rows ../a", ("../a",),
         {"c.yaml": ROW}),
    Case("compare: results in a file", "compare c.yaml --out mine", ("mine", "--out"),
         {"c.yaml": ROW, "mine": "precious"}),
    Case("compare: no workers", "compare c.yaml --out run --workers -5", ("--workers", "-5"),
         {"c.yaml": ROW}),
]  # fmt: skip
