"""A frozen language model with its tokenizer: the thing that is composed and never changed."""

import hashlib
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from calm_lightning.contracts import CalmError
from calm_lightning.plain_data import parse_json
from calm_lightning.quantization import Quantization, is_quantised, quantization_config

DType = Literal["auto", "float32", "float16", "bfloat16", "float64"]

_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


@dataclass
class BackboneSource:
    """Where a backbone comes from.

    Attributes:
        path: A folder in Hugging Face format, or a name on the hub.
        weights: `pretrained` reads the weights; `random` builds the model from its config with
            fresh weights: a control (PAPERS: "random augmenting model"), or a model to be trained.
        dtype: Of the weights in memory; `auto` keeps that of the checkpoint.
        seed: Of random weights.
        revision: Branch, tag or commit on the hub.
        device_map: As `transformers` takes it; null keeps the model where the trainer puts it.
        attention: Attention implementation (`sdpa`, `eager`, ...); null is the library's choice.
        quantization: Keep the matrices of linear layers in 8 or 4 bits: `torchao_int8` (runs
            anywhere), `bitsandbytes_int8` (made for GPUs) or `bitsandbytes_nf4` (needs one). Null
            keeps them as the checkpoint has them.
    """

    path: str
    weights: Literal["pretrained", "random"] = "pretrained"
    dtype: DType = "float32"
    seed: int = 0
    revision: str | None = None
    device_map: str | None = None
    attention: str | None = None
    quantization: Quantization | None = None

    def load(self) -> "Backbone":
        """Read or build the model.

        Raises:
            CalmError: If there is no such folder or name, the folder lacks config or weights, or
                the weights cannot be quantised as asked.
        """
        self.path = os.path.expanduser(self.path)
        options: dict[str, Any] = {"trust_remote_code": False}
        if self.revision is not None:
            options["revision"] = self.revision
        self._check_folder()
        try:
            config = AutoConfig.from_pretrained(self.path, **options)
            layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
            if isinstance(layers, int) and layers < 1:
                raise CalmError(f"{self.path!r} has no layers: num_hidden_layers={layers}.")
            tokenizer = self._load_tokenizer(options)
            if self.attention is not None:
                options["attn_implementation"] = self.attention
            model = self._load_model(config, options)
        except CalmError:
            raise
        except Exception as error:  # whatever libraries meet in files that they did not expect
            raise CalmError(
                f"The backbone {self.path!r} could not be loaded: {_first_line(error)}\n"
                "Expected a folder with config.json, *.safetensors and a tokenizer, or the name of "
                "such a model on the Hugging Face hub (which needs a network, or a cached copy)."
            ) from error
        return Backbone(model, tokenizer, name=self.path, source=self)

    def _check_folder(self) -> None:
        folder = Path(self.path)
        if not folder.is_dir():
            # A hub name is `model` or `owner/model`; anything else was meant as a folder.
            if folder.exists() or self.path.startswith((".", "/", "~")) or self.path.count("/") > 1:
                what = "is a file, not a folder" if folder.exists() else "does not exist"
                raise CalmError(
                    f"Backbone folder {self.path!r} {what}. Expected a folder in Hugging Face "
                    "format (config.json, *.safetensors, tokenizer.json)."
                )
            return
        if not (folder / "config.json").is_file():
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise CalmError(f"Backbone folder {self.path!r} has no config.json; it holds {found}.")
        if self.weights == "pretrained" and not any(
            next(folder.glob(pattern), None) for pattern in _WEIGHT_FILES
        ):
            raise CalmError(
                f"Backbone folder {self.path!r} holds no weights (*.safetensors). Put them there, "
                "or ask for fresh ones with `weights: random`."
            )
        for index in folder.glob("*.index.json"):
            _refuse_paths_out(index)

    def _load_tokenizer(self, options: dict[str, Any]) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.path, **options)

    def _load_model(self, config: Any, options: dict[str, Any]) -> PreTrainedModel:
        if self.quantization is not None:
            options["quantization_config"] = self._quantizer(config, self.quantization)
        if self.weights == "random":
            if not 0 <= self.seed < 2**63:
                raise CalmError(f"seed={self.seed} of {self.path!r} must be from 0 to 2^63 - 1.")
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                model = AutoModelForCausalLM.from_config(config, **options)
            return model if self.dtype == "auto" else model.to(getattr(torch, self.dtype))
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                self.path,
                dtype=self.dtype,
                device_map=self.device_map,
                output_loading_info=True,
                **options,
            )
        except RuntimeError as error:
            if self.quantization is None:
                raise
            raise CalmError(
                f"{self.path!r} could not be loaded with quantization={self.quantization}: "
                f"{_first_line(error)}\nbitsandbytes is made for GPUs; torchao_int8 runs on any "
                "processor."
            ) from error
        missing = sorted(report["missing_keys"])
        if missing:
            raise CalmError(
                f"The weights in {self.path!r} lack {len(missing)} tensors that its config.json "
                f"asks for, {missing[0]!r} among them; they would stay random."
            )
        if self.quantization is not None and not any(map(is_quantised, model.parameters())):
            raise CalmError(
                f"quantization={self.quantization} found nothing to quantise in {self.path!r}: "
                f"{type(model).__name__} has no plain linear layers. Leave it out, or take "
                "another quantiser."
            )
        return model

    def _quantizer(self, config: Any, name: Quantization) -> Any:
        if self.weights == "random":
            raise CalmError(
                f"quantization={name}: weights are quantised while they are read, so "
                f"`weights: random` of {self.path!r} cannot be. Leave quantization out."
            )
        if (found := getattr(config, "quantization_config", None)) is not None:
            kind = found.get("quant_method") if isinstance(found, dict) else found.quant_method
            raise CalmError(
                f"The weights in {self.path!r} are quantised already ({kind}), so they cannot be "
                f"by {name}. Leave quantization out: they are taken as they are."
            )
        dtype = config.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        on_cpu = self.device_map == "cpu" or not torch.accelerator.is_available()
        return quantization_config(name, dtype or torch.float32, on_cpu)


