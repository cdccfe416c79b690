"""The composed model: frozen backbones, trained bridges, and one forward pass through all of them.

Paper: LLM Augmented LLMs (arXiv 2401.02412), section 3.1. The augmenting models read the same
tokens as the anchor; at every connection a bridge reads one augmenting layer and adds to one
anchor layer's output, H_B,j + bridge(H_A,i, H_B,j), which feeds the anchor's next layer. Tokens
come from the anchor's head.

The backbones are run as they are. Forward hooks, installed once, read and add while a forward of
the composed model is under way (`_Run`) and do nothing otherwise, so the same model objects still
work alone.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, Cache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from typing_extensions import override

from calm_lightning.alignment import (
    example_numbers,
    positions_of,
    sees_all_before,
    visible_tokens,
)
from calm_lightning.auto import ComposedConfig
from calm_lightning.backbone import Backbone
from calm_lightning.collate import IGNORED, tokenize
from calm_lightning.compiling import CompiledStep
from calm_lightning.composed.bridge import Bridge
from calm_lightning.composed.cache import BridgeMemory, ComposedCache, TextMemory
from calm_lightning.composed.growing import with_another, without_one
from calm_lightning.composed.head import can_be_chunked, mean_loss
from calm_lightning.composed.joined import OTHER_CACHE, JoinedModel, refuse_other_caches, spoilt
from calm_lightning.composed.kept import Kept
from calm_lightning.composed.reading import AugmentingReader, Excerpt, Offer, Page
from calm_lightning.composed.recomputing import recomputed
from calm_lightning.composed.static import (
    STATIC,
    StaticBridgeMemory,
    StaticComposedCache,
    StaticMemories,
    with_static_cache,
    without_wishes,
)
from calm_lightning.composed.wiring import Connection
from calm_lightning.contracts import CalmError, Composition
from calm_lightning.generation_settings import asked
from calm_lightning.state_cache import StateCache

Sees = Literal["full", "prompt"]

_ARGUMENTS = tuple(inspect.signature(GenerationMixin.generate).parameters)[1:]
"""Of `generate`, in the order in which they may be given without a name."""


@dataclass
class _Run:
    """One forward pass under way."""

    positions: Int[Tensor, "batch new"]
    bridges: Sequence[BridgeMemory | StaticBridgeMemory] | None
    """What each bridge remembers; None without a cache."""
    head_rows: Tensor | None = None
    """[batch, seq], True where the vocabulary head is wanted; None for everywhere."""
    targets: Tensor | None = None
    """[targets], the tokens wanted there, if the loss can be had without holding all logits."""
    examples: Int[Tensor, "batch new"] | None = None
    """Number of each token's example in its row, where rows hold several."""
    loss: Tensor | None = None
    """Over them, once the head was reached."""
    offers: dict[int, Offer] = field(default_factory=dict)
    """By augmenting model; those that are switched off are not in it."""
    anchor_runs: bool = False
    """False while augmenting models run: one of them may be the same object as the anchor."""


