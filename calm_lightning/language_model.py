"""What every language model of ours can do with texts, and the plainest of them: one backbone."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers import StoppingCriteriaList
from transformers.modeling_outputs import CausalLMOutputWithPast
from typing_extensions import override

from calm_lightning.alignment import positions_of
from calm_lightning.backbone import Backbone
from calm_lightning.collate import IGNORED, Row, check_fits, pad_left, pad_right, tokenize
from calm_lightning.contracts import CalmError, LanguageModel
from calm_lightning.drafting import drafted_by
from calm_lightning.finished_rows import answers_of, can_leave, end_tokens
from calm_lightning.packing import packed
from calm_lightning.shared_prompts import read_once
from calm_lightning.stopping import StopAtText, ending_tokens


class TextModel(LanguageModel):
    """A language model that reads and writes by its anchor's tokenizer.

    Subclasses provide `anchor_backbone`, `forward` and `generate`.
    """

    reads_prompts_ahead: ClassVar[bool] = False
    """Whether `generate` goes on from a cache that `forward` has filled, so that a prompt of which
    several samples are wanted is read once."""

    packs: ClassVar[bool] = False
    """Whether `forward` keeps the examples of one row apart, as `encode_packed` puts them there."""

    @property
    @abstractmethod
    def anchor_backbone(self) -> Backbone:
        """The backbone whose tokenizer reads and writes."""

    @property
    def readers(self) -> tuple[Backbone, ...]:
        """Every backbone that reads the anchor's tokens, so that they must fit its context."""
        return (self.anchor_backbone,)

    @property
    def trained_through(self) -> tuple[Backbone, ...]:
        """The backbones that run in training, whose layers can be compiled."""
        return (self.anchor_backbone, *self.frozen_backbones)

    @property
    def mixes_rows(self) -> bool:
        """Whether what a row is told depends on the rows beside it, so that none may leave."""
        return False

    def own_state(self) -> dict[str, Tensor]:
        """What the composition adds to its backbones, by name: what is saved and loaded."""
        return dict(self.trainable_parameters())

    @property
    def pad_id(self) -> int:
        """Token id that fills rows up; masked everywhere, so any id serves."""
        tokenizer = self.anchor_backbone.tokenizer
        for attribute in ("pad_token_id", "eos_token_id"):
            token = getattr(tokenizer, attribute, None)
            if token is not None:
                return int(token)
        return 0

    @override
    def encode(
        self,
        texts: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        ends: bool | Sequence[bool] = True,
    ) -> dict[str, Tensor]:
        rows = self._fitting_rows(texts, targets, ends)
        if targets is None and not all(row.ids for row in rows):
            raise CalmError(
                "An empty prompt cannot be continued: the tokenizer has no token to start a text "
                "with. Give at least one character."
            )
        return (pad_left if targets is None else pad_right)(rows, self.pad_id)

    def encode_packed(
        self,
        texts: Sequence[str],
        targets: Sequence[str],
        *,
        ends: bool | Sequence[bool] = True,
        length: int,
    ) -> dict[str, Tensor]:
        """Training examples side by side in rows, for models that `packs`.

        Args:
            texts: Prompts.
            targets: What should follow each.
            ends: Whether the end-of-text token follows each target.
            length: Of the longest row of several examples, in tokens.

        Raises:
            CalmError: If an example does not fit the model's context.
        """
        return packed(self._fitting_rows(texts, targets, ends), length, self.pad_id)

    def _fitting_rows(
        self, texts: Sequence[str], targets: Sequence[str] | None, ends: bool | Sequence[bool]
    ) -> list[Row]:
        rows = tokenize(self.anchor_backbone.require_tokenizer(), texts, targets, ends)
        for backbone in self.readers:
            check_fits(rows, backbone.context, backbone.name)
        return rows

    def fits(
        self,
        texts: Sequence[str],
        targets: Sequence[str] | None = None,
        new_tokens: int = 0,
        *,
        ends: bool | Sequence[bool] = True,
    ) -> list[bool]:
        """Which texts every reader's context holds.

        Args:
            texts: Prompts.
            targets: What follows each, if that is read too.
            new_tokens: How many tokens are to be written after each.
            ends: Whether the end-of-text token follows each target.
        """
        contexts = [reader.context for reader in self.readers if reader.context is not None]
        rows = tokenize(self.anchor_backbone.require_tokenizer(), texts, targets, ends)
        limit = min(contexts, default=float("inf"))
        return [len(row.ids) + new_tokens <= limit for row in rows]

    @override
    @torch.no_grad()
    def generate_text(
        self,
        prompts: Sequence[str],
        *,
        stop: Sequence[str] = (),
        draft: int | None = None,
        **generation_kwargs: Any,
    ) -> list[str]:
        """As `LanguageModel` says it.

        Args:
            prompts: What to continue.
            stop: Texts at which a continuation ends, itself left out.
            draft: Number of an augmenting model that proposes tokens (see
                `calm_lightning.drafting`); prompts are then answered one by one.
            generation_kwargs: As `generate` takes them.
        """
        if draft is None:
            return self._continue(self.encode(prompts), stop, **generation_kwargs)
        options = drafted_by(draft, self, generation_kwargs)
        alone = (self.encode([prompt]) for prompt in prompts)
        answers = (self._continue(row, stop, **generation_kwargs, **options) for row in alone)
        return [text for (text,) in answers]

    @torch.no_grad()
    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        stop: Sequence[str] = (),
        **generation_kwargs: Any,
    ) -> str:
        """The model's answer to a conversation, by its anchor's chat template.

        Nothing is remembered: to go on, append the answer and the next question to `messages` and
        call again.

        Args:
            messages: `{"role": "user", "content": "..."}`, ..., the first one first.
            stop: Texts at which the answer ends, itself left out.
            generation_kwargs: As `generate` takes them.

        Raises:
            CalmError: If the anchor has no chat template, the template refuses the messages, or
                the conversation does not fit the context.
        """
        (answer,) = self._continue(self.encode_chat(messages), stop, **generation_kwargs)
        return answer

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Tensor]:
        """A conversation as `generate` takes it, ready for the model's answer.

        Raises:
            CalmError: As `chat`.
        """
        anchor = self.anchor_backbone
        tokenizer = anchor.require_tokenizer()
        if getattr(tokenizer, "chat_template", None) is None:
            raise CalmError(
                f"The tokenizer of the anchor {anchor.name!r} has no chat template, so it is not "
                "known how a conversation is written for it. Ask with plain prompts, or give the "
                "tokenizer a `chat_template`."
            )
        try:
            ids: list[int] = tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True
            )["input_ids"]
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise CalmError(
                f"The chat template of {anchor.name!r} refuses these messages: {error}"
            ) from error
        rows = [Row(ids, len(ids))]
        for backbone in self.readers:
            check_fits(rows, backbone.context, backbone.name)
        return pad_left(rows, self.pad_id)

    def _continue(
        self, batch: dict[str, Tensor], stop: Sequence[str], **generation_kwargs: Any
    ) -> list[str]:
        """What follows each row of a batch of prompts, as text."""
        tokenizer = self.anchor_backbone.require_tokenizer()
        new = generation_kwargs.get("max_new_tokens")
        if new is not None:
            rows = [Row(ids, len(ids)) for ids in _without_padding(batch)]
            for backbone in self.readers:
                check_fits(rows, backbone.context, backbone.name, new)
        answers = self.answer_ids(batch, stop, **generation_kwargs)
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [_cut(text, stop) for text in texts]

    @torch.no_grad()
    def answer_ids(
        self, batch: Mapping[str, Tensor], stop: Sequence[str] = (), **generation_kwargs: Any
    ) -> list[list[int]]:
        """The new tokens of each row as far as its end token; others may follow a stop text.

        Args:
            batch: `input_ids` and `attention_mask`, [rows, columns], padded on the left.
            stop: Texts that end an answer; special tokens may be among them.
            generation_kwargs: As `generate` takes them.
        """
        tokenizer = self.anchor_backbone.require_tokenizer()
        device = next(self.anchor_backbone.model.parameters()).device
        options: dict[str, Any] = {"pad_token_id": self.pad_id, **generation_kwargs}
        last, stop = ending_tokens(tokenizer, stop)
        last = list(dict.fromkeys([*end_tokens(self, options), *last]))
        if last:
            options["eos_token_id"] = last
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        prompt = batch["input_ids"].shape[1]
        read: dict[str, Any] = {}
        if self.reads_prompts_ahead:
            read = read_once(self, self.anchor_backbone.model.forward, batch, options)
            if can_leave(self, options):
                cache = read.get("past_key_values")
                return _ended(answers_of(self, batch, options, stop, cache), last)
        if stop:
            ends = StopAtText(tokenizer, stop, prompt)
            options["stopping_criteria"] = StoppingCriteriaList([ends])
        sequences = self.generate(**batch, **options, **read)
        if not isinstance(sequences, Tensor):
            sequences = sequences.sequences
        return _ended(sequences[:, prompt:].tolist(), last)

    @override
    @torch.no_grad()
    def loglikelihood(self, prompt: str, target: str) -> float:
        device = next(self.anchor_backbone.model.parameters()).device
        batch = self.encode([prompt], [target], ends=False)
        count = int((batch["labels"][:, 1:] != IGNORED).sum())
        loss = self(**{name: t.to(device) for name, t in batch.items()}).loss
        return -float(loss) * count


