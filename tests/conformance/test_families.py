"""Every decoder family that is named in docs/families.md keeps every promise.

The five families that the suite runs by default are tested wherever a composition is. The others
are run whole by `make test-all`; `make families` writes the table from what this test saw.
"""

import os
from pathlib import Path

import pytest
import torch

import calm_lightning as calm
from calm_lightning.backbone import Backbone
from calm_lightning.composed import ComposedModel
from calm_lightning.composed.static import refuse_growing
from calm_lightning.contracts import CalmError
from calm_lightning.testing import FAMILIES, Case, broken_promises, tiny_backbone
from calm_lightning.testing.case import tokens
from calm_lightning.testing.tiny import OTHER_FAMILIES, REFUSED_FAMILIES
from calm_plugins.compositions.cross_attention import CrossAttention

TABLE = Path(__file__).parents[2] / "docs" / "families.md"
HEAD = """\
# Families

Decoder families of transformers of which tiny models, as anchor and as augmenting model, keep every
promise of the conformance suite. Written by the test itself (`make families`).

- *layers give*: what a decoder layer returns; both are read and answered alike.
- *positions*: whether the decoder is told positions; otherwise it counts columns, and an augmenting
  model with another tokenizer reads its text again when it grows.
- *compiled*: whether its memories can have a fixed size, so that the step from one token to the
  next can be compiled (`calm generate --compile`).

| family | layers give | positions | compiled |
|---|---|---|---|
"""
FOOT = """
Refused, each with its name and this reason:

| family | why: it |
|---|---|
"""


def line(family: str, backbone: Backbone) -> str:
    given: list[str] = []
    hook = backbone.layers[0].register_forward_hook(
        lambda module, args, output: given.append(
            "a tensor" if isinstance(output, torch.Tensor) else "a tuple"
        )
    )
    backbone.model(input_ids=tokens(1, 4))
    hook.remove()
    positions = "told" if backbone.takes_positions else "counted"
    model = calm.compose(backbone, [backbone], CrossAttention())
    assert isinstance(model, ComposedModel)
    try:
        refuse_growing(model, {})
        compiled = "yes"
    except CalmError:
        compiled = "no"
    return f"| {family} | {given[0]} | {positions} | {compiled} |\n"


def refusal(family: str) -> str:
    with pytest.raises(CalmError) as error:
        calm.compose(tiny_backbone(family), [tiny_backbone(family, seed=1)], CrossAttention())
    return f"| {family} | {str(error.value).partition(' (')[2].partition(') ')[2]} |\n"


def table() -> str:
    made = "".join(line(f, tiny_backbone(f)) for f in sorted({*FAMILIES, *OTHER_FAMILIES}))
    return HEAD + made + FOOT + "".join(map(refusal, sorted(REFUSED_FAMILIES)))


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_a_family_keeps_every_promise(family: str) -> None:
    assert broken_promises(Case(CrossAttention(every=2), family)) == {}


def test_the_table_in_the_docs_is_what_is_tested() -> None:
    if os.environ.get("CALM_WRITE_DOCS"):
        TABLE.write_text(table())
    assert TABLE.read_text() == table()


def test_there_are_enough_families_and_none_twice() -> None:
    families = [*FAMILIES, *OTHER_FAMILIES]
    assert len(set(families)) == len(families) >= 20
