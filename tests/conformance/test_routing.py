"""Variants of routing and rewriting that `test_compositions.py` does not build, on one family."""

from typing import Any

import pytest

from calm_lightning.contracts import Composition
from calm_lightning.testing import ConformanceSuite
from calm_plugins.compositions.rewriting import Rewriting
from calm_plugins.compositions.routing import Ensemble, PromptRouter, TokenRouter

SHORT: dict[str, Any] = {"sampled": 1, "max_new_tokens": 4, "separator": "a"}
VARIANTS: dict[str, Composition] = {
    "ByLikelihood": PromptRouter(decide_by="likelihood"),
    "EagerPrompts": PromptRouter(threshold=0.3),
    "EagerTokens": TokenRouter(threshold=0.3),
    "LoudAnchor": Ensemble(anchor_share=0.8),
    "FreshCorrector": Rewriting(fresh=True, **SHORT),
    "WithoutCandidates": Rewriting(reads="nothing", **SHORT),
    "Shuffled": Rewriting(reads="shuffled", **SHORT),
}

for _name, _composition in VARIANTS.items():
    globals()[f"Test{_name}"] = type(
        "Suite",
        (ConformanceSuite,),
        {"composition": _composition, "families": ("llama",), "numbers_of_augmenting": (1,)},
    )


@pytest.mark.parametrize("composition", VARIANTS.values(), ids=list(VARIANTS))
def test_what_it_cannot_keep_it_says_why(composition: Composition) -> None:
    assert all(len(reason) > 10 for reason in composition.exempt.values())
