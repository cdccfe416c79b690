"""Caches of a fixed size, so that the step from one token to the next can be compiled as a whole.

A cache that grows makes every step another one to a compiler; and of what the step of a small model
takes most is Python, which calls each operation by itself. So the prompt is read as ever, and then
all memories are moved into tensors with room for the tokens to come. From there on a step through
augmenting models, bridges and anchor is one function of tensors that keep their shapes.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import CompileConfig, DynamicCache, GenerationConfig, StaticCache
from transformers.cache_utils import StaticLayer
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.composed.bridge import Memory
from calm_lightning.composed.cache import ComposedCache
from calm_lightning.contracts import CalmError
from calm_lightning.generation_settings import asked

if TYPE_CHECKING:
    from calm_lightning.composed.model import ComposedModel

_ROUNDED = 128
"""Sizes are multiples of it: what is compiled for one number of tokens then serves for others."""

_USUAL = {
    # What else these options of `generate` say needs more than one token after another
    "past_key_values": None,
    "assistant_model": None,
    "prompt_lookup_num_tokens": None,
    "use_cache": True,
    "output_attentions": False,
    "output_hidden_states": False,
}

STATIC = "cache_implementation=static (calm generate: --compile)"
"""How messages call it."""

_OURS = ("cache_implementation", "compile_config", "max_cache_len")
"""Options of `generate` that are honoured here, and not by transformers."""

_ONCE = (
    "A static cache serves for one call of generate, from one token to the next. To go on after "
    "that, or to take rows or tokens out of it, a cache that grows is needed."
)

Keep = Callable[[Tensor], Tensor]


class StaticBridgeMemory:
    """What one bridge keeps, with room for what is to come.

    Args:
        memory: What it has kept so far, [batch, ..., seq, any width].
        size: Tokens that there is room for.
        read: [], how many tokens have been read: the place of the next one.
    """

    def __init__(self, memory: Memory, size: int, read: Tensor) -> None:
        self.tensors = tuple(_with_room(tensor, size) for tensor in memory)
        self._read = read

    def append(self, new: Memory) -> None:
        """Put what is kept of the next token into its place."""
        for kept, tensor in zip(self.tensors, new, strict=True):
            kept.index_copy_(-2, self._read[None], tensor)

    def keep(self, rows: Keep) -> None:
        """Keep only these rows of the batch."""
        self.tensors = tuple(rows(tensor) for tensor in self.tensors)


class StaticMemories:
    """All that a composed model remembers, in tensors that keep their shapes.

    Args:
        cache: What was read so far.
        backbones: Of the model.
        mask: [batch, read or more], 0 at padding; None without padding.
        prompt_mask: [batch, any], True at tokens of the prompt, where no others may be read.
        size: Tokens that there is room for.

    Attributes:
        anchor: Keys and values of the anchor.
        augmenting: Those of each augmenting model; None of one that is switched off.
        bridges: What each bridge keeps.
        mask: [batch, size], 0 at padding. What has not been read yet is no padding: being causal
            hides it.
        read: [], how many tokens have been read.
    """

    def __init__(
        self,
        cache: ComposedCache,
        backbones: Sequence[Backbone],
        mask: Tensor | None,
        prompt_mask: Tensor | None,
        size: int,
    ) -> None:
        keys, read = cache.layers[0].keys, cache.get_seq_length()
        assert keys is not None
        self.read = _lasting(torch.tensor(read, device=keys.device))
        self.mask = _lasting(keys.new_ones((len(keys), size), dtype=torch.long))
        if mask is not None:
            self.mask[:, :read] = mask[:, :read]
        self._readable = self.mask.bool()
        if prompt_mask is not None:
            prompt = prompt_mask[:, :size].bool()
            self._readable[:, : prompt.shape[1]] &= prompt
            self._readable[:, prompt.shape[1] :] = False
        anchor, *augmenting = (
            _static(backbone, grown, size)
            for backbone, grown in zip(backbones, (cache, *cache.augmenting), strict=True)
        )
        assert anchor is not None
        self.anchor, self.augmenting = anchor, augmenting
        self.bridges = [StaticBridgeMemory(m.tensors, size, self.read) for m in cache.bridges]

    def visible(self) -> Tensor:
        """[batch, 1, size], True where the next token may read an augmenting model's."""
        places = torch.arange(self.mask.shape[1], device=self.mask.device)
        return (self._readable & (places <= self.read))[:, None]

    def note(self, place: int, real: Tensor) -> None:
        """What is read next is padding in rows where `real`, [batch], is 0."""
        self.mask[:, place] = real
        self._readable[:, place] &= real.bool()

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""

        def keep(tensor: Tensor) -> Tensor:
            kept = tensor.index_select(0, rows.to(tensor.device))
            # In its place if it fits there: a recorded graph of kernels knows tensors by that.
            return tensor.copy_(kept) if kept.shape == tensor.shape else _lasting(kept)

        self.mask, self._readable = keep(self.mask), keep(self._readable)
        for cache in (self.anchor, *self.augmenting):
            for layer in () if cache is None else cache.layers:
                if layer.is_initialized:
                    layer.keys, layer.values = keep(layer.keys), keep(layer.values)
        for memory in self.bridges:
            memory.keep(keep)


