from itertools import product

import pytest

from calm_lightning.backbone import Backbone
from calm_lightning.composed.wiring import Connection, evenly_spaced, wire
from calm_lightning.contracts import CalmError
from calm_lightning.testing import tiny_backbone


@pytest.fixture(scope="module")
def anchor() -> Backbone:
    return tiny_backbone(layers=5, name="the-anchor")


@pytest.fixture(scope="module")
def augmenting() -> list[Backbone]:
    return [tiny_backbone(layers=n, seed=n, name=f"augmenting-{n}") for n in (8, 3)]


def test_the_papers_wiring_takes_every_fourth_layer_and_spreads_it() -> None:
    assert evenly_spaced(8, 12) == [(3, 5), (7, 11)]
    assert evenly_spaced(12, 8) == [(3, 1), (7, 4), (11, 7)]


@pytest.mark.parametrize("every", [1, 3, 4])
def test_evenly_spaced_layers_exist_rise_and_include_the_last(every: int) -> None:
    for augmenting_layers, anchor_layers in product(range(1, 14), repeat=2):
        pairs = evenly_spaced(augmenting_layers, anchor_layers, every)
        assert pairs[-1] == (augmenting_layers - 1, anchor_layers - 1)
        for layers in zip(*pairs, strict=True):
            assert layers[0] >= 0
            assert sorted(set(layers)) == list(layers)


def test_each_augmenting_model_is_wired_by_its_own_depth(
    anchor: Backbone, augmenting: list[Backbone]
) -> None:
    assert wire(anchor, augmenting) == [
        Connection(0, 3, 1),
        Connection(0, 7, 4),
        Connection(1, 2, 4),
    ]


def test_one_list_serves_all_models_and_several_serve_one_each(
    anchor: Backbone, augmenting: list[Backbone]
) -> None:
    assert wire(anchor, augmenting, [(2, 0)]) == [Connection(0, 2, 0), Connection(1, 2, 0)]
    assert wire(anchor, augmenting, [[(7, 0), (7, 4)], [(0, 3)]]) == [
        Connection(0, 7, 0),
        Connection(0, 7, 4),
        Connection(1, 0, 3),
    ]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(2, 5)], r"anchor model 'the-anchor' has layers 0 to 4, not 5.*counted from 0"),
        ([(3, 0)], r"augmenting model 'augmenting-3' has layers 0 to 2, not 3"),
        ([(-1, 0)], r"has layers 0 to 7, not -1"),
        ([[(0, 0)]], r"1 lists for 2 augmenting models"),
        ([[(0, 0)], []], r"connections of 'augmenting-3' are empty"),
        ([], r"connections of 'augmenting-8' are empty"),
    ],
)
def test_wiring_that_cannot_be_is_refused_with_the_layers_there_are(
    anchor: Backbone, augmenting: list[Backbone], pairs: list, message: str
) -> None:
    with pytest.raises(CalmError, match=message):
        wire(anchor, augmenting, pairs)


def test_nothing_to_wire_is_refused(anchor: Backbone, augmenting: list[Backbone]) -> None:
    with pytest.raises(CalmError, match="at least one augmenting model"):
        wire(anchor, [])
    with pytest.raises(CalmError, match="every=0 must be at least 1"):
        wire(anchor, augmenting, every=0)
