"""Memory and arithmetic of a composed model, from the configs of its backbones.

The backbones are built without data from their `config.json`, joined by the composition itself, and
taken through a training step and through generation, in the order in which Lightning and
transformers do it. So the augmenting model stores nothing for the backward pass and stops at its
last tapped layer, the anchor stores what lies above the first connection, and the head runs on
targets only: not because it is known here, but because the code does it.

What no config says is taken for granted:

- Rows have different lengths, so that there are padding masks. Without any padding it is less.
- An augmenting model with another tokenizer reads as many tokens as the anchor.
- Attention runs in a fused kernel wherever PyTorch has one (with `attention: eager` it does not).
- On a GPU the optimizer works on all weights at a time, as it does there by default.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from typing_extensions import override

from calm_lightning.backbone import Backbone, BackboneSource
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError, Composition
from calm_lightning.estimate.figures import Estimate, Generation, Part, Training, Work
from calm_lightning.estimate.trace import Trace, size_of, strip, without_data
from calm_lightning.estimate.units import Watch
from calm_lightning.language_model import TextModel
from calm_lightning.module import default_optimizer
from calm_lightning.quantization import FORMATS

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Setting:
    """What of a run's config decides what it takes.

    Attributes:
        anchor: Where the anchor is.
        augmenting: Where the augmenting models are.
        composition: What joins them.
        optimizer: Makes the optimizer out of the trained weights.
        precision: As Lightning's trainer names it.
        on_gpu: Whether it is to run on GPUs.
    """

    anchor: BackboneSource
    augmenting: Sequence[BackboneSource]
    composition: Composition
    optimizer: Callable[[Any], torch.optim.Optimizer] = default_optimizer
    precision: Precision = "32-true"
    on_gpu: bool = True


def estimate(
    setting: Setting,
    rows: int,
    answered: int | None = None,
    length: int | None = None,
    targets: int | None = None,
    new_tokens: int | None = None,
) -> Estimate:
    """What a run would take. No weights are read.

    Args:
        setting: The run.
        rows: Texts in a training step.
        answered: Texts that are continued at a time; by default as many.
        length: Tokens of the longest text; by default 512, or the shortest context.
        targets: Tokens of a text that are learnt; by default all but the first.
        new_tokens: Tokens of `length` that are generated; by default 64, or half of it.

    Raises:
        CalmError: If a number is out of range, a backbone's config cannot be read, the composition
            cannot join the backbones, or what it computes depends on values.
    """
    program = 0 if setting.on_gpu else _program_size()
    backbones = [sketch(source) for source in (setting.anchor, *setting.augmenting)]
    length = _length(backbones, length)
    work = Work(
        rows,
        length,
        length - 1 if targets is None else targets,
        rows if answered is None else answered,
        min(64, length // 2) if new_tokens is None else new_tokens,
    )
    try:
        model, notes = _compose(setting, backbones)
        weighed = _weigh(model, setting, backbones)
        watch = Watch(model) if isinstance(model, ComposedModel) else None
        with without_data():
            strip(model)
            training = _training(model, work, setting, weighed, watch)
            generation = _generation(model, work, setting, weighed)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise CalmError(
            f"{setting.composition!r} cannot be estimated beside these backbones: what is computed "
            f"depends on the values of tensors ({error}), and here they have none."
        ) from error
    return Estimate(
        work=work,
        parts=weighed.parts,
        training=training,
        generation=generation,
        program=program,
        largest_layer=max(weighed.layers),
        outside_layers=generation.weights - sum(weighed.layers),
        units=None if watch is None or weighed.saved else watch.seen(),
        notes=notes,
    )


def sketch(source: BackboneSource) -> Backbone:
    """The model of a source without its weights, on the meta device."""
    outline = {
        **vars(source),
        "weights": "random",
        "quantization": None,
        "device_map": None,
        # Other kernels keep the tensors that PyTorch's own keep, and may not be installed here.
        "attention": "eager" if source.attention == "eager" else None,
    }
    with torch.device("meta"):
        return _Outline(**outline).load()


class _Outline(BackboneSource):
    """A source whose folder may lack a tokenizer: none is needed to count."""

    @override
    def _load_tokenizer(self, options: dict[str, Any]) -> Any:
        try:
            return super()._load_tokenizer(options)
        except (OSError, ValueError):
            return None


def _program_size() -> int:
    """Bytes that this process, which has imported what a run imports, has resident."""
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _length(backbones: Sequence[Backbone], length: int | None) -> int:
    """Tokens of a row, which every context has to hold."""
    shortest = min(backbones, key=lambda each: each.context or torch.inf)
    if length is None:
        return min(512, shortest.context or 512)
    if shortest.context is not None and length > shortest.context:
        raise CalmError(
            f"--length {length}: the context of {shortest.name!r} holds {shortest.context} tokens."
        )
    return length


def _compose(setting: Setting, backbones: Sequence[Backbone]) -> tuple[Any, tuple[str, ...]]:
    """The composed model on the meta device, in the dtype in which it would run, and remarks.

    Returns:
        A `TextModel` that is also an `nn.Module`.
    """
    try:
        with torch.device("meta"):
            model = setting.composition.compose(backbones[0], backbones[1:])
    except (RuntimeError, NotImplementedError) as error:
        raise CalmError(
            f"{setting.composition!r} cannot be estimated: it reads values of weights, and on "
            f"the meta device they have none ({error})."
        ) from error
    if not isinstance(model, TextModel) or not isinstance(model, nn.Module):
        raise CalmError(
            f"{setting.composition!r} cannot be estimated: only models that read token ids "
            f"can (`TextModel`), and it makes a {type(model).__name__}."
        )
    notes = [
        f"{each.name} is quantised already; here its matrices were counted in full."
        for each in backbones
        if getattr(each.config, "quantization_config", None) is not None
    ]
    for reader in model.augmenting_readers if isinstance(model, ComposedModel) else ():
        if reader.alignment is not None:
            reader.alignment = None
            notes.append(
                f"{reader.backbone.name} has another tokenizer; as many tokens were taken."
            )
    return model, tuple(notes)


@dataclass(frozen=True)
class _Weighed:
    """What the weights take once they are quantised.

    Attributes:
        parts: Anchor, augmenting models, and what was added to them.
        layers: Bytes of each decoder layer that is in the model.
        saved: Bytes that quantised matrices do not need; here they have their full width.
        unpacked: Bytes of the largest of them, which is widened while it is used.
    """

    parts: tuple[Part, ...]
    layers: tuple[int, ...]
    saved: int
    unpacked: int


def _weigh(model: nn.Module, setting: Setting, backbones: Sequence[Backbone]) -> _Weighed:
    weights = list(model.parameters())
    sizes = {id(w): w.nbytes for w in weights}
    part_of: dict[int, str] = {}
    saved = unpacked = 0
    for number, source in enumerate((setting.anchor, *setting.augmenting)):
        backbone = backbones[number].model
        name = f"augmenting {number - 1}" if number else "anchor"
        part_of |= {id(w): name for w in backbone.parameters()}
        if source.quantization is None:
            continue
        kind = FORMATS[source.quantization]
        for matrix in kind.matrices(backbone):
            if id(matrix) in sizes:
                sizes[id(matrix)] = kind.size(matrix)
                saved += matrix.nbytes - kind.size(matrix)
                unpacked = max(unpacked, matrix.nbytes)
    parts: dict[str, Part] = {}
    added = "bridges" if isinstance(model, ComposedModel) else "added weights"
    for weight in weights:
        name = part_of.get(id(weight), added)
        part = parts.get(name, Part(name, 0, 0, 0))
        parts[name] = Part(
            name,
            part.weights + weight.numel(),
            part.trained + weight.numel() * weight.requires_grad,
            part.size + sizes[id(weight)],
        )
    layers = (layer for backbone in backbones for layer in backbone.layers)
    in_layers = (sum(sizes.get(id(w), 0) for w in layer.parameters()) for layer in layers)
    return _Weighed(tuple(parts.values()), tuple(in_layers), saved, unpacked)


def _training(
    model: Any, work: Work, setting: Setting, weighed: _Weighed, watch: Watch | None
) -> Training | None:
    """The second of two steps, when there are gradients and optimizer state from the start."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        return None
    model.train()
    optimizer = setting.optimizer(trained)
    for group in optimizer.param_groups if setting.on_gpu else []:
        if group.get("foreach", True) is None and not group.get("fused"):
            group["foreach"] = True
    targets = work.rows * work.targets
    learnt: dict[tuple[int, ...], int] = {(work.rows, work.length - n): targets for n in (0, 1)}
    with Trace(learnt, all_true=True) as trace:  # rows are padded on the right
        trace.hold(_tensors(model))
        held = trace.live
        for watching in (nullcontext(), _watching(watch)):
            trace.restart()
            batch = _tokens(work.rows, work.length) | {"labels": _ids(work.rows, work.length)}
            trace.know(batch["attention_mask"])
            with _computing(setting), watching:
                loss = model(**batch).loss
            after_forward = trace.live
            logits = trace.made(int(model.anchor_backbone.config.vocab_size))
            optimizer.zero_grad()  # Lightning does it between the two passes
            loss.backward()
            del loss, batch
            most, flops = trace.peak, trace.flops
            trace.restart()
            trace.any_number = 1.0  # the optimizer asks how many steps there were
            optimizer.step()
            trace.any_number = None
    gradients = size_of(p.grad for p in trained if p.grad is not None)
    values = (value for each in optimizer.state.values() for value in each.values())
    state = size_of(value for value in values if isinstance(value, Tensor))
    fixed = held + gradients + state
    return Training(
        weights=held - weighed.saved,
        gradients=gradients,
        optimizer=state,
        activations=after_forward - fixed - logits,
        logits=logits,
        temporary=most - after_forward + weighed.unpacked,
        step=max(0, trace.peak - fixed),
        kept_free=_kept_free(held, trace, most, setting),
        flops=flops,
    )