class StaticComposedCache(ComposedCache):
    """A composed model's cache that grows while the prompt is read, and has a fixed size then.

    It serves for one call of `generate`.

    Args:
        model: Whose memories these are.
        size: Tokens that there must be room for, the prompt's among them.
        compiled: Options of `torch.compile` for the step from one token to the next; None leaves it
            as it is.

    Attributes:
        memories: Where everything is, once the prompt is read.
    """

    def __init__(
        self, model: "ComposedModel", size: int, compiled: Mapping[str, Any] | None
    ) -> None:
        readers = [connection.augmenting for connection in model.connections]
        super().__init__(model.backbones[0], model.backbones[1:], readers)
        self.compiled = compiled
        self.memories: StaticMemories | None = None
        self._size = size + -size % _ROUNDED
        self._read = 0

    def is_next(self, new: int) -> bool:
        """Whether the prompt is read, so that so many new tokens are the next ones."""
        return self.memories is not None or (new == 1 and self.get_seq_length() > 0)

    def next_place(
        self,
        backbones: Sequence[Backbone],
        new: int,
        mask: Tensor | None,
        prompt_mask: Tensor | None = None,
    ) -> StaticMemories:
        """The memories, with a place for one more token; moved there at the first call.

        Args:
            backbones: Of the model.
            new: Tokens that are to be read.
            mask: [batch, read + 1], 0 at padding; None without padding.
            prompt_mask: [batch, any], True at tokens of the prompt, if bridges read no others.

        Raises:
            CalmError: If that is more than one token, or there is no place left.
        """
        if self.memories is None:
            self._read, given = self.get_seq_length(), (mask, prompt_mask, self._size)
            self.memories = StaticMemories(self, backbones, *given)
            for grown in (self, *self.augmenting):
                grown.layers = []
            for memory in self.bridges:
                memory.reset()
        if new != 1:
            raise CalmError(_ONCE)
        if self._read >= self._size:
            raise CalmError(
                f"This static cache has room for {self._size} tokens, and all of them are read. "
                "Say by max_new_tokens how many there will be."
            )
        if mask is not None:
            self.memories.note(self._read, mask[:, -1])
        self._read += 1
        return self.memories

    @override
    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx) if self.memories is None else self._read

    @override
    def in_step(self, silent: Any = ()) -> bool:
        return self.memories is not None or super().in_step(silent)

    @property
    @override
    def is_compileable(self) -> bool:
        return False  # by transformers; the model sees to it itself

    @override
    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.memories is None:
            super().reorder_cache(beam_idx)
        else:
            self.memories.select(beam_idx)

    @override
    def batch_select_indices(self, indices: Tensor) -> None:
        if self.memories is not None:
            raise CalmError(_ONCE)
        super().batch_select_indices(indices)

    @override
    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.memories is not None:
            raise CalmError(_ONCE)
        super().batch_repeat_interleave(repeats)

    @override
    def crop(self, tokens_to_remove: int) -> None:
        raise CalmError(_ONCE)

    @override
    def reset(self) -> None:
        raise CalmError(_ONCE)


