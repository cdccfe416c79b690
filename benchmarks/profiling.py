"""Where the time of one side goes: by module, forward and backward, and by kernel."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from benchmarks.measuring import Work
from calm_lightning.composed import Bridge

PREFIX = "module "
ELSEWHERE = "elsewhere"


def print_profile(name: str, model: nn.Module, work: Work, repeats: int = 5) -> None:
    """Print the shares of the layers and of the kernels.

    Args:
        name: Of the side.
        model: Whose layers are told apart.
        work: What is looked at.
        repeats: How often.
    """
    work()
    with ExitStack() as labels, profile(activities=[ProfilerActivity.CPU]) as profiler:
        for label, module in parts(model):
            labels.enter_context(_labelled(label, module))
        for _ in range(repeats):
            work()
    forward, backward = by_module(profiler.events())
    total = sum(forward.values()) + sum(backward.values())
    print(f"\n{name}: milliseconds of one piece of work, by module (forward, backward, share)")
    for label in sorted({*forward, *backward}, key=lambda k: -(forward[k] + backward[k])):
        there, back = forward[label], backward[label]
        share = (there + back) / total
        print(f"  {label:60}{there / repeats / 1e3:9.2f} {back / repeats / 1e3:9.2f} {share:8.1%}")
    print(f"\n{name}: by kernel, {repeats} pieces of work")
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


def parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All layers of a list under one label, and the modules that lie beside the lists."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and not any(isinstance(m, nn.ModuleList) for child in module for m in child.modules())
    }
    inside = {id(m) for each in lists.values() for m in each.modules()}
    for name, layers in lists.items():
        for layer in layers:
            yield f"{name}: {len(layers)} x {type(layer).__name__}", layer
    for name, module in model.named_modules():
        if id(module) not in inside and not list(module.children()):
            yield name, module


def by_module(events: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds of every module in the forward and in the backward pass.

    The backward pass knows no modules, but each of its steps has the number of the operator that
    it is the derivative of.
    """
    forward: dict[str, float] = defaultdict(float)
    backward: dict[str, float] = defaultdict(float)
    owner: dict[int, str] = {}
    for event in sorted(events, key=lambda each: each.time_range.start):
        if (root := _derivative(event)) is not None:
            backward[owner.get(root.sequence_nr, ELSEWHERE)] += event.self_cpu_time_total
            continue
        module = _module_of(event)
        forward[module] += event.self_cpu_time_total
        if event.sequence_nr >= 0:  # the last to bear a number is the one that is derived
            owner[event.sequence_nr] = module
    return forward, backward


def _module_of(event: Any) -> str:
    while event is not None:
        if event.name.startswith(PREFIX):
            return str(event.name.removeprefix(PREFIX))
        event = event.cpu_parent
    return ELSEWHERE


def _derivative(event: Any) -> Any | None:
    while event is not None:
        if event.name.startswith("autograd::engine"):
            return event
        event = event.cpu_parent
    return None


@contextmanager
def _labelled(label: str, module: nn.Module) -> Iterator[None]:
    """While it is active, all that a module does is named after it."""
    ranges: list[record_function] = []

    def begin(*_: object) -> None:
        ranges.append(record_function(PREFIX + label))
        ranges[-1].__enter__()

    def end(*_: object) -> None:
        ranges.pop().__exit__(None, None, None)

    hooks = [
        module.register_forward_pre_hook(begin),
        module.register_forward_hook(end, prepend=True),  # what others hook in is not the layer's
    ]
    if isinstance(module, Bridge):  # which is asked twice
        remember = module.remember

        def labelled(*args: Any) -> Any:
            with record_function(PREFIX + label):
                return remember(*args)

        module.remember = labelled  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        module.__dict__.pop("remember", None)
