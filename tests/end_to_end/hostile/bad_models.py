"""Folders of models: saved compositions and backbones with a fault, or with code in them."""

import json

import torch

from .ground import (
    REMOVED,
    Case,
    Maker,
    backbone,
    config,
    first,
    folder,
    header,
    linked,
    model,
    module_of,
    pickled,
    removed,
    tensors,
    torch_pickled,
)

ASK = 'generate m --prompt "1+2="'
SCORE = "test -c c.yaml --run run --ckpt_path null"
WEIGHTS = "m/composition.safetensors"
INDEX = "m/model.safetensors.index.json"
HUGE = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
SHORT = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}


def described(name: str, path: str, value: object, *says: str) -> Case:
    """`calm generate` with a composition whose config.json says this."""
    return Case(f"composition: {name}", ASK, ("m", *says), {"m": model({path: value})})


def weighed(name: str, content: str | bytes | Maker, *says: str) -> Case:
    """The same with these weights."""
    files = {"m": model(), WEIGHTS: content}
    return Case(f"composition: {name}", ASK, ("composition.safetensors", *says), files)


def plain(name: str, *says: str, **files: str | bytes | Maker) -> Case:
    """`calm generate` with a plain model that has these files, `a__b` for a.b."""
    inside = {f"m/{file.replace('__', '.')}": content for file, content in files.items()}
    return Case(f"model: {name}", ASK, ("'m'", *says), {"m": backbone(), **inside})


def configured(name: str, path: str, value: object, *says: str) -> Case:
    """The same with this in its config.json."""
    return Case(f"model: {name}", ASK, ("'m'", *says), {"m": backbone({path: value})})


def drop_one(held: dict[str, torch.Tensor]) -> None:
    """Take a tensor away."""
    del held[min(held)]


def add_one(held: dict[str, torch.Tensor]) -> None:
    """Add a tensor."""
    held["another"] = torch.zeros(1)


def index(*files: str) -> str:
    """A list of weight files that names these."""
    return json.dumps({"metadata": {}, "weight_map": {f"w{n}": f for n, f in enumerate(files)}})