class ComposedModel(JoinedModel):
    """One language model out of an anchor and augmenting models.

    Args:
        anchor: The frozen model whose head speaks.
        augmenting: The frozen models that are read.
        connections: Which layer of which augmenting model feeds which anchor layer.
        bridges: The trained module of each connection, in the same order.
        composition: What built it; saved with it.
        augmenting_sees: `full`: every token, generated ones too. `prompt`: the bridges read only
            tokens of the prompt (the paper's "augmenting model as encoder" ablation).

    Attributes:
        recompute: Whether the anchor's layers keep only their inputs in training and compute the
            rest again for the gradient: much less memory, for another pass through them.

    Raises:
        CalmError: If the backbones cannot be read together.
    """

    reads_prompts_ahead = True
    packs = True

    def __init__(
        self,
        anchor: Backbone,
        augmenting: Sequence[Backbone],
        connections: Sequence[Connection],
        bridges: Sequence[Bridge],
        composition: Composition,
        augmenting_sees: Sees = "full",
    ) -> None:
        super().__init__(anchor, augmenting, composition)
        self.bridges = nn.ModuleList(bridges)
        self.connections = tuple(connections)
        self.augmenting_sees = augmenting_sees
        self.recompute = False
        self.augmenting_readers = tuple(
            AugmentingReader(
                anchor,
                model,
                {c.augmenting_layer for c in connections if c.augmenting == index},
                prompt_only=augmenting_sees == "prompt",
            )
            for index, model in enumerate(augmenting)
        )
        self._run: _Run | None = None
        self._silent: frozenset[int] = frozenset()
        self._kept: Kept | None = None
        self._compiled_steps: dict[str, CompiledStep] = {}  # by what they are compiled with
        self._hooks: list[RemovableHandle] = []
        self._install_hooks()
        self._ready()

    # ------------------------------------------------------------------ what is read

    @property
    @override
    def readers(self) -> tuple[Backbone, ...]:
        same = (r.backbone for r in self.augmenting_readers if r.alignment is None)
        return (self.backbones[0], *same)

    @override
    def fits(
        self,
        texts: Sequence[str],
        targets: Sequence[str] | None = None,
        new_tokens: int = 0,
        *,
        ends: bool | Sequence[bool] = True,
    ) -> list[bool]:
        """As everywhere; what another tokenizer makes of an answer to come is estimated."""
        fitting = super().fits(texts, targets, new_tokens, ends=ends)
        rows = tokenize(self.anchor_backbone.require_tokenizer(), texts, targets, ends)
        for reader in self.augmenting_readers:
            limit = reader.backbone.context
            if reader.alignment is None or limit is None:
                continue
            for number, row in enumerate(rows):
                length = reader.alignment.length(row.ids)
                answer = 2 * new_tokens * length / max(1, len(row.ids))
                fitting[number] &= length + answer <= limit
        return fitting

    # ------------------------------------------------------------------ one forward pass

    @override
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        prompt_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run augmenting models and anchor over new tokens.

        Args:
            input_ids: [batch, new] token ids.
            attention_mask: [batch, past + new], 0 at padding; None without padding.
            position_ids: [batch, new]; made from the mask if None. Where they start again in a row
                without mask or cache another example begins there, and reads nothing before it.
            past_key_values: A cache of earlier tokens, as returned by an earlier call.
            labels: [batch, new]; the token at each place, or -100 where nothing is to be learnt.
                With labels the head runs on target positions only, and no logits are given back.
            use_cache: Whether to return a cache; by default only if one was given.
            logits_to_keep: As in transformers: compute only the last so many logits.
            prompt_mask: [batch, any], True at prompt tokens; used when `augmenting_sees` is
                `prompt`. By default everything without a label is prompt.
            return_dict: Accepted for transformers' sake; the result is always an output object.
            kwargs: Passed on to the anchor.

        Returns:
            `loss` in nats per target token or `logits`, and `past_key_values`.
        """
        if input_ids is None:
            raise CalmError("The composed model needs input_ids: both models embed for themselves.")
        if attention_mask is not None and attention_mask.dim() != 2:
            raise CalmError(OTHER_CACHE)
        batch, new = input_ids.shape
        cache = self._cache(past_key_values, use_cache)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        ordinary = position_ids is None and not any(v is not None for v in kwargs.values())
        learns = self.training and labels is not None and cache is None
        kept = self._kept if learns and ordinary and not self._switched_off else None
        examples = None
        if position_ids is None:
            position_ids = positions_of(attention_mask, batch, past, new, input_ids.device)
        elif attention_mask is None and cache is None:
            examples = example_numbers(position_ids)
        if isinstance(cache, StaticComposedCache) and cache.is_next(new):
            if labels is not None or any(
                kwargs.get(f"output_{n}") for n in ("attentions", "hidden_states")
            ):
                raise CalmError(
                    "A static cache is for generation: with it there is no loss, and no attentions "
                    "or hidden states are given back."
                )
            if self.augmenting_sees == "prompt" and not self._switched_off:
                prompt_mask = self._prompt(prompt_mask, None, cache, input_ids)
            memories = cache.next_place(self.backbones, new, attention_mask, prompt_mask)
            logits = self._compiled(cache.compiled)(input_ids, position_ids, memories)
            return CausalLMOutputWithPast(logits=logits, past_key_values=cache)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        head_rows = targets = None
        if labels is not None:
            head_rows = nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))
            targets = labels[:, 1:][head_rows[:, :-1]]
            if not len(targets):
                raise CalmError("The batch has no target token: every label is -100.")
        composed_cache = cache if isinstance(cache, ComposedCache) else None
        self._run = run = _Run(
            position_ids,
            None if composed_cache is None else composed_cache.bridges,
            head_rows,
            targets if labels is not None and self.anchor_backbone.head_is_plain else None,
            examples,
        )
        try:
            if not self._switched_off:
                prompt_mask = (
                    self._prompt(prompt_mask, labels, cache, input_ids)
                    if self.augmenting_sees == "prompt"
                    else None
                )
                self._read_augmenting(
                    input_ids, attention_mask, position_ids, past, prompt_mask, composed_cache, kept
                )
            anchor = self.anchor
            if kept is not None:
                anchor = kept.begin(anchor, input_ids, attention_mask)
            run.anchor_runs = True
            if self.anchor_backbone.takes_positions:
                inputs["position_ids"] = position_ids
            with recomputed(self._above_first_connection() if labels is not None else ()):
                output = anchor(
                    **inputs,
                    past_key_values=cache,
                    use_cache=cache is not None,
                    logits_to_keep=0 if head_rows is not None else logits_to_keep,
                    return_dict=True,
                    **{k: v for k, v in kwargs.items() if v is not None},
                )
        finally:
            self._run = None
        loss, logits = run.loss, output.logits
        if targets is not None and loss is None:
            assert head_rows is not None
            logits = logits.squeeze(0) if logits.shape[:2] != (batch, new) else logits[head_rows]
            loss = nn.functional.cross_entropy(logits.float(), targets)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits if targets is None else None,
            past_key_values=cache,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def _above_first_connection(self) -> Iterable[nn.Module]:
        """The anchor's layers that a gradient goes through, if they are to keep little for it."""
        if not (self.recompute and torch.is_grad_enabled()):
            return ()
        return self.anchor_backbone.layers[1 + min(c.anchor_layer for c in self.connections) :]

    def _read_augmenting(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        past: int,
        prompt_mask: Tensor | None,
        cache: ComposedCache | None,
        kept: Kept | None,
    ) -> None:
        """Run every augmenting model over what is new to it, or look its states up."""
        run = self._run
        assert run is not None
        batch, new = input_ids.shape
        device, examples = input_ids.device, run.examples
        alone = prompt_mask is None and examples is None
        causal = alone and sees_all_before(attention_mask, past, new)
        page: Page | None = None
        for index, reader in enumerate(self.augmenting_readers):
            if index in self._silent:
                continue
            own = None if cache is None else cache.augmenting[index]
            known = None if kept is None else kept.augmenting[index]
            if reader.alignment is None:
                visible = visible_tokens(
                    attention_mask, batch, past, new, device, prompt_mask, examples
                )
                offer = reader.read_tokens(
                    input_ids, attention_mask, position_ids, visible, own, causal, known
                )
            elif examples is not None:
                offer = reader.read_packed(_excerpts(input_ids, examples, prompt_mask), examples)
            else:
                page = page or _page(input_ids, attention_mask, prompt_mask, cache)
                memory = TextMemory() if cache is None else cache.texts[index]
                offer = reader.read_text(page, own, memory, known)
            how = self._disturbance.get(index)
            offer.states = {n: spoilt(state, how) for n, state in offer.states.items()}
            run.offers[index] = offer

    def _cache(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache to use: a given one, or a fresh one of ours in place of an empty one."""
        if given is None and not use_cache:
            return None
        if isinstance(given, ComposedCache):
            if not self._switched_off and not given.in_step(self._silent):
                raise CalmError(
                    "This cache was filled while an augmenting model was switched off, so that "
                    "model has not read its tokens. Start with a fresh cache."
                )
            return given
        if given is not None and given.get_seq_length() > 0:
            if self._switched_off:
                return given
            raise CalmError(
                f"A composed model goes on from a ComposedCache, not from a filled "
                f"{type(given).__name__}: the augmenting models' memories are missing. Use the "
                "cache that the composed model returned, or `new_cache()`."
            )
        refuse_other_caches(given)
        cache = self.new_cache()
        if given is not None:
            cache.adopt(given)
        return cache

    def _compiled(self, options: Mapping[str, Any] | None) -> Callable[..., Tensor]:
        """`_step`, compiled with these options of `torch.compile` if there are any."""
        if options is None:
            return self._step
        key = str(options)
        if key not in self._compiled_steps:
            self._compiled_steps[key] = CompiledStep(self._step, options, STATIC)
        return self._compiled_steps[key]

    def _step(self, ids: Tensor, positions: Tensor, memories: StaticMemories) -> Tensor:
        """Logits [batch, 1, vocabulary] after one more token.

        Args:
            ids: [batch, 1].
            positions: [batch, 1].
            memories: Of what was read before; the token is added.
        """
        self._run = run = _Run(positions, memories.bridges)
        try:
            visible = memories.visible()
            for index, reader in enumerate(self.augmenting_readers):
                known = memories.augmenting[index]
                if known is None:
                    continue
                states = reader.tapped(ids, memories.mask, positions, known)
                how = self._disturbance.get(index)
                states = {layer: spoilt(state, how) for layer, state in states.items()}
                run.offers[index] = Offer.of(visible, positions, states)
            run.anchor_runs = True
            inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": memories.mask}
            if self.anchor_backbone.takes_positions:
                inputs["position_ids"] = positions
            output = self.anchor(**inputs, past_key_values=memories.anchor, use_cache=True)
        finally:
            self._run = None
        memories.read += 1
        return cast(Tensor, output.logits)

    def __getstate__(self) -> dict[str, Any]:
        # What was compiled belongs to this object: a copy compiles its own.
        return {**self.__dict__, "_compiled_steps": {}}

    def new_cache(self) -> ComposedCache:
        """An empty cache for this model, to be given to `generate` turn after turn."""
        readers = [connection.augmenting for connection in self.connections]
        aligned = [i for i, r in enumerate(self.augmenting_readers) if r.alignment is not None]
        return ComposedCache(self.backbones[0], self.backbones[1:], readers, aligned)

    def _prompt(
        self,
        prompt_mask: Tensor | None,
        labels: Tensor | None,
        cache: Cache | None,
        input_ids: Tensor,
    ) -> Tensor | None:
        if prompt_mask is None and labels is not None:
            # A target may be visible to itself in no way: prompt is what precedes the first label.
            learnt = (labels != IGNORED).cumsum(-1)
            if self._run is not None and self._run.examples is not None:
                # Of its own example: the first token of one is never learnt.
                here = torch.arange(labels.shape[1], device=labels.device)
                learnt = learnt - learnt.gather(1, here - self._run.positions)
            return learnt == 0
        if prompt_mask is None and self._prompt_length is not None:
            prompt_mask = input_ids.new_ones((len(input_ids), self._prompt_length)).bool()
        if isinstance(cache, ComposedCache) and prompt_mask is not None:
            width = prompt_mask.shape[1]
            if cache.prompt_length not in (None, width):
                raise CalmError(
                    "augmenting_sees=prompt: the augmenting model has read its prompt already, so "
                    "a conversation cannot go on in the same cache. Start with a fresh cache."
                )
            cache.prompt_length = width
        return prompt_mask

    @override
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. See `transformers.GenerationMixin.generate`."""
        # Not handed on as `prompt_mask`: an assistant model would be given it too.
        kwargs |= dict(zip(_ARGUMENTS, args, strict=False))
        ids = kwargs.get("input_ids", kwargs.get("inputs"))
        before, settings = self._prompt_length, self.generation_config
        self._prompt_length = None if ids is None else ids.shape[1]
        try:
            if ids is not None and asked(self, kwargs, "cache_implementation") == "static":
                kwargs = with_static_cache(self, ids, kwargs)
                self.generation_config = without_wishes(settings)
            return super().generate(**kwargs)
        finally:
            self._prompt_length, self.generation_config = before, settings

    # ------------------------------------------------------------------ states on disk

    def keep_states(self, settings: StateCache, precision: str = "") -> Kept:
        """From now on keep in training what the frozen models make of each text, and look it up.

        Args:
            settings: Where, and how much.
            precision: In which the models compute, beside their own types: of a trainer.

        Raises:
            CalmError: If the folder cannot be used, or these models' states cannot be kept.
        """
        self.forget_states()
        first = min(c.anchor_layer for c in self.connections)
        readers, add = self.augmenting_readers, partial(self._add, first)
        self._kept = Kept(settings, self.backbones[0], readers, first, add, precision)
        return self._kept

    def forget_states(self) -> None:
        """Compute everything again; what was kept stays on the disk."""
        if self._kept is not None:
            self._kept.close()
        self._kept = None

    # ------------------------------------------------------------------ hooks

    def _install_hooks(self) -> None:
        anchor = self.backbones[0]
        for layer in sorted({c.anchor_layer for c in self.connections}):
            self._hooks.append(
                anchor.layers[layer].register_forward_hook(partial(self._add, layer))
            )
        head = self.anchor.get_output_embeddings()
        if head is not None:
            self._hooks.append(head.register_forward_pre_hook(self._select_targets))

    def detach(self) -> None:
        """Take the hooks out of the backbones; the composed model cannot be used afterwards."""
        for hook in (*self._hooks, *(h for r in self.augmenting_readers for h in r.tapped.hooks)):
            hook.remove()

    def _add(self, layer: int, module: nn.Module, args: Any, output: Any) -> Any:
        run = self._run
        if run is None or not run.anchor_runs or self._switched_off:
            return None
        anchor_states = output if isinstance(output, Tensor) else output[0]
        result = anchor_states
        for number, connection in enumerate(self.connections):
            if connection.anchor_layer != layer:
                continue
            offer = run.offers.get(connection.augmenting)
            if offer is None or not offer.visible.shape[-1]:
                continue
            added = self._added(number, connection, offer, anchor_states)
            if not offer.causal:
                added = torch.where(offer.sees_something.to(added.device), added, 0.0)
            result = result + added.to(result.dtype)
        return result if isinstance(output, Tensor) else (result, *output[1:])

    def _added(
        self, number: int, connection: Connection, offer: Offer, anchor_states: Tensor
    ) -> Tensor:
        """What one bridge says, after it has remembered what is new."""
        run = self._run
        assert run is not None
        bridge = cast(Bridge, self.bridges[number])
        dtype, device = next(bridge.parameters()).dtype, anchor_states.device
        states = offer.states.get(connection.augmenting_layer)
        kept = BridgeMemory() if run.bridges is None else run.bridges[number]
        if offer.anew and isinstance(kept, BridgeMemory):
            kept.reset()
        if states is not None:
            kept.append(bridge.remember(states.to(device, dtype), offer.positions.to(device)))
        visible = None if offer.causal and bridge.takes_causal else offer.visible.to(device)
        return bridge(anchor_states.to(dtype), kept.tensors, visible, run.positions.to(device))

    def _select_targets(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        run = self._run
        if run is None or not run.anchor_runs or run.head_rows is None:
            return None
        hidden = args[0]
        if hidden.shape[:2] != run.head_rows.shape:
            return None
        wanted = hidden[run.head_rows.to(hidden.device)]
        if run.targets is not None and can_be_chunked(module):
            run.loss = mean_loss(wanted, module, run.targets.to(hidden.device))
            wanted = wanted[:0]  # nothing is left to do for the head itself
        return (wanted[None], *args[1:])

    # ------------------------------------------------------------------ switches

    @contextmanager
    def without(self, *augmenting: int) -> Iterator[None]:
        """While it is active these augmenting models are switched off: neither run nor read.

        Args:
            augmenting: Their numbers, counted from 0.

        Raises:
            CalmError: If there is no such model.
        """
        self._check_numbers(augmenting)
        before, self._silent = self._silent, self._silent | set(augmenting)
        try:
            yield
        finally:
            self._silent = before

    # ------------------------------------------------------------------ more models, or fewer

    def add_augmenting(
        self, backbone: Backbone, connections: Sequence[tuple[int, int]] | None = None
    ) -> "ComposedModel":
        """This composition with one more augmenting model, of which only the bridges are trained.

        The bridges that there are stay as they are and are frozen; the new ones add zero, so the
        answers do not change before training. This object must not be used any more.

        Args:
            backbone: The new augmenting model.
            connections: (augmenting layer, anchor layer), 0-based. By default those of the
                composition if it has one list for all models, evenly spaced otherwise.

        Raises:
            CalmError: If a layer does not exist, or the composition makes no bridges.
        """
        return with_another(self, backbone, connections)

    def remove_augmenting(self, augmenting: int) -> "ComposedModel":
        """This composition without one of its augmenting models and its bridges.

        This object must not be used any more.

        Args:
            augmenting: Its number, counted from 0.

        Raises:
            CalmError: If there is no such model, or it is the only one.
        """
        self._check_numbers([augmenting])
        return without_one(self, augmenting)

    # ------------------------------------------------------------------ saving

    @override
    def own_state(self) -> dict[str, Tensor]:
        return {f"bridges.{name}": tensor for name, tensor in self.bridges.state_dict().items()}

    @classmethod
    @override
    def from_pretrained(cls, folder: str | Path, *args: Any, **kwargs: Any) -> "ComposedModel":
        """Load the composition and the backbones that it names, as `calm_lightning.load` does.

        Args:
            folder: As written by `save_pretrained`, or the name of such a model on the hub.
            args: Not used; transformers passes a config, which the folder has itself.
            kwargs: Of transformers: `dtype`, `device_map`, `attn_implementation`, `revision`, ...;
                of `calm_lightning.load`: `anchor`, `augmenting`.

        Raises:
            CalmError: As `calm_lightning.load`, and if an option cannot be honoured.
        """
        from calm_lightning.checkpoint import load
        from calm_lightning.hub import options_of_transformers

        loaded = load(folder, **options_of_transformers(kwargs))
        if not isinstance(loaded, cls):
            raise CalmError(f"{folder} holds a {type(loaded).__name__}; open it by calm.load.")
        return loaded

    @override
    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model with its card; see `calm_lightning.hub.upload`."""
        from calm_lightning.hub import upload

        return upload(self, repo_id, **options)


AutoModelForCausalLM.register(ComposedConfig, ComposedModel, exist_ok=True)


def _page(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    prompt_mask: Tensor | None,
    cache: ComposedCache | None,
) -> Page:
    """What has been read so far, for augmenting models with other tokenizers."""
    new = torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask is not None:
        new = attention_mask[:, -input_ids.shape[1] :].bool()
    rows = unpadded(input_ids, new)
    if cache is not None:
        rows = cache.read_on(rows, input_ids.shape[1])
    lengths = None if prompt_mask is None else _prompt_lengths(prompt_mask, attention_mask)
    return Page(rows, new, lengths)


def _excerpts(
    input_ids: Tensor, examples: Tensor, prompt_mask: Tensor | None
) -> list[list[Excerpt]]:
    """The examples of each row, for augmenting models with other tokenizers."""
    rows = []
    for number, (ids, owners) in enumerate(zip(input_ids, examples, strict=True)):
        lengths: list[int] = owners.bincount().tolist()
        prompts: list[int | None] = [None] * len(lengths)
        if prompt_mask is not None:
            prompts = owners[prompt_mask[number]].bincount(minlength=len(lengths)).tolist()
        texts = [text.tolist() for text in ids.split(lengths)]
        rows.append(list(zip(texts, prompts, strict=True)))
    return rows


def unpadded(input_ids: Tensor, new: Tensor) -> list[list[int]]:
    """The new tokens of each row, without padding."""
    return [ids[here].tolist() for ids, here in zip(input_ids, new, strict=True)]


def _prompt_lengths(prompt_mask: Tensor, attention_mask: Tensor | None) -> list[int]:
    """How many tokens of each row are the prompt, padding not counted."""
    prompt = prompt_mask.bool()
    if attention_mask is not None:
        missing = prompt.shape[1] - attention_mask.shape[1]  # what has not been read yet
        here = nn.functional.pad(attention_mask.bool(), (0, max(0, missing)), value=True)
        prompt = prompt & here[:, : prompt.shape[1]]
    lengths: list[int] = prompt.sum(-1).tolist()
    return lengths
