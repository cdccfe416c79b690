"""A composed model whose weights are shared out among processes: FSDP2, PyTorch's `fully_shard`.

Every process keeps a part of every weight. A unit (a decoder layer, a bridge, an embedding, a head)
is put together from all processes when it is about to run, and taken apart when it has; the
gradients of what is trained are added up and shared out in the same way. So all processes must run
the same units in the same order, whatever each of them has to do.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError, LanguageModel
from calm_lightning.quantization import is_quantised

_INSTEAD = "Take trainer.strategy=ddp, where every process holds everything."


class FullyShard(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, set for data alone: `--trainer.strategy fsdp2`.

    All processes share the weights among them, and a checkpoint is one file with whole tensors.
    Left to itself Lightning's strategy takes the devices of a machine for tensor parallelism, and
    writes a folder with a part for each process.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # known from here on
        super().setup_environment()


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FullyShard, description=FullyShard.__doc__ or "")


def shard(model: LanguageModel, mesh: DeviceMesh) -> None:
    """Share out the weights of a model among the processes of a mesh.

    Args:
        model: Freshly composed, the same in every process.
        mesh: As `ModelParallelStrategy` gives it, with the axes data_parallel and tensor_parallel.

    Raises:
        CalmError: If it cannot be shared out, or another parallelism was asked for.
    """
    if (size := mesh["tensor_parallel"].size()) > 1:
        raise CalmError(
            f"tensor_parallel_size={size}: layers are shared out whole among the data-parallel "
            "processes and are not cut (FSDP2). Take trainer.strategy=fsdp2, or give "
            "ModelParallelStrategy tensor_parallel_size=1 and as data_parallel_size the number of "
            "all processes."
        )
    if not isinstance(model, ComposedModel):
        raise CalmError(
            f"The weights of a {type(model).__name__} cannot be shared out; those of models that "
            f"are joined by their hidden states can. {_INSTEAD}"
        )
    for backbone in model.backbones:
        if any(map(is_quantised, backbone.model.parameters())):
            raise CalmError(
                f"{backbone.name!r} is quantised, and quantised weights cannot be shared out. "
                f"Leave quantization out. {_INSTEAD}"
            )
        backbone.remember_fingerprint()  # no process can hash what it has only a part of
    for unit in units_of(model):
        fully_shard(unit if len(unit) > 1 else unit[0], mesh=mesh["data_parallel"])
    for bridge in model.bridges:
        for method in ("remember", "attention"):  # beside `forward`, what a bridge is asked
            register_fsdp_forward_method(bridge, method)
    keep_in_step(model)
    # Whatever runs first would be taken for the root of all; a backbone may run alone.
    fully_shard(model, mesh=mesh["data_parallel"])
    fully_shard.state(model)._lazy_init()  # type: ignore[attr-defined]


def keep_in_step(model: object) -> None:
    """Let every part of a model run whenever it runs, for processes that compute together.

    Otherwise an augmenting model with another tokenizer is left out where it has nothing to read.
    """
    for reader in model.augmenting_readers if isinstance(model, ComposedModel) else ():
        reader.always_runs = True


def units_of(model: ComposedModel) -> list[list[nn.Module]]:
    """What is put together at a time: modules that hold all weights, each run by its own forward.

    Mostly one module; several where they share a weight.

    Args:
        model: The model, not shared out yet.
    """
    layers = {layer: None for backbone in model.backbones for layer in backbone.layers}
    complete = [*layers, *model.bridges]
    inside = {module for each in complete for module in each.modules()}
    units: list[list[nn.Module]] = [[module] for module in complete]
    for backbone in dict.fromkeys(model.backbones):
        units += _outside(backbone, inside)
        inside |= set(backbone.model.modules())
    return units


def _outside(backbone: Backbone, inside: set[nn.Module]) -> list[list[nn.Module]]:
    """Embeddings, norms and heads, inner ones first; those that share a weight together."""
    by_weight: dict[int, list[nn.Module]] = {}
    for module in backbone.model.modules():
        weights = [] if module in inside else list(module.parameters(recurse=False))
        if weights:
            by_weight.setdefault(id(weights[0]), []).append(module)
    return [*reversed(by_weight.values())]


@contextmanager
def whole(model: object) -> Iterator[None]:
    """While it is active, what is saved of a model is there whole. All processes must enter it.

    Args:
        model: Shared out or not.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    composed = cast(ComposedModel, model)  # no others are shared out
    state = {name: whole_tensor(tensor) for name, tensor in composed.own_state().items()}
    composed.own_state = lambda: state  # type: ignore[method-assign]
    try:
        yield
    finally:
        del composed.own_state


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor of which every process may have a part; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def class_of(model: object) -> type:
    """A model's class as it was written: `fully_shard` puts one of its own in front."""
    classes: Sequence[type] = type(model).__mro__
    return next(each for each in classes if not issubclass(each, FSDPModule))