CASES = [
    # ------------------------------------------------------------------ what a composition says
    described("a folder that leads out", "backbones/0/folder", "../../outside", "leads out"),
    described("an absolute folder", "backbones/0/folder", "/etc", "leads out"),
    Case("composition: a folder that is a link", ASK, ("leads out",),
         {"m": model({"backbones/1/folder": "inside"}), "m/inside": linked("..")}),
    described("a folder that is a number", "backbones/0/folder", 5, "folder"),
    described("a name that leads nowhere", "backbones/0/name", "../../nowhere/at/all",
              "../../nowhere/at/all"),
    described("a name that is a number", "backbones/0/name", 5, "name"),
    described("a name with a null character", "backbones/0/name", "a\0b", "a\\x00b"),
    described("a hash that is a number", "backbones/0/fingerprint", 5, "fingerprint"),
    described("another hash", "backbones/1/fingerprint", "0" * 64, "sha256"),
    described("a seed that is a word", "backbones/0/seed", "x", "seed"),
    described("a huge seed", "backbones/0/seed", 10**40, "seed"),
    described("weights of an unknown kind", "backbones/0/weights", "evil", "evil"),
    described("a quantiser of an unknown kind", "backbones/0/quantization", "evil", "evil"),
    described("a number for a backbone", "backbones/1", 5, "config.json"),
    described("no backbones", "backbones", [], "config.json"),
    described("a mapping for the backbones", "backbones", {"0": {}}, "backbones"),
    described("more backbones than it joins", "backbones/1/role", None, "role"),
    described("a class of another kind", "composition/class_path", "torch.nn.Linear", "Linear"),
    described("a class that is a number", "composition/class_path", 5, "class_path"),
    described("a class that is a path", "composition/class_path", "../../evil", "evil"),
    described("settings that are a bomb", "composition/init_args/every", "[" * 50_000,
              "config.json", "100 collections"),
    described("settings of a wrong type", "composition/init_args/every", "often", "every"),
    described("settings that are unknown", "composition/init_args/evil", 5, "evil"),
    described("settings that are a list", "composition/init_args", [], "init_args"),
    described("connections to layers that are not there", "composition/init_args/connections",
              [[2**70, 0]], str(2**70)),
    Case("composition: a class of a module beside it", ASK, ("evil.Evil",),
         {"m": model({"composition/class_path": "evil.Evil"}), "evil.py": module_of("Evil")}),
    Case("composition: a setting of a module beside it", ASK, ("Merging",),
         {"m": model({"composition/class_path": "Merging",
                      "composition/init_args": {"method": {"class_path": "evil.Evil"}}}),
          "evil.py": module_of("Evil")}),
    Case("composition: a corrector with a setting that there is not", ASK, ("Rewriting",),
         {"m": model({"composition/class_path": "Rewriting",
                      "composition/init_args": {"corrector": {"path": "m", "evil": 1}}})}),
    Case("composition: a description that is nested without end", ASK, ("config.json", "deeply"),
         {"m": model(), "m/config.json": '{"composition": ' + "[" * 100_000}),
    Case("composition: a description that is binary", ASK, ("m",),
         {"m": model(), "m/config.json": b'"composition"\xff\xfe'}),
    Case("composition: facts that are damaged", "card m", ("run.json", "damaged"),
         {"m": model(), "m/run.json": "[" * 100_000}),
    Case("composition: facts that are a list", "card m", ("run.json",),
         {"m": model(), "m/run.json": "[1]"}),
    Case("composition: scores that are words", "card m", ("run.json",),
         {"m": model(), "m/run.json": '{"test": {"a/b": "good"}}'}),
    Case("composition: no configs of its models", "card m", ("config.json", "anchor"),
         {"m": model({"anchor": REMOVED})}),
    Case("composition: a card over a folder that is none", "card m", ("m",), {"m/a.txt": "mine"}),
    # ------------------------------------------------------------------ its weights
    weighed("a pickle", pickled, "safetensors"),
    weighed("torch's file with a pickle in it", torch_pickled, "safetensors"),
    weighed("empty weights", b"", "damaged"),
    weighed("text for weights", "weights", "damaged"),
    weighed("a folder for weights", folder, "composition.safetensors"),
    weighed("no weights", removed, "holds no composition.safetensors"),
    weighed("a header longer than the file", b"\xff" * 8 + b"{}", "damaged"),
    weighed("a header that is not JSON", header(b"{" * 100), "damaged"),
    weighed("a header that is nested without end", header(b'{"a":' * 20_000), "damaged"),
    weighed("a shape larger than the file", header(HUGE), "damaged"),
    weighed("fewer bytes than the header says", header(SHORT, bytes(8)), "damaged"),
    weighed("places that overlap", header({**SHORT, "b": SHORT["a"]}, bytes(16)), "damaged"),
    weighed("a tensor that is missing", tensors(drop_one), "missing"),
    weighed("a tensor too many", tensors(add_one), "another"),
    weighed("values that are no numbers", first(lambda t: t * float("nan")), "not finite"),
    weighed("values without end", first(lambda t: t + float("inf")), "not finite"),
    weighed("whole numbers", first(lambda t: t.to(torch.int8)), "torch.int8"),
    weighed("another shape", first(lambda t: t.flatten()), "shape"),
    weighed("a scalar", first(lambda t: t.sum()), "shape ()"),
    Case("composition: values that are no numbers, to begin with", "fit -c c.yaml --run run",
         ("composition.safetensors", "not finite"),
         {"m": model(), WEIGHTS: first(lambda t: t * float("nan")),
          "c.yaml": config({"model/start_from": "m",
                            "model/augmenting/0/path": "configs/models/tiny/augmenting"})}),
    # ------------------------------------------------------------------ plain models: code
    Case("model: code of its own", ASK, ("'m'",),
         {"m": backbone({"model_type": "evil",
                         "auto_map": {"AutoConfig": "evil.Evil",
                                      "AutoModelForCausalLM": "evil.Evil"}}),
          "m/evil.py": module_of("Evil")}),
    Case("model: code of its own for the tokenizer", ASK, ("'m'",),
         {"m": backbone(), "m/evil.py": module_of("Evil"),
          "m/tokenizer_config.json": json.dumps(
              {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
          "m/tokenizer.json": removed}),
    plain("a pickle for weights", model__safetensors=removed, pytorch_model__bin=pickled),
    plain("torch's file with a pickle for weights", model__safetensors=removed,
          pytorch_model__bin=torch_pickled),
    plain("a pickle that is called safetensors", model__safetensors=pickled),
    Case("model: a list of weights that leads out", ASK, (INDEX, "leads out"),
         {"m": backbone(), INDEX: index("../../outside.safetensors")}),
    Case("model: a list of weights on the whole disk", ASK, (INDEX, "leads out", "/etc/passwd"),
         {"m": backbone(), INDEX: index("/etc/passwd")}),
    Case("model: a list of weights that is none", ASK, (INDEX,), {"m": backbone(), INDEX: "[1]"}),
    # ------------------------------------------------------------------ plain models: files
    plain("empty weights", model__safetensors=b""),
    plain("a shape larger than the file", model__safetensors=header(HUGE)),
    plain("a header longer than the file", model__safetensors=b"\xff" * 8),
    plain("a tensor that is missing", "lack", model__safetensors=tensors(drop_one)),
    plain("another shape", model__safetensors=first(lambda t: t[:1])),
    plain("a config that is empty", config__json=""),
    plain("a config that is a list", config__json="[1, 2]"),
    plain("a config that is binary", config__json=b"\xff\xfe\x00"),
    plain("a config that is nested without end", config__json='{"a":' * 50_000),
    plain("a tokenizer that is empty", tokenizer__json=""),
    plain("a tokenizer that is a list", tokenizer__json="[]"),
    plain("a tokenizer that is binary", tokenizer__json=b"\xff\xfe\x00"),
    plain("a tokenizer of another version", tokenizer__json='{"version": "9"}'),
    plain("a tokenizer that is nested without end", tokenizer__json="[" * 50_000),
    plain("settings of a tokenizer that are a list", tokenizer_config__json="[1]"),
    # ------------------------------------------------------------------ plain models: numbers
    configured("layers that are a word", "num_hidden_layers", "two"),
    configured("no layers", "num_hidden_layers", 0),
    configured("layers below 0", "num_hidden_layers", -3),
    configured("a width below 0", "hidden_size", -5),
    configured("a width beyond all memory", "hidden_size", 2**50),
    configured("heads that do not divide the width", "num_attention_heads", 7),
    configured("no heads", "num_attention_heads", 0),
    configured("a vocabulary smaller than the tokenizer's", "vocab_size", 3),
    configured("a context that is a word", "max_position_embeddings", "many"),
    configured("an activation that there is not", "hidden_act", "evil"),
    configured("a kind that there is not", "model_type", "evil", "evil"),
    configured("a kind that is a number", "model_type", 5),
    configured("no kind", "model_type", REMOVED),
    configured("an encoder", "model_type", "bert"),
    # ------------------------------------------------------------------ places
    Case("model: a path that leads nowhere", 'generate ../../../nowhere --prompt "1"',
         ("../../../nowhere",)),
    Case("model: a file", 'generate m --prompt "1"', ("'m'",), {"m": "weights"}),
    Case("model: an empty folder", 'generate m --prompt "1"', ("config.json",), {"m": folder}),
    Case("model: a link in a circle", 'generate m --prompt "1"', ("'m'",), {"m": linked("m")}),
    Case("model: a user that there is not", "fit -c c.yaml --run run", ("~nobody-at-all/m",),
         {"c.yaml": config({"model/anchor/path": "~nobody-at-all/m"})}),
    Case("model: a chat template that reaches for python", 'generate m --chat --prompt "1"',
         ("chat template",),
         {"m": backbone(), "m/chat_template.jinja":
          "{{ ''.__class__.__mro__[1].__subclasses__() }}"}),
    Case("model: a chat template that counts without end", 'generate m --chat --prompt "1"',
         ("chat template",),
         {"m": backbone(), "m/chat_template.jinja":
          "{% for i in range(10 ** 12) %}{{ i }}{% endfor %}"}),
    Case("model: a chat template that is none", 'generate m --chat --prompt "1"',
         ("chat template",), {"m": backbone(), "m/chat_template.jinja": "{% for %}"}),
    Case("model: merging one of another width", SCORE, ("'m'",),
         {"m": backbone(), "c.yaml": config({
             "model/augmenting": [{"path": "configs/models/tiny/augmenting", "weights": "random"}],
             "model/anchor": {"path": "m"},
             "model/composition": {"class_path": "Merging", "init_args": {"method": "Linear"}}})}),
    Case("model: merging by weights that are no numbers", SCORE, ("weights", "nan"),
         {"c.yaml": config({
             "model/composition": {"class_path": "Merging",
                                   "init_args": {"method": "Linear",
                                                 "weights": [float("nan"), 1.0]}}})}),
]  # fmt: skip