class PlainModel(nn.Module, TextModel):
    """One Hugging Face model as a `LanguageModel`: a backbone alone, trained whole, or adapted.

    Args:
        backbone: The model and its tokenizer.
        save: How to write the trained part into a folder.
        without_adapter: Context in which `backbone.model` answers as the untouched anchor; None if
            it cannot (because the model itself is trained).
    """

    reads_prompts_ahead = True
    packs = True

    def __init__(
        self,
        backbone: Backbone,
        save: Callable[[Path], None],
        without_adapter: Callable[[], AbstractContextManager[Any]] | None = nullcontext,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.model = backbone.model
        self._save = save
        self._without_adapter = without_adapter

    @property
    @override
    def anchor_backbone(self) -> Backbone:
        return self.backbone

    @property
    @override
    def frozen_backbones(self) -> tuple[Backbone, ...]:
        frozen = not any(p.requires_grad for p in self.model.parameters())
        return (self.backbone,) if frozen else ()

    @override
    def forward(self, labels: Tensor | None = None, **batch: Any) -> CausalLMOutputWithPast:
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if ids is not None and mask is not None and self.backbone.takes_positions:
            # Left to itself a model counts padding as positions.
            past = mask.shape[1] - ids.shape[1]
            positions = positions_of(mask, len(ids), past, ids.shape[1], ids.device)
            batch = {"position_ids": positions, **batch}
        if labels is not None:
            batch = {"use_cache": False, **batch}
        output = self.model(**batch)
        return CausalLMOutputWithPast(  # some families have an output class of their own
            loss=None if labels is None else next_token_loss(output.logits, labels),
            logits=output.logits,
            past_key_values=getattr(output, "past_key_values", None),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @override
    def generate(self, **batch_and_options: Any) -> Any:
        return self.model.generate(**batch_and_options)

    @contextmanager
    @override
    def anchor_only(self) -> Iterator[None]:
        if self._without_adapter is None:
            raise CalmError("The anchor itself was trained, so it no longer exists on its own.")
        with self._without_adapter():
            yield

    @override
    def train(self, mode: bool = True) -> "PlainModel":
        super().train(mode)
        if self.frozen_backbones:
            self.model.eval()
        return self

    @override
    def save_pretrained(
        self, save_directory: str | Path, full: bool = False, **kwargs: Any
    ) -> None:
        """Write what was trained; with `full`, the weights that it was trained beside too."""
        from calm_lightning.checkpoint import save_pretrained

        save_pretrained(self, self._save, save_directory, full, **kwargs)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each labelled token given what precedes it, in nats.

    Args:
        logits: [batch, seq, vocabulary].
        labels: [batch, seq]; -100 is not counted.
    """
    targets = labels[:, 1:]
    rows = targets != IGNORED
    return nn.functional.cross_entropy(logits[:, :-1][rows].float(), targets[rows])


def _without_padding(batch: dict[str, Tensor]) -> list[list[int]]:
    """The ids of every prompt of a batch."""
    pairs = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    return [ids[real].tolist() for ids, real in pairs]


def _ended(answers: Sequence[list[int]], last: Sequence[int]) -> list[list[int]]:
    """Answers without what fills their rows up behind the first of the tokens that end them."""
    ends = (next((n for n, t in enumerate(ids, 1) if t in last), len(ids)) for ids in answers)
    return [ids[:end] for ids, end in zip(answers, ends, strict=True)]


def _cut(text: str, stop: Sequence[str]) -> str:
    found = [at for mark in stop if (at := text.find(mark)) >= 0]
    return text[: min(found)] if found else text
