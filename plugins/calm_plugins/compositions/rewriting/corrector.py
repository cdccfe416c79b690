"""The corrector: the small model that is trained, decoder-only or encoder and decoder.

Both are asked alike: `encode` makes a batch of sources and targets, the module gives the loss of a
batch, `generate_text` answers sources.
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from typing_extensions import override

from calm_lightning.backbone import Backbone, BackboneSource
from calm_lightning.collate import IGNORED, Row, check_fits, pad_right
from calm_lightning.contracts import CalmError
from calm_lightning.language_model import PlainModel


class EncoderDecoder(nn.Module):
    """A model that reads the source with an encoder and writes the target with a decoder (T5).

    Args:
        model: Any encoder-decoder language model of transformers.
        tokenizer: Its tokenizer.
        name: What messages call it.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.name = name

    @property
    def context(self) -> int | None:
        """Longest source, and longest target, in tokens; None if the model sets no limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    def encode(
        self,
        texts: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        ends: bool | Sequence[bool] = True,
    ) -> dict[str, Tensor]:
        """Sources, and with targets `labels`.

        The first column of `labels` is -100: as everywhere, a target token is one that follows
        another place, and what the first one follows is the decoder's start.

        Raises:
            CalmError: If a source or a target does not fit the model's context.
        """
        rows = self._sources(texts)
        check_fits(rows, self.context, self.name)
        pad = self.tokenizer.pad_token_id or 0
        batch = pad_right(rows, pad)
        del batch["labels"]
        if targets is None:
            return batch
        written = self._targets(targets, ends)
        check_fits(written, self.context, self.name)
        return {**batch, "labels": pad_right(written, pad)["labels"]}

    def fits(
        self,
        texts: Sequence[str],
        targets: Sequence[str] | None = None,
        new_tokens: int = 0,
        *,
        ends: bool | Sequence[bool] = True,
    ) -> list[bool]:
        """Which sources the model's context holds, and with them their targets or so many tokens.

        Args:
            texts: Sources.
            targets: Target of each, if that is to be read too.
            new_tokens: How many tokens are to be written for each, behind the decoder's start.
            ends: Whether the end-of-text token follows each target.
        """
        limit = float("inf") if self.context is None else self.context
        written = [1 + new_tokens] * len(texts)
        if targets is not None:
            written = [len(row.ids) for row in self._targets(targets, ends)]
        pairs = zip(self._sources(texts), written, strict=True)
        return [max(len(row.ids), length) <= limit for row, length in pairs]

    def _sources(self, texts: Sequence[str]) -> list[Row]:
        found = self.tokenizer(list(texts))["input_ids"] if texts else []
        return [Row(ids, len(ids)) for ids in found]

    def _targets(self, targets: Sequence[str], ends: bool | Sequence[bool]) -> list[Row]:
        """What the decoder reads: its start, the target, the end of the text."""
        pad = self.tokenizer.pad_token_id or 0
        flags = [ends] * len(targets) if isinstance(ends, bool) else ends
        return [
            Row([pad, *self._ids_of(target), *([self.tokenizer.eos_token_id] if end else [])], 1)
            for target, end in zip(targets, flags, strict=True)
        ]

    def _ids_of(self, target: str) -> list[int]:
        ids: list[int] = self.tokenizer(text_target=target, add_special_tokens=False)["input_ids"]
        return ids

    @override
    def forward(self, labels: Tensor | None = None, **batch: Any) -> CausalLMOutputWithPast:
        if labels is not None:
            batch["labels"] = labels[:, 1:].contiguous()
        output = self.model(**batch)
        return CausalLMOutputWithPast(loss=output.loss, logits=output.logits)

    def generate(self, **batch_and_options: Any) -> Any:
        """Token ids of the target alone, by transformers' generation options."""
        return self.model.generate(**batch_and_options)

    @torch.no_grad()
    def generate_text(
        self, prompts: Sequence[str], *, stop: Sequence[str] = (), **generation_kwargs: Any
    ) -> list[str]:
        """The target of each source, as text, cut before the first of `stop`.

        It is written to its end before it is cut: T5's tokenizer, for one, cannot write the line
        break at which transformers would be asked to stop.
        """
        device = next(self.model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in self.encode(prompts).items()}
        sequences = self.generate(**batch, **generation_kwargs)
        if not isinstance(sequences, Tensor):
            sequences = sequences.sequences
        texts = self.tokenizer.batch_decode(sequences, skip_special_tokens=True)
        return [cut(text, stop) for text in texts]


