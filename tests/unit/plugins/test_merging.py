"""Merging whole models: what comes out, what is refused, and how much is in memory meanwhile."""

import json
import re
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from calm_lightning.backbone import Backbone
from calm_lightning.contracts import CalmError
from calm_lightning.testing import FAMILIES, tiny_backbone, tiny_tokenizer
from calm_plugins.compositions.merging import (
    Dare,
    Linear,
    MergeMethod,
    Merging,
    Slerp,
    TaskArithmetic,
    Ties,
)
from calm_plugins.compositions.merging.composition import _depths

IDS = torch.tensor([[5, 9, 3, 7, 11, 6]])


def model(seed: int = 0, family: str = "llama", **options: Any) -> Backbone:
    given = {"layers": 3, "tokenizer": tiny_tokenizer(), "name": f"model-{seed}", **options}
    return tiny_backbone(family, width=given.pop("width", 16), seed=seed, **given)


def weights(of: Any) -> dict[str, Tensor]:
    return dict(of.model.named_parameters())


def share_of_second(merged: Any, first: Backbone, second: Backbone) -> dict[str, float]:
    """For each weight, how far the merged one is on the way from the first model to the second."""
    found = {}
    for name, weight in weights(merged).items():
        way = weights(second)[name] - weights(first)[name]
        found[name] = float(((weight - weights(first)[name]) * way).sum() / way.pow(2).sum())
    return found


# ------------------------------------------------------------------ what comes out


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_a_plain_model_that_transformers_opens(family: str, tmp_path: Path) -> None:
    first, second = model(0, family), model(1, family)
    merged = Merging(Linear(), [3.0, 1.0]).compose(first, [second])
    for share in share_of_second(merged, first, second).values():
        assert share == pytest.approx(0.25, abs=1e-5)
    logits = merged(input_ids=IDS).logits
    assert not torch.allclose(logits, first.model(input_ids=IDS).logits, atol=1e-2)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=IDS).logits, logits)
    assert (
        AutoTokenizer.from_pretrained(tmp_path)("ab")["input_ids"]
        == tiny_tokenizer()("ab")["input_ids"]
    )


def test_models_whose_weights_are_used_in_another_way_are_refused() -> None:
    other = model(1)
    other.model.config.rms_norm_eps = 1e-3
    with pytest.raises(
        CalmError, match=r"rms_norm_eps in the config differs: .* 0\.001 in 'model-1'"
    ):
        Merging(Linear()).compose(model(0), [other])
    other = model(1)
    other.model.config.max_position_embeddings *= 2  # of rotary positions no weight depends on it
    Merging(Linear()).compose(model(0), [other])


def test_the_models_that_it_was_made_of_stay_what_they_are() -> None:
    models = [model(0), model(1)]
    before = [each.fingerprint(exact=True) for each in models]
    merged = Merging(TaskArithmetic(), base="anchor").compose(models[0], models[1:])
    with torch.no_grad():
        for weight in merged.model.parameters():
            weight.zero_()
    assert [each.fingerprint(exact=True) for each in models] == before


def test_nothing_of_it_is_trained_and_it_stays_in_eval_mode() -> None:
    merged = Merging(Linear()).compose(model(0), [model(1)])
    merged.train()
    assert not list(merged.trainable_parameters())
    assert not merged.model.training
    assert len(merged.frozen_backbones) == 1
    with pytest.raises(CalmError, match="no part of a merged model"), merged.anchor_only():
        pass


@pytest.mark.parametrize("base", [None, "anchor"])
def test_one_model_with_weight_one_gives_that_model_back(base: str | None) -> None:
    method: MergeMethod = TaskArithmetic() if base else Linear()
    models = [model(0), model(1)] if base else [model(1)]
    merged = Merging(method, [1.0], base).compose(models[0], models[1:])
    for name, weight in weights(model(1)).items():
        torch.testing.assert_close(weights(merged)[name], weight)


