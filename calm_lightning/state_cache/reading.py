"""Reading a batch through a store: what is known is looked up, the rest computed and kept.

States are kept without padding, under a hash of the token ids alone: a frozen decoder makes of a
text what it makes of it, whoever stands beside it in the batch and wherever padding lies. Only
rounding differs, as it does between any two batches. Models of which that is not true, because
they scale positions by the longest text of a batch, are refused.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from calm_lightning.alignment import positions_of
from calm_lightning.backbone import Backbone
from calm_lightning.contracts import CalmError
from calm_lightning.state_cache.folder import CacheFolder
from calm_lightning.state_cache.frames import KEY_BYTES
from calm_lightning.state_cache.store import StateStore

Read = Callable[[Tensor, Tensor, Tensor], dict[int, Tensor]]
"""From ids, mask and positions, all [batch, seq], to the states of each layer."""

_NAMES_ONLY = ("_name_or_path", "transformers_version", "architectures")
"""Entries of a config that decide nothing (the version is that of whoever wrote the config)."""

_BY_THE_LONGEST_TEXT = {"dynamic", "longrope"}
"""Types of rotary positions that transformers computes anew for the longest text of a batch."""


class KeptStates:
    """The states of one frozen model in certain layers.

    Args:
        backbone: The model.
        layers: Numbers of the layers.
        read: Computes them.
        cache: Of the store.
        precision: In which the model computes, beside its own type.

    Raises:
        CalmError: If the folder cannot be used, or a text has other states beside other texts.
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: Iterable[int],
        read: Read,
        cache: CacheFolder,
        precision: str = "",
    ) -> None:
        _check_alone_in_a_batch(backbone)
        self.backbone = backbone
        self.layers = sorted(layers)
        self._read = read
        about = _about(backbone) | {"layers": self.layers, "precision": precision}
        self.store = StateStore(cache, about, len(self.layers), backbone.width)

    def __call__(
        self, ids: Int[Tensor, "batch seq"], mask: Tensor | None = None
    ) -> dict[int, Tensor]:
        """The states [batch, seq, width] of each layer, in the store's type; zero at padding.

        Args:
            ids: Texts, at the beginning of nothing: no cache precedes them.
            mask: [batch, seq], 0 at padding; None without.
        """
        here = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        here_cpu = here.cpu()
        texts = [row[seen] for row, seen in zip(ids.cpu(), here_cpu, strict=True)]
        keys = [_key(text) for text in texts]
        states = {key: self.store.get(key) for key in keys}
        missing = {
            key: text
            for key, text in zip(keys, texts, strict=True)
            if states[key] is None and len(text)
        }
        if missing:
            states |= self._compute(missing, ids.device)
        shape = len(self.layers), *ids.shape, self.backbone.width
        found = torch.zeros(shape, dtype=self.store.dtype, device=ids.device)
        for row, key in enumerate(keys):
            if (own := states[key]) is not None:
                found[:, row, here_cpu[row]] = own.to(ids.device)
        return dict(zip(self.layers, found, strict=True))

    def _compute(self, missing: dict[bytes, Tensor], device: torch.device) -> dict[bytes, Tensor]:
        texts = list(missing.values())
        ids = pad_sequence(texts, batch_first=True).to(device)
        mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True).to(device)
        batch, width = ids.shape
        read = self._read(ids, mask, positions_of(mask, batch, 0, width, device))
        stacked = torch.stack([read[layer] for layer in self.layers])
        states = stacked.to(self.store.dtype)
        if self.store.dtype == torch.float16 and not bool(states.isfinite().all()):
            raise CalmError(
                f"States of {self.backbone.name!r} are as large as {stacked.abs().max():.3g}, more "
                "than float16 holds (65,504). Take cache_states.dtype bfloat16 or float32."
            )
        states = states.cpu()
        rows = {key: states[:, row, : len(text)] for row, (key, text) in enumerate(missing.items())}
        self.store.put(rows)
        return rows


def _key(text: Int[Tensor, " tokens"]) -> bytes:
    return hashlib.blake2b(text.numpy().astype("<i8").tobytes(), digest_size=KEY_BYTES).digest()


def _check_alone_in_a_batch(backbone: Backbone) -> None:
    """Refuse a model that makes something else of a text beside a longer one."""
    said = getattr(backbone.config, "rope_parameters", None) or {}
    # Either of all layers, or by the kind of layer
    each = [part for part in (said, *said.values()) if isinstance(part, dict)]
    found = sorted(_BY_THE_LONGEST_TEXT & {part.get("rope_type") for part in each})
    if found:
        raise CalmError(
            f"cache_states: states of {backbone.name!r} cannot be kept. It scales positions by the "
            f"longest text of a batch (rope_type={found[0]!r}), so a text has other states beside "
            "other texts. Leave model.cache_states out, or take another model; if this is the "
            "anchor, cache_states.anchor=false is enough."
        )


def _about(backbone: Backbone) -> dict[str, Any]:
    """All that decides what a model makes of a text.

    The model's own code, which is that of transformers, is among it. torch is not: its operators
    mean the same in every version and on every device, and rounding, which is all that differs,
    differs between two batches as well.
    """
    config = {k: v for k, v in backbone.config.to_dict().items() if k not in _NAMES_ONLY}
    said = json.dumps(config, sort_keys=True, default=str)
    return {
        "model": type(backbone.model).__name__,
        "fingerprint": backbone.fingerprint(exact=True),
        "config": hashlib.sha256(said.encode()).hexdigest(),
        "transformers": transformers.__version__,
    }
