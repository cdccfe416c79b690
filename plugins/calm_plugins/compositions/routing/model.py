"""One language model out of several that take turns, or speak at once; a small head decides.

All models read every text side by side, each with its own keys and values, and the logits that come
out are those of whoever speaks, or a mixture. So `transformers` generates with it in every way that
it knows, and which model said what follows from the text: it is worked out afterwards, when asked.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from typing_extensions import override

from calm_lightning.alignment import share_token_ids
from calm_lightning.backbone import Backbone
from calm_lightning.collate import IGNORED
from calm_lightning.composed import JoinedModel, spoilt
from calm_lightning.contracts import CalmError, Composition
from calm_plugins.compositions.routing.cache import RoutedCache
from calm_plugins.compositions.routing.reading import Reading, ask, widen
from calm_plugins.compositions.routing.said import Said, cut, marked, stretches
from calm_plugins.compositions.routing.translation import Translation, translate


@dataclass
class _Generation:
    """The last generation, from which follows who said what."""

    sequences: Int[Tensor, "rows all"]
    attention_mask: Int[Tensor, "rows prompt"]
    anchor_only: bool
    lengths: list[int] | None = None
    """Characters of every answer, where it was cut."""

    @property
    def prompt_length(self) -> int:
        return self.attention_mask.shape[1]


class RoutedModel(JoinedModel):
    """Frozen models that share the speaking; see the module's docstring.

    Args:
        anchor: The frozen model whose tokens are written.
        augmenting: The other frozen models.
        composition: What built it; saved with it.
        translate: Whether models with another tokenizer speak all the same, translated token by
            token. If not, the anchor's logits stand in their place.

    Raises:
        CalmError: If there is no other model, or one cannot speak in the anchor's tokens.
    """

    def __init__(
        self,
        anchor: Backbone,
        augmenting: Sequence[Backbone],
        composition: Composition,
        translate: bool = True,
    ) -> None:
        if not augmenting:
            raise CalmError(
                f"{type(composition).__name__} needs an augmenting model: with the anchor alone "
                "there is nothing to choose. Give one in model.augmenting."
            )
        super().__init__(anchor, augmenting, composition)
        self.others = tuple(
            index for index, model in enumerate(augmenting) if not share_token_ids(anchor, model)
        )
        """Numbers of the augmenting models with another tokenizer."""
        self._translations = {
            index: Translation(anchor, augmenting[index]) for index in self.others if translate
        }
        self._last: _Generation | None = None
        self._ready()

    # ------------------------------------------------------------------ what a subclass says

    @abstractmethod
    def log_odds(self, reading: Reading) -> Float[Tensor, "batch columns augmenting"]:
        """For each augmenting model how much rather it speaks than the anchor, in nats."""

    @abstractmethod
    def speak(
        self, reading: Reading, log_odds: Float[Tensor, "batch columns augmenting"]
    ) -> Float[Tensor, "batch columns vocabulary"]:
        """The logits of the next token."""

    def loss(
        self, reading: Reading, log_odds: Float[Tensor, "batch columns augmenting"]
    ) -> Float[Tensor, ""]:
        """What targets cost, in nats per target token: as they are spoken."""
        targets = reading.targets
        rows = targets != IGNORED
        spoken = self.speak(reading, log_odds)[rows].float()
        return nn.functional.cross_entropy(spoken, targets[rows])

    @abstractmethod
    def speakers(
        self, reading: Reading, log_odds: Float[Tensor, "batch columns augmenting"]
    ) -> Int[Tensor, "batch columns"]:
        """Who says the next token: 0 is the anchor, 1 the first augmenting model."""

    @property
    @override
    def readers(self) -> tuple[Backbone, ...]:
        return tuple(
            backbone
            for number, backbone in enumerate(self.backbones)
            if number - 1 not in self.others
        )

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
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Let all models read new tokens, and say the next ones.

        Args:
            input_ids: [batch, new] token ids.
            attention_mask: [batch, past + new], 0 at padding; None without padding.
            position_ids: Made from the mask, whatever is given.
            past_key_values: A cache of earlier tokens, as returned by an earlier call.
            labels: [batch, new]; the token at each place, or -100 where nothing is to be learnt.
                With labels there is a loss and no logits.
            use_cache: Whether to return a cache; by default only if one was given.
            logits_to_keep: As in transformers: only the last so many logits.
            return_dict: Accepted for transformers' sake; the result is always an output object.
            kwargs: What else the batch holds; what only a single model can show is not shown.

        Returns:
            `loss` in nats per target token, `logits`, `past_key_values`.
        """
        if input_ids is None:
            raise CalmError("A routed model needs input_ids: every model embeds for itself.")
        if attention_mask is not None and attention_mask.dim() != 2:
            raise CalmError("Static caches are not supported; leave out cache_implementation.")
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        cache = self._cache(past_key_values, use_cache)
        wanted = self._wanted(input_ids, labels, logits_to_keep)
        reading = Reading(input_ids, attention_mask, past, wanted, cache, labels, kwargs)
        log_odds = self._decide(reading)
        if labels is not None:
            loss = self._anchors_loss(reading) if log_odds is None else self.loss(reading, log_odds)
            return CausalLMOutputWithPast(loss=loss, past_key_values=cache)
        logits = reading.logits[0] if log_odds is None else self.speak(reading, log_odds)
        if len(reading.columns) > len(wanted):
            logits = logits[:, torch.isin(reading.columns, wanted)]
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    def _wanted(
        self, input_ids: Tensor, labels: Tensor | None, logits_to_keep: int | Tensor
    ) -> Int[Tensor, " columns"]:
        """The columns after which a token is asked for."""
        columns = torch.arange(input_ids.shape[1])
        if labels is not None:
            wanted = columns[:-1][(labels[:, 1:] != IGNORED).any(0).cpu()]
            if not len(wanted):
                raise CalmError("The batch has no target token: every label is -100.")
            return wanted
        if isinstance(logits_to_keep, Tensor):
            return columns[logits_to_keep.cpu()]
        return columns[-logits_to_keep:] if logits_to_keep else columns

    def _needed(self, reading: Reading) -> Sequence[int]:
        """New columns that must be read to decide, beside those after which a token is asked."""
        return ()

    def _decide(self, reading: Reading) -> Float[Tensor, "batch columns augmenting"] | None:
        """Let all models read; who speaks, or None if the anchor is alone."""
        if not self._switched_off and (needed := self._needed(reading)):
            columns = reading.columns
            reading.columns = torch.cat([columns, columns.new_tensor(needed)]).unique()
        self._read(reading)
        return None if self._switched_off else self.log_odds(reading)

    def _read(self, reading: Reading) -> None:
        """Let every model read; none learns anything by it."""
        cache = reading.cache
        with torch.no_grad():
            logits, reading.states = ask(self.backbones[0], reading, cache)
            reading.logits = [logits]
            if self._switched_off:
                return
            rows = self._rows(reading) if self._translations else []
            for index, backbone in enumerate(self.backbones[1:]):
                if index in self._translations:
                    heard = translate(self._translations[index], reading, rows)
                elif index in self.others:
                    heard = logits
                else:
                    memory = None if cache is None else cache.augmenting[index]
                    heard, _ = ask(backbone, reading, memory)
                    heard = widen(heard.to(logits.device), logits.shape[-1])
                reading.logits.append(spoilt(heard, self._disturbance.get(index)))

    def _rows(self, reading: Reading) -> list[list[int]]:
        """All tokens of each row so far, without padding."""
        fresh = reading.unpadded()
        if reading.cache is None:
            return fresh
        return reading.cache.read_on(fresh, reading.input_ids.shape[1])

    def _anchors_loss(self, reading: Reading) -> Tensor:
        rows = reading.targets != IGNORED
        return nn.functional.cross_entropy(reading.logits[0][rows].float(), reading.targets[rows])

    def _cache(self, given: Cache | None, use_cache: bool | None) -> RoutedCache | None:
        """The cache to use: a given one, or a fresh one of ours in place of an empty one."""
        if given is None and not use_cache:
            return None
        if isinstance(given, RoutedCache):
            if not self._switched_off and not given.in_step():
                raise CalmError(
                    "This cache was filled by the anchor alone, so the other models have not read "
                    "its tokens. Start with a fresh cache."
                )
            return given
        if given is not None and (given.get_seq_length() or type(given).__name__ == "StaticCache"):
            raise CalmError(
                f"A routed model goes on from the cache that it returned, not from a filled or "
                f"static {type(given).__name__}: the memories of the other models are missing."
            )
        cache = RoutedCache(self.backbones[0], self.backbones[1:], self.others)
        if given is not None:
            cache.adopt(given)
        return cache

    # ------------------------------------------------------------------ generation

    @override
    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. See `transformers.GenerationMixin.generate`."""
        ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        if ids is None:
            raise CalmError("A routed model continues a prompt; give input_ids.")
        before, self._prompt_length = self._prompt_length, ids.shape[1]
        try:
            result = super().generate(*args, **kwargs)
        finally:
            self._prompt_length = before
        sequences = result if isinstance(result, Tensor) else result.sequences
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        mask = mask.repeat_interleave(len(sequences) // len(ids), dim=0)
        self._last = _Generation(sequences, mask, self._switched_off)
        return result

    @override
    def generate_text(
        self, prompts: Sequence[str], *, stop: Sequence[str] = (), **generation_kwargs: Any
    ) -> list[str]:
        answers = super().generate_text(prompts, stop=stop, **generation_kwargs)
        assert self._last is not None
        self._last.lengths = [len(answer) for answer in answers]
        return answers

    @torch.no_grad()
    def who_spoke(self) -> Int[Tensor, "rows new"]:
        """Who said each token of the last generation: 0 is the anchor, 1 the first other model.

        It is worked out from the text now, in one pass over it.

        Raises:
            CalmError: If nothing was generated yet.
        """
        last = self._last
        if last is None:
            raise CalmError("Nothing was generated yet, so nobody has spoken.")
        prompt, total = last.prompt_length, last.sequences.shape[1]
        said = last.sequences[:, prompt:]
        if last.anchor_only or not said.numel():
            return torch.zeros_like(said)
        mask = torch.cat([last.attention_mask, torch.ones_like(said)], dim=1)
        labels = last.sequences.clone()
        labels[:, :prompt] = IGNORED
        columns = torch.arange(prompt - 1, total - 1)
        reading = Reading(last.sequences, mask, 0, columns, labels=labels)
        log_odds = self._decide(reading)
        return torch.zeros_like(said) if log_odds is None else self.speakers(reading, log_odds)

    def last_said(self) -> list[list[Said]]:
        """The answers of the last generation, each cut where another model goes on.

        Raises:
            CalmError: If nothing was generated yet, or the anchor has no tokenizer.
        """
        speakers = self.who_spoke()
        last = self._last
        assert last is not None
        tokenizer, others = self.anchor_backbone.require_tokenizer(), len(self.augmenting)
        said = [
            stretches(tokenizer, ids.tolist(), who.tolist(), others)
            for ids, who in zip(last.sequences[:, last.prompt_length :], speakers, strict=True)
        ]
        if last.lengths is None:
            return said
        return [cut(row, length) for row, length in zip(said, last.lengths, strict=True)]

    def last_marked(self) -> list[str]:
        """The same as text: `[anchor]10+[augmenting]22`."""
        return [marked(said) for said in self.last_said()]