def test_a_model_merged_with_itself_is_itself() -> None:
    merged = Merging(Slerp(), [0.3, 0.7]).compose(model(4), [model(4)])
    for name, weight in weights(model(4)).items():
        torch.testing.assert_close(weights(merged)[name], weight)


def test_tied_weights_stay_tied_and_are_merged_once() -> None:
    merged = Merging(Linear()).compose(model(0, "gpt2"), [model(1, "gpt2")])
    ends = merged.model.get_input_embeddings(), merged.model.get_output_embeddings()
    assert ends[0].weight is ends[1].weight


def test_weights_in_bfloat16_are_merged_in_float32_and_kept_in_bfloat16() -> None:
    seen: set[torch.dtype] = set()

    class Seen(Linear):
        def merge(self, tensors: Sequence[Tensor], *rest: Any) -> Tensor:
            seen.update(tensor.dtype for tensor in tensors)
            return super().merge(tensors, *rest)

    models = [model(0), model(1)]
    for each in models:
        each.model.to(torch.bfloat16)
    merged = Merging(Seen()).compose(models[0], models[1:])
    assert seen == {torch.float32}
    assert {weight.dtype for weight in merged.model.parameters()} == {torch.bfloat16}


def test_a_note_says_what_it_was_made_of(tmp_path: Path) -> None:
    model(9).model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    mixed: list[Any] = [0.5, [0.0, 1.0]]
    merging = Merging(Ties(density=0.3), mixed, str(tmp_path / "base"), seed=4)
    merging.compose(model(0), [model(1)]).save_pretrained(tmp_path / "merged")
    note = json.loads((tmp_path / "merged" / "merging.json").read_text())
    assert note["method"]["class_path"].endswith(".Ties")
    assert note["method"]["init_args"] == {"density": 0.3, "scale": 1.0}
    assert note["seed"] == 4
    assert [(m["name"], m["weight"]) for m in note["models"]] == [
        ("model-0", 0.5),
        ("model-1", [0.0, 1.0]),
    ]
    assert note["models"][1]["fingerprint"] == model(1).fingerprint()
    assert note["base"]["fingerprint"] == model(9).fingerprint()


# ------------------------------------------------------------------ weights that change with depth


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "llama"])
def test_what_precedes_the_layers_is_not_deep_and_what_follows_is(family: str) -> None:
    backbone = tiny_backbone(family, layers=3)
    depths = _depths(backbone)
    inside = next(n for n, m in backbone.model.named_modules() if m is backbone.layers)
    outside = {name: depth for name, depth in depths.items() if not name.startswith(f"{inside}.")}
    early = [name for name in outside if "embed" in name or "wpe" in name or "wte" in name]
    assert early
    assert all(outside[name] == 0.0 for name in early)
    assert {outside[name] for name in outside if name not in early} == {1.0}
    assert {depths[n] for n in depths if n.startswith(f"{inside}.")} == {0.0, 0.5, 1.0}


