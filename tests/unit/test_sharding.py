"""FSDP2: what is put together at a time, what cannot be shared out, and what stays as it was."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore

import calm_lightning as calm
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError, Composition, LanguageModel
from calm_lightning.sharding import class_of, shard, units_of
from calm_lightning.testing import tiny_backbone
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.single import Single

IDS = torch.tensor([[3, 4, 5, 6]])


def composed(
    anchor: str = "llama", augmenting: str = "gpt2", composition: Composition | None = None
) -> LanguageModel:
    backbones = tiny_backbone(anchor), tiny_backbone(augmenting)
    return calm.compose(backbones[0], backbones[1:], composition or CrossAttention(every=2))


def mesh_of(data: int, tensor: int) -> DeviceMesh:
    return init_device_mesh(
        "cpu", (data, tensor), mesh_dim_names=("data_parallel", "tensor_parallel")
    )


@pytest.fixture
def two_processes() -> Iterator[None]:
    """One process that believes that there is another; nothing is exchanged."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma"])
def test_every_weight_is_in_one_unit_and_shared_ones_are_together(family: str) -> None:
    model = composed(family, family)
    assert isinstance(model, ComposedModel)
    units = units_of(model)
    modules = [module for unit in units for module in unit]
    assert len({*modules}) == len(modules)
    held = [{id(w) for module in unit for w in module.parameters()} for unit in units]
    assert sum(map(len, held)) == len(set().union(*held))
    assert set().union(*held) == {id(weight) for weight in model.parameters()}
    assert {*model.bridges, *model.backbones[0].layers} <= {*modules}


def test_a_model_that_is_both_anchor_and_augmenting_is_shared_out_once() -> None:
    backbone = tiny_backbone("llama")
    model = calm.compose(backbone, [backbone], CrossAttention(every=2))
    assert isinstance(model, ComposedModel)
    modules = [module for unit in units_of(model) for module in unit]
    assert len({*modules}) == len(modules)


@pytest.mark.usefixtures("two_processes")
def test_a_process_keeps_half_of_each_weight_and_says_the_same_of_the_model() -> None:
    model = composed()
    assert isinstance(model, ComposedModel)
    before = [backbone.fingerprint() for backbone in model.backbones]
    sizes = {name: weight.shape for name, weight in model.named_parameters()}
    shard(model, mesh_of(2, 1))
    assert isinstance(model, FSDPModule)
    assert class_of(model) is ComposedModel
    assert [backbone.fingerprint() for backbone in model.backbones] == before
    for name, weight in model.named_parameters():
        assert weight.shape == sizes[name]
        assert len(weight.to_local()) == -(-sizes[name][0] // 2)  # type: ignore[attr-defined]
        assert weight.requires_grad == name.startswith("bridges.")
    parts = [backbone.fingerprint(exact=True) for backbone in model.backbones]
    with torch.no_grad():
        next(iter(model.anchor.parameters())).to_local()[0] += 1  # type: ignore[attr-defined]
    assert model.backbones[0].fingerprint(exact=True) != parts[0]
    assert model.backbones[1].fingerprint(exact=True) == parts[1]


@pytest.mark.usefixtures("two_processes")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
def test_parts_may_run_before_the_whole() -> None:
    model = composed()
    assert isinstance(model, ComposedModel)
    shard(model, mesh_of(2, 1))
    model.augmenting[0](input_ids=IDS)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(w.grad is not None for _, w in model.trainable_parameters())


@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize(
    ("sizes", "composition", "told"),
    [
        ((1, 2), CrossAttention(every=2), "tensor_parallel_size=2.*strategy=fsdp2"),
        ((2, 1), Single(), "PlainModel cannot be shared out.*strategy=ddp"),
    ],
)
def test_what_cannot_be_shared_out_is_told_with_the_way_out(
    sizes: tuple[int, int], composition: Composition, told: str
) -> None:
    with pytest.raises(CalmError, match=told):
        shard(composed(composition=composition), mesh_of(*sizes))