@torch.no_grad()
def _generation(model: Any, work: Work, setting: Setting, weighed: _Weighed) -> Generation:
    """Reading the prompts, and making the last token beside full caches."""
    model.eval()
    with Trace() as trace, _computing(setting):
        trace.hold(_tensors(model))
        held = trace.live
        trace.restart()
        _read(trace, model, work.answered, work.length - work.new_tokens)
        prompt, prompt_flops = trace.peak, trace.flops
        kept_free = _kept_free(held, trace, prompt, setting)
        cache = _read(trace, model, work.answered, work.length - 1)
        trace.restart()
        cache = _read(trace, model, work.answered, work.length, cache)
        at_the_end, most = trace.live, max(prompt, trace.peak)
        del cache
        caches = at_the_end - trace.live  # merged weights, say, stay
    return Generation(
        weights=held - weighed.saved,
        caches=caches,
        temporary=most - held - caches + weighed.unpacked,
        kept_free=max(0, prompt + kept_free - most),
        prompt_flops=prompt_flops,
        flops=trace.flops,
    )


def _read(trace: Trace, model: Any, rows: int, length: int, cache: Any = None) -> Any:
    """One forward pass as `generate` does it: over the whole prompt, or one token after a cache.

    Returns:
        The cache afterwards.
    """
    batch = _tokens(rows, length)
    trace.know(batch["attention_mask"])
    if cache is not None:
        batch["input_ids"] = batch["input_ids"][:, -1:]
    output = model(**batch, past_key_values=cache, use_cache=True, logits_to_keep=1)
    scores = output.logits[:, -1].to(torch.float32, copy=True)
    scores.argmax(-1)
    return output.past_key_values


def _kept_free(held: int, trace: Trace, most: int, setting: Setting) -> int:
    """What the allocator of a processor held at its peak beyond the tensors at theirs."""
    return 0 if setting.on_gpu else max(0, held + trace.heap.peak - most)


def _computing(setting: Setting) -> AbstractContextManager[Any]:
    """The precision in which it computes."""
    mixed = _MIXED.get(setting.precision)
    return torch.autocast("cpu", mixed) if mixed else nullcontext()


def _watching(watch: Watch | None) -> AbstractContextManager[Any]:
    return nullcontext() if watch is None else watch.watching()


def _tensors(model: nn.Module) -> list[Tensor]:
    """Weights and buffers."""
    return [*model.parameters(), *model.buffers()]


def _tokens(rows: int, length: int) -> dict[str, Tensor]:
    """Tokens, and a mask that says which of them are padding."""
    return {"input_ids": _ids(rows, length), "attention_mask": _ids(rows, length)}


def _ids(rows: int, length: int) -> Tensor:
    return torch.ones(rows, length, dtype=torch.long)
