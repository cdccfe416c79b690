"""One model answers the whole prompt; which one, is decided where the prompt ends."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from calm_lightning.alignment import positions_of
from calm_lightning.backbone import Backbone
from calm_lightning.collate import IGNORED, Row, pad_right, tokenize
from calm_lightning.contracts import CalmError, Composition
from calm_lightning.language_model import PlainModel
from calm_plugins.compositions.routing.calibration import (
    Calibration,
    calibrate,
    check_threshold,
)
from calm_plugins.compositions.routing.choice import choose, decider, log_shares, pick
from calm_plugins.compositions.routing.likelihood import prompt_odds, running_odds, token_nats
from calm_plugins.compositions.routing.model import RoutedModel
from calm_plugins.compositions.routing.own_tokens import own_rows, own_tokens, rows_of
from calm_plugins.compositions.routing.reading import Reading, ask, target_log_probs
from calm_plugins.compositions.routing.said import Said, speaker_name

DecideBy = Literal["state", "likelihood"]

_AT_A_TIME = 64
"""Prompts that are read together."""


class PromptModel(RoutedModel):
    """Prompt by prompt one model answers.

    A prompt ends before the first label, and in `generate` where the generated text begins. Where
    nobody says where it ends (a plain forward pass), every position is taken for an end, so that
    what is said at a position still depends on nothing after it.

    Texts are answered by the chosen model itself, in its own tokens (`generate_text`). By token ids
    (`generate`) all models must share theirs.

    Args:
        anchor: Whose last hidden state decides.
        augmenting: Who may answer in its place.
        composition: What built it.
        decide_by: See `PromptRouter`, as for all that follow.
        threshold: Above which an augmenting model answers.
        share: Or the share of prompts that it is found from.
        prompts: These prompts.
    """

    def __init__(
        self,
        anchor: Backbone,
        augmenting: Sequence[Backbone],
        composition: Composition,
        decide_by: DecideBy = "state",
        threshold: float = 0.5,
        share: float | None = None,
        prompts: Sequence[str] = (),
    ) -> None:
        super().__init__(anchor, augmenting, composition, translate=False)
        self.decide_by = decide_by
        self.share = share
        self.prompts = prompts
        self.head = decider(anchor.width, len(augmenting)) if decide_by == "state" else None
        self._threshold: float | None = threshold if share is None else None
        self._answers: list[list[Said]] | None = None

    # ------------------------------------------------------------------ deciding about texts

    @property
    def threshold(self) -> float:
        """An augmenting model answers a prompt whose score is above this."""
        if self._threshold is None:
            assert self.share is not None
            self.calibrate(self.prompts, self.share)
        assert self._threshold is not None
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        check_threshold(value)
        self._threshold = value

    def calibrate(self, prompts: Sequence[str], share: float) -> Calibration:
        """Set the threshold so that an augmenting model answers a share of these prompts.

        Args:
            prompts: Such as will be asked.
            share: Between 0 and 1.

        Raises:
            CalmError: If the share is none, or there are no prompts.
        """
        found = calibrate(self.scores(prompts), share)
        self._threshold = found.threshold
        return found

    def scores(self, prompts: Sequence[str]) -> Float[Tensor, " prompts"]:
        """How much each prompt speaks for an augmenting model, from 0 to 1.

        It is the share of the likeliest one against the anchor.
        """
        return self._odds_of(prompts).max(-1).values.sigmoid()

    def route(self, prompts: Sequence[str]) -> list[int]:
        """Who answers each prompt: 0 is the anchor, 1 the first augmenting model."""
        if self._switched_off:
            return [0] * len(prompts)
        return choose(self._odds_of(prompts), self.threshold).tolist()

    @torch.no_grad()
    def _odds_of(self, prompts: Sequence[str]) -> Float[Tensor, "prompts augmenting"]:
        found = [torch.zeros(0, len(self.augmenting))]
        for start in range(0, len(prompts), _AT_A_TIME):
            chunk = prompts[start : start + _AT_A_TIME]
            if self.head is not None:
                found.append(self._odds_by_state(chunk))
                continue
            rows = [
                [row.ids for row in tokenize(b.require_tokenizer(), chunk)] for b in self.backbones
            ]
            found.append(prompt_odds(self.backbones, rows))
        return torch.cat(found)

    def _odds_by_state(self, prompts: Sequence[str]) -> Float[Tensor, "prompts augmenting"]:
        device = next(self.anchor.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in self.encode(prompts).items()}
        last = torch.tensor([batch["input_ids"].shape[1] - 1])
        reading = Reading(batch["input_ids"], batch["attention_mask"], past=0, columns=last)
        _, states = ask(self.backbones[0], reading, None)
        return self._by_state(states)[:, 0].cpu()

    def _by_state(
        self, states: Float[Tensor, "batch columns width"]
    ) -> Float[Tensor, "batch columns augmenting"]:
        assert self.head is not None
        return self.head(states.to(self.head.weight.dtype))

    # ------------------------------------------------------------------ texts

    @override
    def encode(
        self,
        texts: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        ends: bool | Sequence[bool] = True,
    ) -> dict[str, Tensor]:
        """As everywhere; with targets, models with other tokens find theirs in the batch too."""
        batch = super().encode(texts, targets, ends=ends)
        for index in self.others if targets is not None else ():
            assert targets is not None
            batch |= own_tokens(self.backbones[1 + index], index, texts, targets, ends)
        return batch

    @override
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        self._answers = None
        return super().generate(*args, **kwargs)

    @override
    @torch.no_grad()
    def generate_text(
        self, prompts: Sequence[str], *, stop: Sequence[str] = (), **generation_kwargs: Any
    ) -> list[str]:
        """As everywhere; each prompt is answered by one model alone, as if the others were not.

        `max_new_tokens` counts in the tokens of whoever answers.

        Raises:
            CalmError: While models are disturbed: here each answers by itself, as it is.
        """
        if self._disturbance:
            raise CalmError(
                "A prompt is answered by one model as it is, so its answers cannot be disturbed. "
                "Leave model.disturb out; the rows of the models alone are the control."
            )
        streamer = generation_kwargs.pop("streamer", None)
        chosen = self.route(prompts)
        answers: dict[int, list[str]] = {}
        for speaker in sorted(set(chosen)):
            rows = [row for row, who in enumerate(chosen) if who == speaker]
            model = PlainModel(self.backbones[speaker], lambda _: None)
            asked = [prompts[row] for row in rows]
            if streamer is None or speaker - 1 not in self.others:
                said = model.generate_text(asked, stop=stop, streamer=streamer, **generation_kwargs)
            else:  # it reads the anchor's tokens
                said = model.generate_text(asked, stop=stop, **generation_kwargs)
                streamer.on_finalized_text(said[0], stream_end=True)
            each = len(said) // len(rows)  # num_return_sequences
            answers |= {row: said[i * each : (i + 1) * each] for i, row in enumerate(rows)}
        self._last = None  # of a generation by token ids
        names = [speaker_name(speaker, len(self.augmenting)) for speaker in chosen]
        self._answers = [
            [Said(names[row], answer)] for row in sorted(answers) for answer in answers[row]
        ]
        return [answer for row in sorted(answers) for answer in answers[row]]

    @override
    def last_said(self) -> list[list[Said]]:
        return super().last_said() if self._answers is None else self._answers

    # ------------------------------------------------------------------ one forward pass

    @override
    def train(self, mode: bool = True) -> "PromptModel":
        if self.share is not None and mode != self.training:
            self._threshold = None  # what is learnt asks for another one
        super().train(mode)
        return self

    @override
    def _needed(self, reading: Reading) -> Sequence[int]:
        if reading.labels is not None:
            return ()
        if self.others:
            name = self.backbones[1 + self.others[0]].name
            raise CalmError(
                f"{name!r} has other tokens than the anchor, so it cannot answer in the anchor's "
                "token ids. Ask with texts: generate_text."
            )
        end = self._prompt_end(reading)
        if self.head is None and not reading.past:  # every token of the prompt counts
            return range(reading.input_ids.shape[1])
        return () if end is None or end < 0 else (end,)

    def _prompt_end(self, reading: Reading) -> int | None:
        """Column in which the prompt of a generation ends; negative if it is in the cache."""
        if self._prompt_length is None:
            return None
        return self._prompt_length - 1 - reading.past

    @override
    def log_odds(self, reading: Reading) -> Float[Tensor, "batch columns augmenting"]:
        cache, end = reading.cache, self._prompt_end(reading)
        rows = self._rows(reading) if self.head is None else []
        if end is not None and end < 0:
            assert cache is not None
            if cache.decision is None or cache.prompt_length != self._prompt_length:
                raise CalmError(
                    "The end of the prompt is in the cache, and nothing was decided there. Start "
                    "with a fresh cache."
                )
            return self._everywhere(cache.decision, reading)
        if self.head is None and reading.labels is not None:
            return self._everywhere(self._by_prompts(reading), reading)
        every = self._by_likelihood(reading, rows) if rows else self._by_state(reading.states)
        if reading.labels is not None:
            first = (reading.targets != IGNORED).long().argmax(-1)
            return self._everywhere(every[torch.arange(len(every)), first], reading)
        if end is None:
            return every
        decision = every[:, (reading.columns == end).nonzero()[0, 0]]
        if cache is not None:
            cache.decision, cache.prompt_length = decision, self._prompt_length
        return self._everywhere(decision, reading)

    @staticmethod
    def _everywhere(
        decision: Float[Tensor, "batch augmenting"], reading: Reading
    ) -> Float[Tensor, "batch columns augmenting"]:
        return decision[:, None].expand(-1, len(reading.columns), -1)

    def _by_likelihood(
        self, reading: Reading, rows: Sequence[Sequence[int]]
    ) -> Float[Tensor, "batch columns augmenting"]:
        """By likelihood, with every column taken for the end of a prompt."""
        if not reading.past:
            return running_odds(reading.logits, reading.input_ids, reading.real)
        # What the earlier tokens cost is not in the cache; the whole text is read again.
        ids, device = reading.input_ids, reading.input_ids.device
        whole = [Row(list(row), len(row)) for row in rows]
        batch = {name: tensor.to(device) for name, tensor in pad_right(whole, 0).items()}
        again = Reading(
            batch["input_ids"],
            batch["attention_mask"],
            past=0,
            columns=torch.arange(batch["input_ids"].shape[1]),
        )
        self._read(again)
        odds = running_odds(again.logits, again.input_ids, again.real)
        places = positions_of(reading.attention_mask, len(ids), reading.past, ids.shape[1], device)
        where = places[:, reading.columns, None].expand(-1, -1, odds.shape[-1])
        return odds.gather(1, where)

    def _by_prompts(self, reading: Reading) -> Float[Tensor, "batch augmenting"]:
        """By likelihood, of what precedes the first label."""
        rows = [self._rows_of(number, reading) for number in range(len(self.backbones))]
        prompts = [[row.ids[: row.prompt_length] for row in each] for each in rows]
        return prompt_odds(self.backbones, prompts).to(reading.input_ids.device)

    def _rows_of(self, number: int, reading: Reading) -> list[Row]:
        """The texts of a batch with labels, in one model's own tokens."""
        if number - 1 not in self.others:
            assert reading.labels is not None
            return rows_of(reading.input_ids, reading.real, reading.labels)
        rows = own_rows(reading.more, number - 1)
        if rows is None:
            raise CalmError(
                f"{self.backbones[number].name!r} has other tokens than the anchor and finds none "
                "of its own in the batch. Make it from texts: encode."
            )
        return rows

    @override
    def speak(
        self, reading: Reading, log_odds: Float[Tensor, "batch columns augmenting"]
    ) -> Float[Tensor, "batch columns vocabulary"]:
        return pick(reading.logits, choose(log_odds, self.threshold))

    @override
    def speakers(
        self, reading: Reading, log_odds: Float[Tensor, "batch columns augmenting"]
    ) -> Int[Tensor, "batch columns"]:
        return choose(log_odds, self.threshold)

    @override
    def loss(
        self, reading: Reading, log_odds: Float[Tensor, "batch columns augmenting"]
    ) -> Float[Tensor, ""]:
        decided = log_odds[:, 0]
        costs = self._costs(reading)
        if self.training:
            rows = -torch.logsumexp(log_shares(decided).T - costs, dim=0)
        else:
            rows = costs.gather(0, choose(decided, self.threshold)[None])[0]
        return rows.sum() / (reading.targets != IGNORED).sum()

    def _costs(self, reading: Reading) -> Float[Tensor, "models batch"]:
        """What each row's target costs every model, in nats."""
        costs = list(-target_log_probs(reading).sum(-1))
        for index in self.others:
            rows = self._rows_of(1 + index, reading)
            nats = token_nats(self.backbones[1 + index], [row.ids for row in rows])
            costs[1 + index] = torch.stack(
                [row[text.prompt_length :].sum() for row, text in zip(nats, rows, strict=True)]
            ).to(costs[0].device)
        return torch.stack(costs)

    # ------------------------------------------------------------------ saving

    @override
    def saved_composition(self) -> Composition:
        """With the threshold that was found, so that the prompts are not needed again."""
        settings = self.composition.settings()
        found = {"threshold": self.threshold, "share": None, "calibration": None}
        return type(self.composition)(**(settings | found))