def test_a_list_of_weights_is_spread_over_the_layers() -> None:
    first, second = model(0, layers=5), model(1, layers=5)
    merged = Merging(TaskArithmetic(), [[0.0, 1.0, 0.6]], "anchor").compose(first, [second])
    shares = share_of_second(merged, first, second)
    for layer, share in enumerate([0.0, 0.5, 1.0, 0.8, 0.6]):
        found = [s for name, s in shares.items() if name.startswith(f"model.layers.{layer}.")]
        assert len(found) == 9
        assert found == pytest.approx([share] * 9, abs=1e-5)
    assert shares["model.embed_tokens.weight"] == pytest.approx(0.0, abs=1e-5)
    assert shares["model.norm.weight"] == pytest.approx(0.6, abs=1e-5)
    assert shares["lm_head.weight"] == pytest.approx(0.6, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_are_found_in_every_family(family: str) -> None:
    first, second = model(0, family), model(1, family)
    merged = Merging(TaskArithmetic(), [[0.0, 0.2, 1.0]], "anchor").compose(first, [second])
    shares = list(share_of_second(merged, first, second).values())
    assert {round(share, 3) for share in shares} == {0.0, 0.2, 1.0}


def test_one_layer_and_one_number_are_no_special_case() -> None:
    first, second = model(0, layers=1), model(1, layers=1)
    merged = Merging(TaskArithmetic(), [[0.3]], "anchor").compose(first, [second])
    found = share_of_second(merged, first, second).values()
    assert list(found) == pytest.approx([0.3] * len(found), abs=1e-5)


# ------------------------------------------------------------------ base and chance


def test_the_base_may_be_a_folder_and_then_the_anchor_is_merged_too(tmp_path: Path) -> None:
    base, models = model(2), [model(0), model(1)]
    base.model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    merged = Merging(TaskArithmetic(), [0.5, 2.0], str(tmp_path)).compose(models[0], models[1:])
    for name, start in weights(base).items():
        first, second = (weights(each)[name] for each in models)
        expected = start + 0.5 * (first - start) + 2.0 * (second - start)
        torch.testing.assert_close(weights(merged)[name], expected)


def test_chance_hangs_on_the_seed_and_the_name_alone() -> None:
    def merged(seed: int, layers: int = 3) -> dict[str, Tensor]:
        first = model(0, layers=layers)
        other = model(0, layers=layers)
        for weight in other.model.parameters():
            weight.data.add_(1.0)
        return weights(Merging(Dare(), None, "anchor", seed).compose(first, [other]))

    one, again, other = merged(0), merged(0), merged(1)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])
    neighbour = one["model.layers.0.mlp.up_proj.weight"]
    start = weights(model(0))
    drops = (one[name] == start[name], neighbour == start["model.layers.0.mlp.up_proj.weight"])
    assert not torch.equal(*drops)


# ------------------------------------------------------------------ memory


def test_one_tensor_of_each_model_is_worked_on_at_a_time() -> None:
    """In bfloat16 each is converted, so that one which stayed would be a copy that stayed."""

    class Watching(TaskArithmetic):
        alive: ClassVar[weakref.WeakSet[Tensor]] = weakref.WeakSet()
        most: ClassVar[int] = 0

        def merge(
            self, tensors: Sequence[Tensor], numbers: Any, base: Tensor | None, chance: Any
        ) -> Tensor:
            assert base is not None
            for tensor in (*tensors, base):
                self.alive.add(tensor)
            type(self).most = max(self.most, len(self.alive))
            return super().merge(tensors, numbers, base, chance)

    models = [model(seed) for seed in range(3)]
    for each in models:
        each.model.to(torch.bfloat16)
    Merging(Watching(), base="anchor").compose(models[0], models[1:])
    assert Watching.most == 3  # the base's and two models'


