"""Every installed composition keeps the promises, on two or five families; variants on one."""

import inspect
import warnings
from collections.abc import Sequence

import pytest

from calm_lightning.backbone import Backbone
from calm_lightning.contracts import Composition
from calm_lightning.discovery import load_plugins
from calm_lightning.testing import FAMILIES, Case, ConformanceSuite, broken_promises
from calm_lightning.testing.tiny import OTHER_FAMILIES
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.gated import GatedCrossAttention
from calm_plugins.compositions.linear import LinearBridge
from calm_plugins.compositions.lora import LoRA
from calm_plugins.compositions.low_rank import LowRankCrossAttention
from calm_plugins.compositions.merging import (
    Breadcrumbs,
    Dare,
    Linear,
    MergeMethod,
    Merging,
    Slerp,
    TaskArithmetic,
    Ties,
)
from calm_plugins.compositions.single import Single

SETTINGS = {
    "LoRA": {"rank": 2},
    "Merging": {"method": Linear()},
    # The tiny tokenizer knows no bar, and the tiny context holds no long pool.
    "Rewriting": {"sampled": 1, "max_new_tokens": 4, "separator": "a"},
}
"""Of compositions that cannot be built without."""

ON_TWO_FAMILIES = (
    "GatedCrossAttention",
    "LowRankCrossAttention",
    "LinearBridge",
    "PromptRouter",
    "Ensemble",
    "Rewriting",
)
"""What depends on the family is in a machine that is tested on all: by CrossAttention for the
bridges, by TokenRouter for the routers. Rewriting passes only text between plain models."""

ON_OTHERS_SLOWLY = ("LoRA", "Single")
"""One model, as transformers and peft have it: linear layers of two kinds are enough every day."""

TWO = ("llama", "gpt2")

ALIKE = ("Merging",)
"""Need models of one architecture, which those of a case are not; tested further below."""

VARIANTS: dict[str, tuple[Composition, int]] = {
    "Every2": (CrossAttention(every=2), 2),
    "LiteralFormula": (CrossAttention(positions="none", num_heads=2), 1),
    "AllOptions": (
        CrossAttention(normalize=True, relative=True, same_place=2.0, state_noise=0.1),
        1,
    ),
    "Encoder": (CrossAttention(augmenting_sees="prompt"), 2),
    "TwoBridgesOnOneLayer": (CrossAttention(connections=[(0, 1), (1, 1), (1, 2), (1, 0)]), 1),
    "AListForEach": (CrossAttention(connections=[[(1, 0), (3, 2)], [(0, 1)]]), 2),
    "TrainedWhole": (Single(train=True), 1),
    "AugmentingAlone": (Single(use=0), 1),
    "MatchedLoRA": (LoRA(match=CrossAttention(), dropout=0.1), 1),
    "GatedAttentionOnly": (GatedCrossAttention(num_heads=2, feed_forward=0, distances=False), 1),
    "LowRankOfThreeHeads": (LowRankCrossAttention(rank=6, num_heads=3, distances=False), 1),
    "LinearEncoder": (LinearBridge(augmenting_sees="prompt"), 1),
}
"""Each on one family, with so many augmenting models."""


def installed() -> list[type[Composition]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # test_every_plugin_can_be_imported says it better
        plugins = load_plugins()
    return [cls for p in plugins for cls in p.classes if issubclass(cls, Composition)]


def suite(composition: Composition, families: Sequence[str], numbers: Sequence[int]) -> type:
    settings = {
        "composition": composition,
        "families": families,
        "numbers_of_augmenting": numbers,
    }
    return type("Suite", (ConformanceSuite,), settings)


for _cls in installed():
    if _cls.__name__ in ALIKE:
        continue
    _composition = _cls(**SETTINGS.get(_cls.__name__, {}))
    _reads_augmenting = "augmenting_used" not in _composition.exempt
    _few = _cls.__name__ in (*ON_TWO_FAMILIES, *ON_OTHERS_SLOWLY)
    globals()[f"Test{_cls.__name__}"] = suite(_composition, TWO if _few else FAMILIES, (1,))
    if _cls.__name__ in ON_OTHERS_SLOWLY:
        _others = suite(_composition, [family for family in FAMILIES if family not in TWO], (1,))
        globals()[f"Test{_cls.__name__}OnOtherFamilies"] = pytest.mark.slow(_others)
    if _reads_augmenting:  # how many there are has nothing to do with the family
        globals()[f"Test{_cls.__name__}OfThree"] = suite(_composition, ("llama",), (2,))
for _name, (_variant, _number) in VARIANTS.items():
    globals()[f"Test{_name}"] = suite(_variant, ("llama",), (_number,))


def test_every_plugin_can_be_imported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not [p.error for p in load_plugins() if p.error]


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_other_families_keep_what_depends_on_the_family(family: str) -> None:
    promises = ("starts_as_anchor", "causal", "padding", "cache")
    assert broken_promises(Case(CrossAttention(), family), promises) == {}


@pytest.mark.parametrize(
    ("anchor", "augmenting"),
    [("llama", "mistral"), ("gemma2", "gpt2"), ("bloom", "llama")],
    ids=["window in the augmenting model", "window in the anchor", "no position_ids in the anchor"],
)
def test_families_can_be_mixed(anchor: str, augmenting: str) -> None:
    promises = ("starts_as_anchor", "causal", "padding", "cache", "conversation")
    case = Case(CrossAttention(), anchor, 2, augmenting_family=augmenting)
    assert broken_promises(case, promises) == {}


class Alike(Case):
    """Augmenting models of the anchor's architecture, as merging needs them."""

    def backbones(
        self, vocab: int = 37, scale: float = 0.2, seed: int = 0
    ) -> tuple[Backbone, list[Backbone]]:
        seeds = range(seed, seed + 1 + self.num_augmenting)
        anchor, *augmenting = (super(Alike, self).backbones(vocab, scale, s)[0] for s in seeds)
        return anchor, augmenting


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_keeps_its_promises_on_every_family(family: str) -> None:
    assert broken_promises(Alike(Merging(Linear()), family)) == {}


@pytest.mark.parametrize(
    ("method", "base", "others"),
    [
        (Slerp(), None, 1),
        (TaskArithmetic(), "anchor", 2),
        (Ties(), "anchor", 2),
        (Dare(), "anchor", 2),
        (Dare(consensus="ties"), "anchor", 2),
        (Breadcrumbs(), "anchor", 2),
    ],
    ids=str,
)
def test_every_way_to_merge_keeps_the_promises(
    method: MergeMethod, base: str | None, others: int
) -> None:
    assert broken_promises(Alike(Merging(method, base=base), num_augmenting=others)) == {}


def test_every_exemption_names_a_promise_and_a_reason() -> None:
    from calm_lightning.testing.conformance import exemptions

    for cls in installed():
        assert not inspect.isabstract(cls)
        composition = cls(**SETTINGS.get(cls.__name__, {}))
        assert all(len(reason) > 10 for reason in exemptions(composition).values())


def test_exemption_from_an_unknown_promise_is_an_error() -> None:
    class Mistaken(CrossAttention):
        exempt = {"cuasal": "a slip of the pen"}  # noqa: RUF012

    with pytest.raises(ValueError, match=r"cuasal.*the promises are.*causal"):
        broken_promises(Case(Mistaken()))