def with_static_cache(
    model: "ComposedModel", ids: Tensor, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Options of `generate`, with a cache of a fixed size in the place of the wish for one.

    Args:
        model: Who generates. Its settings count as options do.
        ids: [batch, seq], the prompts.
        options: Of `generate`. `disable_compile`, `compile_config` and `max_cache_len` are as in
            transformers, but for this: left to itself the step is compiled on processors too.

    Raises:
        CalmError: As `refuse_growing`, and if an option is of another kind than it should be, or
            nobody says how many tokens there will be.
    """
    refuse_growing(model, options)
    new = asked(model, options, "max_new_tokens")
    size = asked(model, options, "max_length") if new is None else ids.shape[1] + new
    if size is None:
        raise CalmError(f"{STATIC} makes room once: say for how much, by max_new_tokens.")
    config = asked(model, options, "compile_config") or CompileConfig()
    if not isinstance(config, CompileConfig):
        raise CalmError(
            "compile_config must be a transformers.CompileConfig, such as "
            f"CompileConfig(mode='default'): got {config!r:.80}."
        )
    compiled = None
    if not asked(model, options, "disable_compile"):
        # As they are: a copied backend would be another one, and all be compiled again.
        compiled = {name: value for name, value in vars(config).items() if name[0] != "_"}
    size = max(size, asked(model, options, "max_cache_len") or 0)
    given = {name: value for name, value in options.items() if name not in _OURS}
    if given.get("generation_config") is not None:
        given["generation_config"] = without_wishes(given["generation_config"])
    return {**given, "past_key_values": StaticComposedCache(model, size, compiled)}


def without_wishes(settings: GenerationConfig) -> GenerationConfig:
    """A copy of settings that asks for no kind of cache, and for no compiler."""
    settings = copy.copy(settings)
    for name in _OURS:
        setattr(settings, name, None)
    return settings


def refuse_growing(model: "ComposedModel", options: Mapping[str, Any]) -> None:
    """Refuse what cannot have a cache of a fixed size.

    Args:
        model: Who generates.
        options: Of `generate`.

    Raises:
        CalmError: If the model, or an option, needs a cache that grows.
    """
    for name, usual in _USUAL.items():
        if asked(model, options, name) not in (None, usual):
            raise CalmError(
                f"{STATIC} goes from one token to the next and keeps nothing else, which does not "
                f"go with {name}. Leave out one of the two."
            )
    for backbone in model.backbones:
        if why := _needs_growing(model, backbone):
            raise CalmError(f"{STATIC} cannot be had: {backbone.name!r} {why}. Leave it out.")
    device = next(model.anchor.parameters()).device.type
    if torch.is_autocast_enabled(device):
        raise CalmError(
            f"{STATIC} keeps one kind of numbers, and under torch.autocast there are two. Load the "
            "models in the kind that you want (dtype), or leave it out."
        )


def _needs_growing(model: "ComposedModel", backbone: Backbone) -> str:
    """Why a backbone's memory cannot have a fixed size; empty if it can."""
    readers = [reader for reader in model.augmenting_readers if reader.backbone is backbone]
    quantizer = getattr(backbone.model, "hf_quantizer", None)
    if any(reader.alignment is not None for reader in readers):
        return (
            "reads the anchor's text with its own tokenizer, and how many tokens the next one of "
            "the anchor will be to it nobody knows"
        )
    layers = StaticCache(config=backbone.model.config, max_cache_len=1).layers
    if backbone.has_window or any(type(layer) is not StaticLayer for layer in layers):
        return "has layers that do not read all tokens before, such as those with a window"
    if not getattr(backbone.model, "_can_compile_fullgraph", False):
        return f"is a {type(backbone.model).__name__}, which transformers cannot compile"
    if quantizer is not None and not quantizer.is_compileable:
        return "is quantised in a way that transformers cannot compile"
    if backbone.is_shared_out:
        return "has its weights shared out among processes"
    if len(set(getattr(backbone.model, "hf_device_map", {}).values())) > 1:
        return "is spread over several devices"
    return ""


def _static(backbone: Backbone, grown: DynamicCache, size: int) -> StaticCache | None:
    """The same keys and values, with room for more; None if there are none."""
    if not grown.get_seq_length():
        return None
    static = StaticCache(config=backbone.model.config, max_cache_len=size)
    for layer, old in zip(static.layers, grown.layers, strict=True):
        if old.is_initialized:
            layer.lazy_initialization(old.keys, old.values)
            layer.update(old.keys, old.values)
    return static


def _with_room(tensor: Tensor, size: int) -> Tensor:
    """A tensor [..., seq, width] with zeros behind, [..., size, width]."""
    return _lasting(torch.nn.functional.pad(tensor, (0, 0, 0, size - tensor.shape[-2])))


def _lasting(tensor: Tensor) -> Tensor:
    """A tensor that stays in its place, which lets CUDA graphs write to it."""
    torch._dynamo.mark_static_address(tensor)
    return tensor