def test_a_base_on_disk_is_mapped_and_not_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights in memory are the file: what the file says later, they say."""
    model(2).model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    file, seen = tmp_path / "model.safetensors", []

    class Changing(TaskArithmetic):
        def merge(
            self, tensors: Sequence[Tensor], numbers: Any, below: Tensor | None, chance: Any
        ) -> Tensor:
            assert below is not None
            if below.shape == (97, 16) and not seen:
                place = file.read_bytes().index(below[0].numpy().tobytes())
                with file.open("r+b") as opened:
                    opened.seek(place)
                    opened.write(torch.tensor([123.0]).numpy().tobytes())
                seen.append(float(below[0, 0]))
            return super().merge(tensors, numbers, below, chance)

    Merging(Changing(), base=str(tmp_path)).compose(model(0), [])
    assert seen == [123.0]


# ------------------------------------------------------------------ refused


def other_meaning() -> Backbone:
    tokenizer = tiny_tokenizer()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = backend["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    changed = tokenizer.backend_tokenizer.from_str(json.dumps(backend))
    return model(1, tokenizer=type(tokenizer)(tokenizer_object=changed))


def other_heads() -> Backbone:
    found = model(1)
    found.model.config.num_attention_heads = 2
    return found


def untied() -> Backbone:
    found = model(1, "gpt2")
    found.model.lm_head.weight = torch.nn.Parameter(torch.zeros(97, 16))
    return found


DIFFERENT: dict[str, tuple[Any, list[str]]] = {
    "family": (lambda: model(1, "gpt2"), ["LlamaForCausalLM", "GPT2LMHeadModel"]),
    "same shapes": (lambda: model(1, "mistral"), ["LlamaForCausalLM", "MistralForCausalLM"]),
    "width": (lambda: model(1, width=24), ["layers of width 16", "layers of width 24"]),
    "layers": (lambda: model(1, layers=2), ["3 layers of width 16", "2 layers of width 16"]),
    "vocabulary": (lambda: model(1, vocab=101, tokenizer=None), [r"\(97, 16\)", r"\(101, 16\)"]),
    "meaning": (other_meaning, ["token id 2", "'a'", "'b'"]),
    "heads": (other_heads, ["attention heads", "4, of keys", "2, of keys"]),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_models_that_are_not_alike_are_refused_with_both_shapes(name: str) -> None:
    make, said = DIFFERENT[name]
    with pytest.raises(CalmError) as error:
        Merging(Linear()).compose(model(0), [make()])
    for part in (*said, "'model-0'", "'model-1'"):
        assert re.search(part, str(error.value)), (part, str(error.value))


def test_one_tied_and_one_not_are_refused() -> None:
    with pytest.raises(CalmError, match=r"shape of lm_head.weight .*no such weight.*\(97, 16\)"):
        Merging(Linear()).compose(model(0, "gpt2"), [untied()])


def test_the_base_must_be_alike_too(tmp_path: Path) -> None:
    model(2, width=24).model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CalmError, match=r"width 16 in 'model-0'.*width 24"):
        Merging(Ties(), base=str(tmp_path)).compose(model(0), [])


@pytest.mark.parametrize(
    ("merging", "said"),
    [
        (lambda: Merging(Ties()), "Ties adds up what .* needs their base model: base=anchor, or"),
        (lambda: Merging(Linear(), base="anchor"), "Linear uses no base model; leave out base"),
        (lambda: Merging(Ties(), base="./nowhere"), "'./nowhere' does not exist"),
        (lambda: Merging(Linear(), [1.0]), "are 1 for 2 merged models, model-0, model-1"),
        (lambda: Merging(Ties(), [1.0, 1.0], "anchor"), "are 2 for 1 merged models, model-1"),
        (lambda: Merging(Linear(), [1.0, float("nan")]), "nan is neither a number"),
        (lambda: Merging(Linear(), [1.0, []]), r"\[\] is neither a number"),
        (lambda: Merging(Linear(), [1.0, [1.0, -3.0]]), r"\[1.0, -1.0\] add up to zero"),
        (lambda: Merging(Slerp(), [1.0], "anchor"), "Slerp uses no base"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_merged(
    merging: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Merging, "_merge", None)
    with pytest.raises(CalmError, match=said):
        merging().compose(model(0), [model(1)])


def test_the_anchor_as_base_alone_leaves_nothing_to_merge() -> None:
    with pytest.raises(CalmError, match="there must be augmenting models"):
        Merging(Ties(), base="anchor").compose(model(0), [])


def test_a_method_that_gives_another_shape_is_named() -> None:
    class Flat(Linear):
        def merge(self, *given: Any) -> Tensor:
            return super().merge(*given).flatten()

    with pytest.raises(
        CalmError, match=r"Flat made .* \(1552,\) .*embed_tokens.weight, .* \(97, 16"
    ):
        Merging(Flat()).compose(model(0), [model(1)])
