"""Tiny backbones with random weights, of any family: small enough to build one for every check.

The weights are drawn ten times larger than usual. At the usual size the layers of an untrained
model hardly change what passes through them, and a leak of information would be lost in rounding.
"""

import string
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from typing_extensions import override

from calm_lightning.backbone import Backbone, BackboneSource

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma", "qwen2")
"""Families that the conformance suite runs by default. Between them: layers that return tensors and
tuples, rotary and learned positions, grouped and plain heads, tied and untied embeddings."""

OTHER_FAMILIES = (
    "apertus", "arcee", "biogpt", "bloom", "codegen", "cohere", "cohere2", "ctrl", "diffllama",
    "doge", "ernie4_5", "exaone4", "falcon", "gemma2", "gemma3_text", "glm", "glm4", "gpt_oss",
    "gpt_bigcode", "gpt_neo", "gpt_neox_japanese", "gptj", "granite", "granitemoe", "helium",
    "lfm2", "mistral", "mixtral", "mpt", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe",
    "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2_moe", "qwen3", "qwen3_moe",
    "seed_oss", "smollm3", "stablelm", "starcoder2", "vaultgemma", "xglm",
)  # fmt: skip
"""More families that keep every promise; those with a sliding window have it here too."""

REFUSED_FAMILIES = ("falcon_mamba", "mamba", "recurrent_gemma", "rwkv")
"""Families that cannot be composed."""

CONTEXT = 64
SPECIAL_TOKENS = ("<pad>", "<eos>")

_WINDOW = 6
_WITHOUT_DROPOUT = ("diffllama",)
_HEAD_DIM = ("gemma", "gemma2", "qwen3")
_SMALL = {
    "num_key_value_heads": 2,
    "sliding_window": _WINDOW,
    "logit_scale": 1.0,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "dff": 64,
}
"""What these settings are in a tiny model, where a family has them."""
_DROPOUT = ("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout")


def tiny_config(
    family: str,
    width: int = 32,
    layers: int = 4,
    vocab: int = 97,
    scale: float = 0.2,
    context: int = CONTEXT,
) -> PretrainedConfig:
    """The config of a tiny model.

    Args:
        family: A `model_type` of transformers, such as `llama`.
        width: Of the hidden state; a multiple of 8, for four heads of even width.
        layers: Number of decoder layers.
        vocab: Number of token ids.
        scale: Standard deviation of the weights.
        context: Longest sequence, in tokens.

    Raises:
        ValueError: If the width does not fit, or transformers knows no such family.
    """
    if width % 8:
        raise ValueError(f"width={width} must be a multiple of 8: four heads of even width.")
    known = AutoConfig.for_model(family).to_dict()
    # Dropout is on, so that a frozen model left in training mode shows.
    options: dict[str, Any] = dict.fromkeys(_DROPOUT, 0.1)
    if family in _WITHOUT_DROPOUT:
        options |= dict.fromkeys(_DROPOUT, 0.0)
    options |= {name: value for name, value in _SMALL.items() if name in known}
    if known.get("head_dim") or family in _HEAD_DIM:
        options |= {"head_dim": width // 4}
    if "query_pre_attn_scalar" in known:
        options |= {"query_pre_attn_scalar": width // 4}
    if known.get("rotary_dim"):
        options |= {"rotary_dim": 2}
    if "partial_rotary_factor" in str(known):
        options |= {"partial_rotary_factor": 1.0}
    if family == "gpt_neo":
        pairs, rest = divmod(layers, 2)
        kinds = [[["global", "local"], pairs], [["global"], rest]]
        options |= {"attention_types": [kind for kind in kinds if kind[1]]}
    return AutoConfig.for_model(
        family,
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=context,
        use_cache=True,
        initializer_range=scale,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,  # generation never stops early, so lengths can be compared
        **options,
    )


def tiny_backbone(
    family: str = "llama",
    width: int = 32,
    layers: int = 4,
    vocab: int = 97,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    scale: float = 0.2,
    name: str | None = None,
    context: int = CONTEXT,
) -> Backbone:
    """A frozen model with random weights; the same arguments give the same weights.

    Args:
        family: A `model_type` of transformers, such as `llama`; see `FAMILIES`.
        width: Of the hidden state; a multiple of 8.
        layers: Number of decoder layers.
        vocab: Number of token ids.
        seed: Of the weights.
        tokenizer: Given to the backbone as it is; `tiny_tokenizer(vocab)` fits. None: ids only.
        scale: Standard deviation of the weights.
        name: What messages call it.
        context: Longest sequence, in tokens.

    Raises:
        ValueError: As `tiny_config`.
    """
    config = tiny_config(family, width, layers, vocab, scale, context)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        # Biases and norms start at 0 and 1 in every family; move them, or no check sees them.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=scale / 2)
    return Backbone(model, tokenizer, name=name or f"tiny-{family}-{seed}")


class TinySource(BackboneSource):
    """Where a config would name a folder: makes a tiny backbone with its tokenizer in memory.

    Args:
        seed: Of the weights.
        name: What messages call it.
    """

    def __init__(self, seed: int = 0, name: str | None = None) -> None:
        super().__init__(name or f"made-{seed}", seed=seed)

    @override
    def load(self) -> Backbone:
        return tiny_backbone(seed=self.seed, tokenizer=tiny_tokenizer(), name=self.path)


def tiny_tokenizer(vocab: int = 97) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each printable ASCII character.

    Ids 0 and 1 are `<pad>` and `<eos>`; with vocab=97 every printable character has an id.

    Args:
        vocab: Number of ids, from 3 to 102.

    Raises:
        ValueError: If there are not so many characters.
    """
    characters = string.ascii_lowercase + string.digits + string.ascii_uppercase
    characters += string.punctuation + string.whitespace
    tokens = [*SPECIAL_TOKENS, *dict.fromkeys(characters)][:vocab]
    if not len(SPECIAL_TOKENS) < vocab == len(tokens):
        raise ValueError(f"vocab={vocab} must be from 3 to {len(SPECIAL_TOKENS) + len(characters)}")
    # Without an unknown token a character outside the vocabulary is left out.
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    pad, end = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=end,
        clean_up_tokenization_spaces=False,
    )
