"""A language model of ours as lm-evaluation-harness asks it.

The harness's own Hugging Face adapter does the work (truncation, rolling windows, stop words), so
that scores are comparable with published ones. Importing this module needs the package lm_eval.
"""

import copy
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from typing_extensions import override

from calm_lightning.composed import ComposedModel
from calm_lightning.language_model import TextModel


class HarnessModel(HFLM):
    """What lm_eval evaluates.

    Args:
        model: Any language model of ours.
        batch_size: Requests that are answered together.
        max_length: Longest text in tokens, prompt and answer; None is what lm_eval finds.
    """

    def __init__(self, model: TextModel, batch_size: int, max_length: int | None) -> None:
        self.language_model = model
        self._answer_length: int | None = None
        super().__init__(
            pretrained=_AsTransformers(model, self),
            backend="causal",
            # lm_eval sets a padding token and changes the side.
            tokenizer=copy.deepcopy(model.anchor_backbone.require_tokenizer()),
            batch_size=batch_size,
            max_length=max_length,
        )

    @override
    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        model = self.language_model
        if not (isinstance(model, ComposedModel) and model.augmenting_sees == "prompt"):
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        # The augmenting models must not see the answer, so every request needs its own boundary.
        answers = []
        for request in requests:
            self._answer_length = len(request[2])
            answers += super()._loglikelihood_tokens([request], True, 1)
        self._answer_length = None
        return answers

    @override
    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Tensor:
        mask = generation_kwargs.pop("attention_mask")
        if generation_kwargs.setdefault("temperature", 0.0) == 0.0:  # as lm_eval has it
            generation_kwargs.setdefault("do_sample", False)
            if not generation_kwargs["do_sample"]:
                del generation_kwargs["temperature"]
        answers = self.language_model.answer_ids(
            {"input_ids": context, "attention_mask": mask},
            stop,
            max_new_tokens=max_length - context.shape[1],
            pad_token_id=self.tokenizer.pad_token_id,
            **{"use_cache": True, **generation_kwargs},
        )
        rows = [torch.tensor(answer, device=context.device) for answer in answers]
        fill = self.tokenizer.pad_token_id
        new = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
        return torch.cat([context, new], dim=1)

    def prompt_mask(self, input_ids: Tensor) -> Tensor | None:
        """True at tokens of the prompt, where a model has to know; the last token is cut off."""
        if self._answer_length is None:
            return None
        length = input_ids.shape[1] + 1 - self._answer_length
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return (places < length).expand(input_ids.shape)


class _AsTransformers:
    """The little that lm_eval uses of a Hugging Face model."""

    def __init__(self, model: TextModel, asker: HarnessModel) -> None:
        self.language_model, self.asker = model, asker
        self.config = model.anchor_backbone.model.config
        self.device = next(model.anchor_backbone.model.parameters()).device

    def __call__(self, input_ids: Tensor) -> Any:
        more = {}
        if (mask := self.asker.prompt_mask(input_ids)) is not None:
            more["prompt_mask"] = mask
        return self.language_model(input_ids=input_ids, **more)
