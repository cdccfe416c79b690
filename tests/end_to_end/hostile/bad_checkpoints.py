"""Checkpoints of runs, and caches, that are damaged, false, or pickles in disguise."""

import json

from .ground import REMOVED, Case, config, packed, pickled, run, task, torch_pickled

TEST = "test --run run"
RESUME = "fit --run run --resume"
LAST = "run/checkpoints/last.ckpt"
PREVIOUS = "run/checkpoints/last.previous.ckpt"


def tested(name: str, path: str, value: object, *says: str) -> Case:
    """`calm test` with a checkpoint in which this is changed."""
    return Case(f"checkpoint: {name}", TEST, ("checkpoint", *says), {"run": run({path: value})})


def resumed(name: str, path: str, value: object, *says: str) -> Case:
    """`calm fit --resume` with the same."""
    files = {"run": run({path: value}), PREVIOUS: b""}
    return Case(f"checkpoint: {name}", RESUME, ("checkpoint", *says), files)


def cache(name: str, content: str | bytes, *says: str) -> Case:
    """`calm fit` on texts drawn before, in this file."""
    drawing = {
        "model": {"path": "configs/models/tiny/anchor", "weights": "random"},
        "cache": "texts.jsonl",
        "tree": {"style": "text", "branching": [2], "max_new_tokens": 2, "start": "1+"},
    }
    files = {"c.yaml": task("SelfDecompression", **drawing), "texts.jsonl": content}
    return Case(f"cache: {name}", "fit -c c.yaml --run run", ("texts.jsonl", *says), files)


CASES = [
    # ------------------------------------------------------------------ files
    Case("checkpoint: a pickle", TEST, ("last.ckpt", "damaged"), {"run": run(), LAST: pickled}),
    Case("checkpoint: torch's file with a pickle in it", TEST, ("last.ckpt", "damaged"),
         {"run": run(), LAST: torch_pickled}),
    Case("checkpoint: a pickle, to go on with", RESUME, ("last.ckpt", "No checkpoint"),
         {"run": run(), LAST: torch_pickled, PREVIOUS: pickled}),
    Case("checkpoint: a pickle named", "fit -c c.yaml --run run --ckpt_path evil.ckpt",
         ("evil.ckpt", "damaged"), {"c.yaml": config(), "evil.ckpt": torch_pickled}),
    Case("checkpoint: a pickle for estimate's sake", "predict -c c.yaml --ckpt_path evil.ckpt",
         ("evil.ckpt", "damaged"), {"c.yaml": config(), "evil.ckpt": pickled}),
    Case("checkpoint: a pickle where a cluster leaves one",
         "validate -c c.yaml --run run --ckpt_path hpc", ("hpc_ckpt_1.ckpt", "damaged"),
         {"c.yaml": config(), "run/hpc_ckpt_1.ckpt": torch_pickled}),
    Case("checkpoint: empty", TEST, ("last.ckpt", "damaged"), {"run": run(), LAST: b""}),
    Case("checkpoint: text", TEST, ("last.ckpt", "damaged"), {"run": run(), LAST: "weights"}),
    Case("checkpoint: packed", TEST, ("last.ckpt", "damaged"), {"run": run(), LAST: packed(b"1")}),
    Case("checkpoint: zeros", TEST, ("last.ckpt", "damaged"), {"run": run(), LAST: bytes(5000)}),
    Case("checkpoint: a false seal", TEST, ("last.ckpt", "SHA-256"),
         {"run": run(), LAST: b"PK" + bytes(200) + b"sha256:" + b"0" * 64}),
    Case("checkpoint: missing", "test -c c.yaml --ckpt_path ../../nowhere.ckpt",
         ("../../nowhere.ckpt",), {"c.yaml": config()}),
    # ------------------------------------------------------------------ contents
    tested("a list for the weights", "state_dict", [], "state_dict"),
    tested("a text for a weight", "state_dict", {"a": "b"}, "state_dict", "no tensor"),
    tested("no weights", "state_dict", {}, "missing"),
    tested("no version", "pytorch-lightning_version", REMOVED, "pytorch-lightning_version"),
    tested("a version that is none", "pytorch-lightning_version", "new", "new"),
    tested("a list for the loops", "loops", [], "loops"),
    tested("no loops", "loops", {}, "loops"),
    tested("a number for the backbones", "backbones", 5, "backbones"),
    tested("a backbone without a hash", "backbones/0/fingerprint", REMOVED, "fingerprint"),
    tested("a number for a hash", "backbones/0/fingerprint", 5, "fingerprint"),
    tested("another hash", "backbones/0/fingerprint", "0" * 64, "sha256"),
    tested("a class that is a path", "composition/class_path", "../../evil.Evil", "of a Evil"),
    tested("settings of another kind", "composition/init_args/every", "often", "every"),
    tested("a list for the settings", "composition/init_args", [], "init_args"),
    tested("hyper-parameters that name a program", "hyper_parameters",
           {"optimizer": "os.system"}, "hyper_parameters"),
    resumed("a word for the settings", "settings", "mine", "settings"),
    resumed("a step that is a word", "global_step", "last", "global_step"),
    resumed("no optimizer", "optimizer_states", REMOVED, "optimizer"),
    resumed("a number for the optimizer", "optimizer_states", 5, "gone on with"),
    resumed("an empty optimizer", "optimizer_states/0", {}, "param_groups"),
    resumed("no schedule", "lr_schedulers", REMOVED, "learning rate scheduler"),
    resumed("loops without the fit's", "loops/fit_loop", REMOVED, "fit_loop"),
    resumed("a count of batches that is a word", "KeyValue/consumed_batches", "all",
            "consumed_batches"),
    resumed("words for the scores before training", "scores_before_training", {"a": "high"},
            "scores_before_training", "high"),
    # ------------------------------------------------------------------ caches of texts
    cache("a pickle", b"\x80\x04\x95\x05\x00\x00\x00\n", "not the root"),
    cache("something else", '{"prompt": "1", "target": "2"}\n', "not the root"),
    cache("nested without end", "[" * 100_000 + "\n", "not the root"),
    cache("drawn otherwise", '{"id": "0", "parent": null, "level": 0, "about": {}}\n',
          "drawn in another way"),
    # ------------------------------------------------------------------ caches of candidates
    Case("cache: a file where candidates go", "fit -c c.yaml --run run", ("is a file",),
         {"c.yaml": config({"model/composition": {
             "class_path": "Rewriting", "init_args": {"cache": "candidates", "separator": ":"}}}),
          "candidates": json.dumps({"prompt": "1"})}),
]  # fmt: skip
