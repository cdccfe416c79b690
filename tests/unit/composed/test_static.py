"""Memories of a fixed size, and a compiled step: the same answers as ever."""

import copy
import inspect
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn
from transformers import CompileConfig, GenerationConfig

import calm_lightning as calm
from calm_lightning.composed import ComposedModel
from calm_lightning.composed.model import _Run
from calm_lightning.composed.reading import Offer
from calm_lightning.contracts import CalmError
from calm_lightning.testing import FAMILIES, tiny_backbone, tiny_tokenizer
from calm_lightning.testing.case import disturb, padded, seeded, tokens
from calm_lightning.testing.tokenizers import text_tokenizer
from calm_plugins.compositions.cross_attention import CrossAttention

NEW = 5
STATIC: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True}


@pytest.fixture(autouse=True)
def _for_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    # Types are checked around every function here, which is not what is to be compiled.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for kind in (_Run, Offer):
        monkeypatch.setattr(kind, "__init__", inspect.unwrap(kind.__init__))


def composed(family: str = "llama", **options: Any) -> ComposedModel:
    anchor, *augmenting = (
        tiny_backbone(family, width, vocab=37, seed=seed, tokenizer=tiny_tokenizer(37), context=512)
        for seed, width in enumerate((32, 16, 16))
    )
    with seeded(1):
        model = calm.compose(anchor, augmenting, CrossAttention(every=2, **options))
        disturb(model, 0.2)
    assert isinstance(model, ComposedModel)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> ComposedModel:
    return composed()