Corrector: TypeAlias = PlainModel | EncoderDecoder


def copy_of(backbone: Backbone, fresh: bool) -> PlainModel:
    """A corrector that starts as a copy of a frozen model.

    Args:
        backbone: Stays as it is.
        fresh: Draw new weights for the copy.
    """
    model = _drawn_anew(backbone.model) if fresh else copy.deepcopy(backbone.model)
    name = f"the corrector, made of {backbone.name}"
    return _trained(Backbone(model, backbone.require_tokenizer(), name))


def _drawn_anew(model: PreTrainedModel) -> PreTrainedModel:
    # Not from the run's seed itself: a model with random weights may have been drawn from it.
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = AutoModelForCausalLM.from_config(copy.deepcopy(model.config))
    return drawn.to(model.dtype)


def load_corrector(source: BackboneSource) -> Corrector:
    """A corrector read, or built, from where a source says.

    Weights that are drawn are trained ones, so they begin as every run does: by its own seed.

    Raises:
        CalmError: If there is nothing, it cannot be read, or it is to be quantised.
    """
    if source.quantization is not None:
        raise CalmError(
            f"corrector: quantization={source.quantization}: weights in so few bits cannot be "
            "trained, and the corrector is. Leave quantization out."
        )
    if source.weights == "random":
        source = replace(source, seed=(source.seed + torch.initial_seed()) % 2**63)
    path = os.path.expanduser(source.path)
    options = {"revision": source.revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(path, **options)
        if not config.is_encoder_decoder:
            return _trained(source.load())
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model = _encoder_decoder(source, path, config, options)
    except CalmError:
        raise
    except Exception as error:  # whatever libraries meet in files that they did not expect
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CalmError(f"The corrector {source.path!r} could not be loaded: {reason}") from error
    return EncoderDecoder(model, tokenizer, source.path)


def _encoder_decoder(
    source: BackboneSource, path: str, config: Any, options: dict[str, Any]
) -> PreTrainedModel:
    dtype = "auto" if source.dtype == "auto" else getattr(torch, source.dtype)
    attention = {} if source.attention is None else {"attn_implementation": source.attention}
    if source.weights == "random":
        with torch.random.fork_rng():
            torch.manual_seed(source.seed)
            model = AutoModelForSeq2SeqLM.from_config(config, **attention)
        return model if dtype == "auto" else model.to(dtype)
    return AutoModelForSeq2SeqLM.from_pretrained(
        path, dtype=dtype, device_map=source.device_map, **attention, **options
    )


def _trained(backbone: Backbone) -> PlainModel:
    backbone.model.requires_grad_(True)
    return PlainModel(backbone, save=lambda folder: None, without_adapter=None)


@torch.no_grad()
def log_likelihoods(
    corrector: Corrector, sources: Sequence[str], targets: Sequence[str]
) -> Float[Tensor, " rows"]:
    """Log-probability of each target, with its end, after its source, in nats."""
    device = next(corrector.model.parameters()).device
    batch = {name: t.to(device) for name, t in corrector.encode(sources, targets).items()}
    wanted = batch["labels"][:, 1:]
    logits = corrector(**batch).logits[:, : wanted.shape[1]]  # a decoder's last one says nothing
    log_probs = logits.float().log_softmax(-1)
    each = log_probs.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    return each.masked_fill(wanted == IGNORED, 0.0).sum(-1)


def cut(text: str, stop: Sequence[str]) -> str:
    """A text as far as the first of some marks."""
    found = [at for mark in stop if (at := text.find(mark)) >= 0]
    return text[: min(found)] if found else text