class Backbone:
    """A language model that never learns.

    Args:
        model: Any decoder-only Hugging Face model with a language-model head. It is frozen and put
            into eval mode in place.
        tokenizer: Its tokenizer; None where only token ids are used.
        name: What messages and saved models call it.
        source: Where it was loaded from; None for a model made in memory.

    Raises:
        CalmError: If the model's decoder layers cannot be found.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        name: str | None = None,
        source: BackboneSource | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or model.name_or_path or f"{type(model).__name__} in memory"
        self.source = source
        self.layers = find_layers(model)
        self._fingerprint: str | None = None
        self.freeze()

    def freeze(self) -> None:
        """Make every weight untrainable and switch dropout off."""
        self.model.requires_grad_(False)
        self.model.eval()

    @property
    def config(self) -> Any:
        """The configuration of the text decoder."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers (N in the paper)."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """Width of the hidden state (D in the paper)."""
        return int(self.config.hidden_size)

    @property
    def num_heads(self) -> int:
        """Number of attention heads (N_H in the paper)."""
        return int(self.config.num_attention_heads)

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens; None if the model sets no limit."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return None if limit is None or limit <= 0 else int(limit)

    @property
    def has_window(self) -> bool:
        """Whether some of its layers read the newest tokens only."""
        names = ("sliding_window", "window_size", "attention_chunk_size", "local_attention")
        return any(getattr(self.config, name, None) for name in names)

    @property
    def decoder(self) -> nn.Module:
        """The stack of layers without the vocabulary head."""
        return self.model.get_decoder()

    @cached_property
    def head_is_plain(self) -> bool:
        """Whether the logits are what the vocabulary head gives, and nothing is done to them after.

        Some families scale or cap them. The model is asked: it reads one token.
        """
        given: list[Tensor] = []
        head = self.model.get_output_embeddings()
        if head is None:
            return False
        device = self.model.get_input_embeddings().weight.device
        hook = head.register_forward_hook(lambda module, args, output: given.append(output))
        try:
            with torch.inference_mode(False), torch.no_grad():  # which keeps no versions
                ids = torch.zeros(1, 1, dtype=torch.long, device=device)
                said = self.model(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        return len(given) == 1 and said is given[0] and said._version == 0

    def require_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            CalmError: If this backbone was given without one.
        """
        if self.tokenizer is None:
            raise CalmError(
                f"The backbone {self.name!r} has no tokenizer, so it takes token ids only. For "
                "texts, give one: Backbone(model, tokenizer)."
            )
        return self.tokenizer

    @cached_property
    def takes_positions(self) -> bool:
        """Whether the decoder is told positions; others count columns."""
        decoder = type(self.decoder)  # libraries that offload put another forward on the object
        return "position_ids" in inspect.signature(decoder.forward).parameters

    @property
    def is_shared_out(self) -> bool:
        """Whether several processes hold parts of its weights."""
        return any(isinstance(weight, DTensor) for weight in self.model.parameters())

    def weights(self) -> dict[str, Tensor]:
        """The model's own weights and buffers, by name."""
        return dict(self.model.state_dict())

    def fingerprint(self, exact: bool = False) -> str:
        """SHA-256 of the weights, as hexadecimal digits.

        Args:
            exact: Hash the weights as they are in memory. Otherwise each is rounded to bfloat16
                first, so that one checkpoint has one fingerprint in whichever dtype it is loaded
                (except float16, which rounds in other places). Of quantised weights the numbers
                and the scales are hashed; a checkpoint has another fingerprint with every
                quantiser and, because it is rounded before, with every dtype.
        """
        if self._fingerprint is not None and not exact:
            return self._fingerprint
        digest = hashlib.sha256()
        for name, weight in sorted(self.weights().items()):
            for part, tensor in _parts(name, weight):
                digest.update(f"{part}{tuple(tensor.shape)}".encode())
                digest.update(_bytes_of(tensor, exact))
        return digest.hexdigest()

    def remember_fingerprint(self) -> None:
        """Hash the weights now; for processes that will hold only a part of each.

        With `exact` a process hashes its own parts from then on.
        """
        self._fingerprint = self.fingerprint()

    def tokenizer_fingerprint(self) -> str | None:
        """SHA-256 of the tokenizer, as hexadecimal digits; None without one."""
        if self.tokenizer is None:
            return None
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        said = backend.to_str() if backend else repr(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(said.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, {self.num_layers} layers of width {self.width})"


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of any Hugging Face causal language model.

    They are the one `ModuleList` directly inside the decoder that has as many entries as the
    config says; no family is known by name.

    Raises:
        CalmError: If there is no such list, or more than one.
    """
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if decoder is None:
        raise CalmError(f"{type(model).__name__} exposes no decoder (`get_decoder`).")
    found = [
        child
        for child in decoder.children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if len(found) != 1:
        raise CalmError(
            f"Cannot tell the decoder layers of {type(model).__name__}: expected one list of "
            f"{count} layers in its decoder, found {len(found)}. Only decoder-only models that "
            "expose their layers can be composed."
        )
    return found[0]


def _parts(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a weight is made of; a quantised one has several."""
    if isinstance(weight, DTensor):
        weight = weight.to_local()  # the part of this process
    if not is_traceable_wrapper_subclass(weight):
        yield name, weight
        return
    inner, _ = weight.__tensor_flatten__()
    for attribute in inner:
        yield from _parts(f"{name}.{attribute}", getattr(weight, attribute))


def _bytes_of(weight: Tensor, exact: bool) -> bytes:
    weight = weight.detach().cpu().contiguous()
    if weight.is_floating_point() and not exact:
        weight = weight.to(torch.bfloat16)
    return weight.flatten().view(torch.uint8).numpy().tobytes()


def _refuse_paths_out(index: Path) -> None:
    """Refuse a list of weight files that names others than those beside it.

    Raises:
        CalmError: With the first of them; or if it is no such list.
    """
    try:
        named = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
        outside = sorted(name for name in named if Path(name).name != name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CalmError(f"{index} does not say in which file each weight is: {error!r}") from None
    if outside:
        raise CalmError(
            f"{index}: the weights should be beside it, but {outside[0]!r} leads out of the "
            "folder. Nothing was read from there."
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