def say(model: ComposedModel, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    given = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    said = model.generate(input_ids=ids, attention_mask=mask, **given)
    assert isinstance(said, Tensor)
    return said


def compiled_by(backend: Any) -> dict[str, Any]:
    config = CompileConfig(backend=backend, mode="default", fullgraph=True)
    return {"cache_implementation": "static", "compile_config": config}


def counting() -> tuple[list[str], Callable[..., Any]]:
    """A backend that compiles nothing, and notes when it is given a graph and when that runs."""
    noted: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        noted.append("graph")

        def run(*given: Any) -> Any:
            noted.append("run")
            return graph.forward(*given)

        return run

    return noted, backend


def test_a_step_through_all_models_is_one_graph(model: ComposedModel) -> None:
    noted, backend = counting()
    batch = padded(tokens(3, 8), (8, 5, 3), left=True, fill=0)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    found = say(model, ids, mask, **compiled_by(backend))
    assert torch.equal(found, say(model, ids, mask))
    assert noted == ["graph"] + ["run"] * (NEW - 1)  # the prompt itself is read as ever


@pytest.mark.slow
def test_other_lengths_and_batches_soon_need_no_compiler(model: ComposedModel) -> None:
    noted, backend = counting()
    for rows, length in ((2, 4), (3, 7), (4, 125)):
        ids = tokens(rows, length)
        assert torch.equal(say(model, ids, **compiled_by(backend)), say(model, ids))
    before = noted.count("graph")
    for rows, length in ((5, 9), (2, 50), (7, 300)):
        ids = tokens(rows, length)
        assert torch.equal(say(model, ids, **compiled_by(backend)), say(model, ids))
    assert noted.count("graph") == before


def test_what_was_trained_since_is_heard() -> None:
    model, ids, options = composed(), tokens(2, 6), compiled_by(counting()[1])
    before = say(model, ids, **options)
    with torch.no_grad():
        for _, weight in model.trainable_parameters():
            weight.mul_(3)
    found = say(model, ids, **options)
    assert torch.equal(found, say(model, ids))
    assert not torch.equal(found, before)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_torchs_compiler_keeps_the_answers(family: str) -> None:
    model = composed(family)
    batch = padded(tokens(3, 8), (8, 5, 3), left=True, fill=0)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for options in ({}, {"num_beams": 3}):
        found = say(model, ids, mask, cache_implementation="static", **options)
        assert torch.equal(found, say(model, ids, mask, **options))


SWITCHES: dict[str, Callable[[ComposedModel], Any]] = {
    "anchor only": lambda model: model.anchor_only(),
    "one is silent": lambda model: model.without(0),
    "zeros": lambda model: model.disturbed("zero"),
    "shuffled": lambda model: model.disturbed("shuffle", 1),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_is_heard(model: ComposedModel, switch: str) -> None:
    ids = tokens(4, 6)
    with SWITCHES[switch](model):
        found, expected = say(model, ids, **STATIC), say(model, ids)
    assert torch.equal(found, expected)
    assert not torch.equal(found, say(model, ids))


@pytest.mark.slow
def test_switches_are_heard_by_what_is_compiled(model: ComposedModel) -> None:
    ids, options = tokens(4, 6), compiled_by("eager")
    everything = say(model, ids)
    for switch in SWITCHES.values():
        assert torch.equal(say(model, ids, **options), everything)
        with switch(model):
            assert torch.equal(say(model, ids, **options), say(model, ids))


def test_the_encoder_reads_its_prompt_only() -> None:
    model, ids = composed(augmenting_sees="prompt"), tokens(2, 6)
    assert torch.equal(say(model, ids, **STATIC), say(model, ids))


def test_settings_ask_for_it_as_well() -> None:
    model, ids = composed(), tokens(2, 6)
    expected = say(model, ids)
    config = GenerationConfig(max_new_tokens=NEW, pad_token_id=0, **STATIC)
    mask = torch.ones_like(ids)
    for given in ({"generation_config": config}, {}):
        found = model.generate(input_ids=ids, attention_mask=mask, **given)
        assert torch.equal(found, expected)
        model.generation_config = config  # the second time it is the model that asks
    assert torch.equal(model.generate(ids, GenerationConfig(**config.to_diff_dict())), expected)
    assert model.generation_config is config
    assert config.cache_implementation == "static"  # the user's own is left as it was


def test_an_option_is_stronger_than_the_models_setting() -> None:
    model, ids = composed(), tokens(2, 6)
    expected = say(model, ids)
    model.generation_config.cache_implementation = "dynamic"
    assert torch.equal(say(model, ids, **STATIC), expected)


def test_room_can_be_made_for_longer_texts(model: ComposedModel) -> None:
    def size(**options: Any) -> int:
        said = model.generate(
            input_ids=tokens(1, 6), max_new_tokens=2, return_dict_in_generate=True, **options
        )
        return int(said.past_key_values.memories.mask.shape[1])

    assert size(**STATIC) == 128
    assert size(max_cache_len=300, **STATIC) == 384


def test_padding_may_stand_between_pieces_of_a_prompt(model: ComposedModel) -> None:
    ids, mask = tokens(3, 8), torch.ones(3, 8, dtype=torch.long)
    mask[1, 5:] = mask[2, 3] = mask[2, -1] = 0
    for size in (1, 3, 7):
        options = {"prefill_chunk_size": size}
        expected = say(model, ids, mask, **options)
        assert torch.equal(say(model, ids, mask, **STATIC, **options), expected)


def test_only_a_part_of_the_prompt_may_be_shown() -> None:
    model, ids = composed(augmenting_sees="prompt"), tokens(2, 8)
    shown = (torch.arange(8) < 4).expand(2, -1)
    expected = say(model, ids, prompt_mask=shown)
    assert torch.equal(say(model, ids, prompt_mask=shown, **STATIC), expected)
    assert not torch.equal(expected, say(model, ids))


def test_copies_compile_their_own() -> None:
    model, ids, options = composed(), tokens(2, 6), compiled_by("eager")
    before = say(model, ids, **options)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for _, weight in other.trainable_parameters():
            weight.mul_(3)
    found = say(other, ids, **options)
    assert torch.equal(found, say(other, ids))
    assert not torch.equal(found, before)
    assert torch.equal(say(pickle.loads(pickle.dumps(model)), ids), before)


def test_a_backend_of_ones_own_is_asked_once(model: ComposedModel) -> None:
    class Backend:
        asked = 0

        def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
            Backend.asked += 1
            return graph.forward

    options = compiled_by(Backend())
    for _ in range(3):
        say(model, tokens(2, 6), **options)
    assert Backend.asked == 1


def test_a_hook_that_comes_later_is_heard(model: ComposedModel) -> None:
    ids, options = tokens(2, 6), compiled_by("eager")
    before = say(model, ids, **options)
    layer = model.anchor_backbone.layers[0]
    hook = layer.register_forward_hook(lambda module, args, output: output * 1.5)
    try:
        found = say(model, ids, **options)
        assert torch.equal(found, say(model, ids))
    finally:
        hook.remove()
    assert not torch.equal(found, before)
    assert torch.equal(say(model, ids, **options), before)


def test_texts_of_a_batch_are_what_they_are_alone(model: ComposedModel) -> None:
    texts = ["abcabc", "d", "hello42"]
    options: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
    assert model.generate_text(texts, **STATIC, **options) == model.generate_text(texts, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_lookup_num_tokens": 2}, "does not go with prompt_lookup_num_tokens"),
        ({"use_cache": False}, "does not go with use_cache"),
        ({"output_attentions": True}, "does not go with output_attentions"),
        ({"max_new_tokens": None}, "by max_new_tokens"),
        ({"compile_config": {"backend": "eager"}}, "must be a transformers.CompileConfig"),
    ],
)
def test_what_needs_more_is_refused(
    model: ComposedModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CalmError, match=message):
        say(model, tokens(2, 6), **{**STATIC, **options})


def test_it_goes_on_no_further(model: ComposedModel) -> None:
    prompt, one = {"input_ids": tokens(1, 6), "max_new_tokens": 2, "pad_token_id": 0}, tokens(1, 1)
    said = model.generate(**prompt, return_dict_in_generate=True, **STATIC)
    cache = said.past_key_values
    ids = torch.cat([said.sequences, tokens(1, 3)], dim=1)
    with pytest.raises(CalmError, match="one call of generate"):
        model.generate(input_ids=ids, past_key_values=cache, max_new_tokens=2)
    while cache.get_seq_length() % 128:  # sizes are rounded, so there is some room left
        model(input_ids=one, past_key_values=cache)
    with pytest.raises(CalmError, match="room for 128 tokens, and all of them are read"):
        model(input_ids=one, past_key_values=cache)
    for way in (
        lambda: cache.crop(-1),
        lambda: cache.reset(),
        lambda: cache.batch_select_indices(torch.tensor([0])),
        lambda: cache.batch_repeat_interleave(2),
    ):
        with pytest.raises(CalmError, match="one call of generate"):
            way()
    with pytest.raises(CalmError, match="for generation"):
        model(input_ids=one, past_key_values=cache, labels=one)


def test_models_that_cannot_are_named() -> None:
    anchor = tiny_backbone("mistral", vocab=37)
    with_window = calm.compose(anchor, [tiny_backbone(vocab=37, seed=1)], CrossAttention())
    with pytest.raises(CalmError, match=r"--compile.*'tiny-mistral.*with a window"):
        say(with_window, tokens(1, 6), **STATIC)  # type: ignore[arg-type]
    spoken = [text_tokenizer(kind) for kind in ("byte_bpe", "wordpiece")]
    anchor, other = (
        tiny_backbone(vocab=len(tokenizer), seed=seed, tokenizer=tokenizer)
        for seed, tokenizer in enumerate(spoken)
    )
    two = calm.compose(anchor, [other], CrossAttention())
    with pytest.raises(CalmError, match=r"own tokenizer.*nobody knows"):
        say(two, tokens(1, 6), **STATIC)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda llm: setattr(llm, "_can_compile_fullgraph", False), "cannot compile"),
        (lambda llm: setattr(llm, "hf_device_map", {"": 0, "a": 1}), "several devices"),
        (
            lambda llm: setattr(llm, "hf_quantizer", SimpleNamespace(is_compileable=False)),
            "quantised",
        ),
        (
            lambda llm: setattr(llm.config, "layer_types", ["conv", *["full_attention"] * 3]),
            "do not read all",
        ),
    ],
)
def test_a_backbone_that_cannot_is_refused(change: Callable[[Any], None], why: str) -> None:
    model = composed()
    change(model.augmenting[1])
    with pytest.raises(CalmError, match=why):
        say(model, tokens(1, 6), **STATIC)


def test_two_kinds_of_numbers_are_refused(model: ComposedModel) -> None:
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(CalmError, match=r"under torch\.autocast"),
    ):
        say(model, tokens(1, 6), **STATIC)


def test_a_compiler_that_fails_is_told_in_a_sentence(model: ComposedModel) -> None:
    def fails(graph: Any, inputs: Any) -> nn.Module:
        raise FileNotFoundError("g++")

    with pytest.raises(CalmError, match=r"=static .*--compile.*: torch.compile failed .*g\+"):
        say(model, tokens(1, 6), **compiled_by(fails))
