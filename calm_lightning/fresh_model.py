"""The beginning of a small model: a tokenizer of a task's training texts, and a config beside it.

    python -m calm_lightning.fresh_model FOLDER --texts CONFIG... [--vocabulary N] [--width N] ...

Each CONFIG is one of `calm fit`, of which only `data` is read. FOLDER then is a model of the Llama
family without weights: name it in a config with `weights: random`, and train it whole (`Single`
with `train: true`). Two models that are to share a tokenizer: give the configs of both, and for the
second one `--like` the first.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerFast as FastTokenizer

from calm_lightning.contracts import CalmError, Task
from calm_lightning.discovery import load_plugins
from calm_lightning.plain_data import guard_jsonargparse, parse_yaml, refuse_hidden_bombs

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
_HEAD = 32  # width of an attention head


def train_tokenizer(texts: Iterable[str], size: int) -> FastTokenizer:
    """Byte-level byte-pair encoding: no text is unknown to it.

    Args:
        texts: What its pieces are frequent in.
        size: Of the vocabulary, at most.

    Raises:
        CalmError: If the size does not hold all bytes and the special tokens.
    """
    least = len(pre_tokenizers.ByteLevel.alphabet()) + 3
    if size < least:
        raise CalmError(f"--vocabulary must be at least {least}, for all bytes: got {size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return FastTokenizer(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def texts_of(config: Path) -> Iterator[str]:
    """The training texts of a config's task, prompts with their targets.

    Raises:
        CalmError: If the file or its `data` cannot be read.
    """
    try:
        data = parse_yaml(config.read_text(encoding="utf-8"))["data"]
        refuse_hidden_bombs(data)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise CalmError(f"{config}: no `data` can be read from it ({error!r}).") from None
    load_plugins()  # so that the data can be named by its class alone
    guard_jsonargparse()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Task, "data")
    try:
        task: Task = parser.instantiate(parser.parse_object({"data": data})).data
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise CalmError(f"{config}: its `data` is none: {error}") from None
    task.prepare_data()
    return (example.prompt + example.target for example in task.train_examples())


def write_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    width: int,
    layers: int,
    context: int,
) -> None:
    """Write tokenizer and config of a model that has no weights yet.

    Args:
        folder: Where to; must not hold a model.
        tokenizer: With the three special tokens.
        width: Of the states; a multiple of 32.
        layers: How many.
        context: Most tokens of a text.

    Raises:
        CalmError: If the folder holds a model, or a size is impossible.
    """
    if (folder / "config.json").exists():
        raise CalmError(f"{folder} already holds a model. Name another folder, or move it away.")
    if width < _HEAD or width % _HEAD or layers < 1 or context < 1:
        raise CalmError(
            f"--width must be a multiple of {_HEAD}, --layers and --context at least 1: got "
            f"{width}, {layers} and {context}."
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // _HEAD,
        max_position_embeddings=context,
        initializer_range=0.04,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Begin a small model from nothing.")
    add = parser.add_argument
    add("folder", type=Path, help="where the model will be")
    tokenizer_of = parser.add_mutually_exclusive_group(required=True)
    tokenizer_of.add_argument(
        "--texts", type=Path, nargs="+", help="configs of `calm fit`, whose data the tokenizer fits"
    )
    tokenizer_of.add_argument("--like", type=Path, help="take the tokenizer of this model's folder")
    add("--vocabulary", type=int, default=4000, help="tokens, at most (default: 4000)")
    add("--width", type=int, default=192, help="of the states (default: 192)")
    add("--layers", type=int, default=4, help="(default: 4)")
    add("--context", type=int, default=256, help="longest text in tokens (default: 256)")
    said = parser.parse_args()
    try:
        if said.like is not None:
            tokenizer = AutoTokenizer.from_pretrained(said.like)
        else:
            texts = chain.from_iterable(map(texts_of, said.texts))
            tokenizer = train_tokenizer(texts, said.vocabulary)
        write_model(said.folder, tokenizer, said.width, said.layers, said.context)
    except (CalmError, OSError) as error:
        sys.exit(f"fresh_model: {error}")
    print(f"{said.folder}: {len(tokenizer)} tokens, {said.layers} layers of {said.width}.")


if __name__ == "__main__":
    main()
