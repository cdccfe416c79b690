"""Configs that are none, that would run code, or that hold what no option takes."""

from .ground import Case, config, folder

FIT = "fit -c c.yaml --run run"

# Ten anchors, each a list of ten of the one before: ten thousand million entries in ten lines.
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


def file(name: str, content: str | bytes, *says: str) -> Case:
    """`calm fit` with this as its config."""
    return Case(f"config: {name}", FIT, ("c.yaml", *says), {"c.yaml": content})


def option(name: str, path: str, value: object, *says: str) -> Case:
    """`calm fit` with this value at this place."""
    return Case(f"config: {name}", FIT, says, {"c.yaml": config({path: value})})


CASES = [
    # ------------------------------------------------------------------ files that are no configs
    file("empty", "", "mapping of options"),
    file("blank", " \n\n", "mapping of options"),
    file("binary", bytes(range(256)), "not UTF-8"),
    file("an ELF program", b"\x7fELF\x02\x01\x01" + bytes(64), "YAML"),
    file("Latin-1", "model: {anchor: {path: Köln}}".encode("latin-1"), "not UTF-8", "byte 24"),
    file("UTF-16", config().encode("utf-16"), "not UTF-8"),
    file("a null character", config() + "\0", "YAML", "#x0000"),
    file("a list", "- model\n- data\n", "mapping of options"),
    file("a word", "hello", "mapping of options"),
    file("a number for a name", "1: {}\n", "mapping of options"),
    file("a list for a name", "? [a, b]\n: c\n", "YAML", "line 1"),
    file("tabs", "model:\n\tanchor: x\n", "YAML", "line 2"),
    file("cut off", "model: {anchor: {path: a", "YAML", "line 1"),
    file("half a pair of escapes", '"\\ud800": 1\n', "YAML"),
    file("an unknown alias", "model: *nowhere\n", "YAML", "nowhere", "line 1"),
    Case("config: a folder", FIT, ("c.yaml",), {"c.yaml": folder}),
    Case("config: missing", "fit -c nowhere.yaml --run run", ("nowhere.yaml",)),
    # ------------------------------------------------------------------ bombs
    file("nested brackets", "model: " + "[" * 100_000, "100 collections", "line 1"),
    file("nested mappings", "\n".join(" " * n + "a:" for n in range(500)), "100 collections"),
    file("an alias bomb", BOMB, "100,000 entries", "line 5"),
    file("an alias bomb where a model is", f"{BOMB}model: *a9\n", "100,000 entries"),
    file("a merge bomb", BOMB.replace("[", "{<<: [").replace("]", "]}"), "c.yaml"),
    file("an alias inside of itself", "model: &a {anchor: *a}\n", "*a stands inside", "line 1"),
    file("a number of 5,000 digits", f"seed_everything: {'9' * 5000}\n", "4300 digits"),
    file("a day that is none", "model: 2020-13-45\n", "month must be"),
    file("a tag that does not fit", "model: !!bool perhaps\n", "perhaps"),
    # ------------------------------------------------------------------ code
    file("a call", "model: !!python/object/apply:os.system ['touch harm']\n", "os.system"),
    file("an object", "model: !!python/object/new:os.popen ['touch harm']\n", "os.popen"),
    file("a module", "model: !!python/module:antigravity\n", "antigravity"),
    option("a shell as optimizer", "model/optimizer", "os.system", "os.system", "not allowed"),
    option("a program as optimizer", "model/optimizer",
           {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "harm"]}},
           "subprocess.Popen", "not allowed"),
    option("a program as callback", "trainer/callbacks",
           [{"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "harm"]}}],
           "subprocess.Popen"),
    option("a program as composition", "model/composition",
           {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "harm"]}},
           "subprocess.Popen"),
    option("a program as data", "data",
           {"class_path": "os.system", "init_args": {"command": "touch harm"}}, "os.system"),
    option("a pickle's loader as logger", "trainer/logger",
           {"class_path": "pickle.load", "init_args": {"file": "c.yaml"}}, "pickle.load"),
    # ------------------------------------------------------------------ classes
    option("a class of another kind as composition", "model/composition",
           {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1}}, "torch.nn.Linear"),
    option("a composition as data", "data", {"class_path": "CrossAttention"}, "CrossAttention"),
    option("a class that is abstract", "data",
           {"class_path": "calm_lightning.contracts.Task"}, "Task"),
    option("no class at all", "model/composition", {"init_args": {"every": 2}}, "composition"),
    option("a name without a module", "data", {"class_path": "NoSuchTask"}, "NoSuchTask",
           "Installed"),
    option("a module that is not there", "data", {"class_path": "no.such.Task"}, "no.such"),
    option("a path that is none", "data", {"class_path": "../../etc/passwd"}, "../../etc/passwd"),
    option("a number for a class", "data", {"class_path": 5}, "5"),
    option("a list for a class", "model/composition", [1, 2], "composition"),
    # ------------------------------------------------------------------ values
    option("a number for a model", "model/anchor", 5, "anchor"),
    option("a list for a path", "model/anchor/path", ["a"], "path"),
    option("nothing for a path", "model/anchor/path", None, "path"),
    option("a null character in a path", "model/anchor/path", "a\0b", "a\\x00b"),
    option("a mapping for the augmenting models", "model/augmenting", {"path": "a"}, "augmenting"),
    option("a word for a number", "data/init_args/num_keys", "many", "num_keys", "many"),
    option("half a key", "data/init_args/num_keys", 0.5, "num_keys", "0.5"),
    option("a negative size", "data/init_args/batch_size", -1, "batch_size", "-1"),
    option("a huge seed of the data", "data/init_args/seed", 10**40, "seed"),
    option("a huge seed", "seed_everything", 10**40, "seed_everything"),
    option("a huge seed of a model", "model/anchor/seed", 10**40, "seed"),
    option("a negative seed of a model", "model/augmenting", [
        {"path": "configs/models/tiny/anchor", "weights": "random", "seed": -(2**70)}], "seed"),
    option("a learning rate below 0", "model/optimizer",
           {"class_path": "torch.optim.AdamW", "init_args": {"lr": -1.0}},
           "model.optimizer", "-1"),
    option("a learning rate that is no number", "model/optimizer",
           {"class_path": "torch.optim.AdamW", "init_args": {"lr": float("nan")}},
           "model.optimizer", "nan"),
    option("betas of one", "model/optimizer",
           {"class_path": "torch.optim.AdamW", "init_args": {"betas": [1.0, 1.0]}},
           "model.optimizer", "beta"),
    option("a share that is no number", "model/final_share", float("nan"), "final_share"),
    option("time that is no number", "checkpoint_minutes", float("nan"), "checkpoint_minutes"),
    option("time without end", "checkpoint_minutes", float("inf"), "checkpoint_minutes"),
    option("too many threads", "threads", 10**20, "threads"),
    option("steps beyond all numbers", "trainer/max_steps", -(10**30), "max_steps"),
    option("devices that are none", "trainer/devices", "everything", "devices"),
    option("gradients added up zero times", "trainer/accumulate_grad_batches", 0,
           "accumulate_grad_batches"),
    option("a precision that is none", "trainer/precision", "1-bit", "1-bit"),
    option("a strategy that is none", "trainer/strategy", "hope", "hope"),
    option("a folder of the run that is a number", "run", 5, "run"),
    option("an entry that is none", "model/anchr", {"path": "a"}, "anchr"),
    option("an entry of a class that is none", "model/composition/init_args/evry", 2, "evry"),
    # ------------------------------------------------------------------ other commands
    Case("config: a bomb for estimate", "estimate -c c.yaml", ("c.yaml", "100,000 entries"),
         {"c.yaml": BOMB}),
    Case("config: a bomb for validate", "validate -c c.yaml", ("c.yaml", "100,000 entries"),
         {"c.yaml": BOMB}),
    Case("config: a bomb on the command line", f"{FIT} --data.num_keys '{'[' * 50_000}'",
         ("option", "100 collections"), {"c.yaml": config()}),
    option("a bomb where a number is", "data/init_args/num_keys", "[" * 50_000,
           "c.yaml", "100 collections"),
    Case("config: a bomb in a file of its own", "fit -c c.yaml --run run --data d.yaml",
         ("data",), {"c.yaml": config(), "d.yaml": BOMB}),
    Case("config: binary for predict", "predict -c c.yaml", ("c.yaml", "not UTF-8"),
         {"c.yaml": b"\xff\xfe\x00"}),
    Case("config: a run's own, turned into a list", "test --run run", ("config.yaml", "mapping"),
         {"run/config.yaml": "- 1", "run/checkpoints/last.ckpt": ""}),
    Case("config: a run's own, a bomb", "inspect run", ("config.yaml", "100,000 entries"),
         {"run/config.yaml": BOMB}),
    Case("config: a run's own, with a number for a model", "inspect run", ("config.yaml", "model"),
         {"run/config.yaml": "model: 5\ndata: []\n"}),
    Case("config: a run's own, not UTF-8", "inspect run", ("config.yaml", "cannot be read"),
         {"run/config.yaml": b"\xff"}),
    Case("config: a result that is nested without end", "inspect run", ("result.json", "deeply"),
         {"run/config.yaml": config(), "run/result.json": "[" * 100_000}),
    Case("config: a result that holds no numbers", "inspect run --examples 0", ("result.json",),
         {"run/config.yaml": config(),
          "run/result.json": '{"curve": 5, "metrics": [], "seconds": "long", "details": 1}'}),
]  # fmt: skip
