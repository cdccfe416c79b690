"""`calm generate`: ask a trained model, one prompt, a file of them, or in a conversation."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from calm_lightning.backbone import BackboneSource, DType
from calm_lightning.checkpoint import holds_composition, load
from calm_lightning.composed import ComposedModel
from calm_lightning.composed.static import refuse_growing
from calm_lightning.contracts import CalmError, LanguageModel
from calm_lightning.drafting import drafted_by
from calm_lightning.hub import local_folder
from calm_lightning.language_model import PlainModel, TextModel

Message = Mapping[str, str]

_MOST_BEAMS = 1000


def generate(
    model: str,
    prompt: list[str] | None = None,
    file: str | None = None,
    max_new_tokens: int = 64,
    sample: bool = False,
    temperature: float = 1.0,
    num_beams: int = 1,
    seed: int = 0,
    batch_size: int = 8,
    chat: bool = False,
    anchor_only: bool = False,
    compare: bool = False,
    draft: int | None = None,
    compile: bool = False,
    anchor: str | None = None,
    augmenting: list[str] | None = None,
    dtype: DType | None = None,
    device: str = "auto",
) -> None:
    """Print the model's continuation of every prompt.

    One answer is printed while it is written, several are made in batches. With neither prompts nor
    a file, on a terminal, questions are asked for.

    Args:
        model: A folder written by `calm fit` (runs/NAME/model), a plain model's folder, or the name
            of either on the hub.
        prompt: What to ask; repeat the option for several.
        file: A text file with one prompt a line.
        max_new_tokens: Longest continuation, in tokens of the anchor.
        sample: Draw at random instead of taking the likeliest token.
        temperature: Of the draw.
        num_beams: Beams of beam search.
        seed: Of the draws of every batch.
        batch_size: Prompts that are answered together.
        chat: Each prompt is a message of a user, written as the anchor's chat template says.
        anchor_only: The anchor's answers, without the composition.
        compare: The composed model's answers and the anchor's, side by side.
        draft: Number of an augmenting model, counted from 0, that proposes tokens for the others to
            check: the same answers, in fewer passes through the anchor.
        compile: Let torch compile the step from one token to the next, through all models at once:
            the same answers, each token sooner, after half a minute of compiling for each new
            number of prompts at once. Prompts whose answers have ended stay in their batch.
        anchor: Where the anchor is now, if it moved.
        augmenting: Where the augmenting models are now, if they moved.
        dtype: Of the backbones' weights; None: as they were when the composition was saved.
        device: Where to compute, as torch names it; auto is the first GPU, else the processor.

    Raises:
        CalmError: If nothing is asked, an option is out of range, or the model cannot be opened.
    """
    prompts = [*(prompt or []), *_lines(file)]
    interactive = not prompts and file is None and sys.stdin.isatty()
    for question in prompts:
        _check_text(question)
    if not prompts and not interactive:
        raise CalmError(
            'Nothing was asked. Give --prompt "TEXT", or --file with a prompt a line; on a '
            "terminal, neither."
        )
    _check_numbers(max_new_tokens, num_beams, batch_size, temperature, seed)
    if anchor_only and compare:
        raise CalmError("--compare shows the anchor's answers too: leave out --anchor-only.")
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "do_sample": sample,
        "num_beams": num_beams,
    }
    if sample:
        options["temperature"] = temperature
    if draft is not None and chat:
        raise CalmError("--draft proposes tokens for plain prompts: leave out --chat.")
    if draft is not None and compile:
        raise CalmError("--draft takes tokens back, which --compile cannot: leave out one of them.")
    opened = open_model(model, anchor, augmenting, dtype, device)
    if compile:
        if not isinstance(opened, ComposedModel):
            raise CalmError(
                f"--compile is for models that are composed layer by layer, and {model} is not "
                "one. Leave out --compile."
            )
        refuse_growing(opened, options)  # says at once if it cannot be done
        options["cache_implementation"] = "static"
    if draft is not None:
        drafted_by(draft, opened, options)  # says at once if it cannot be done
        options["draft"] = draft
    asker = Asker(opened, options, seed, chat, anchor_only)
    if chat:
        asker.model.encode_chat([_user("?")])  # says at once if there is no chat template
    if interactive:
        _converse(asker, compare)
    elif compare:
        for question in prompts:
            print(question)
            _print_both(*(each.answers([question])[0] for each in (asker, asker.anchor())))
    elif len(prompts) == 1:
        print(prompts[0])
        asker.print_answer(prompts[0], indent="  ")
    else:
        for first in range(0, len(prompts), batch_size):
            batch = prompts[first : first + batch_size]
            for question, answer in zip(batch, asker.answers(batch), strict=True):
                print(f"{question}\n  {answer}", flush=True)


@dataclass(frozen=True)
class Asker:
    """A model, and how it is asked.

    Attributes:
        model: Who answers.
        options: Of `generate`.
        seed: Of the draws of every batch.
        chat: Whether questions are messages of a conversation.
        alone: Whether the composition is switched off, so that the anchor answers.
    """

    model: TextModel
    options: Mapping[str, Any]
    seed: int = 0
    chat: bool = False
    alone: bool = False

    def anchor(self) -> "Asker":
        """The same questions to the anchor alone."""
        return Asker(self.model, self.options, self.seed, self.chat, alone=True)

    def answers(
        self, questions: Sequence[str], said: Sequence[Message] = (), **more: Any
    ) -> list[str]:
        """What the model answers; `said` is the conversation before, `more` are further options."""
        import torch

        torch.manual_seed(self.seed)
        options = {**self.options, **more}
        with self.model.anchor_only() if self.alone else nullcontext():
            if not self.chat:
                return self.model.generate_text(questions, **options)
            return [self.model.chat([*said, _user(q)], **options) for q in questions]

    def print_answer(self, question: str, said: Sequence[Message] = (), indent: str = "") -> str:
        """The answer to one question, printed while it is written; beams are known at the end."""
        from transformers import TextStreamer

        print(indent, end="")
        if self.options.get("num_beams", 1) > 1:
            (answer,) = self.answers([question], said)
            print(answer)
            return answer
        tokenizer = self.model.anchor_backbone.require_tokenizer()
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        try:
            (answer,) = self.answers([question], said, streamer=streamer)
        except CalmError:
            print()  # what is said of it has a line of its own
            raise
        return answer


def open_model(
    folder: str,
    anchor: str | None = None,
    augmenting: list[str] | None = None,
    dtype: DType | None = None,
    device: str = "cpu",
) -> TextModel:
    """A saved composition, or a plain Hugging Face model as it is.

    Raises:
        CalmError: If the folder holds neither, or there is no such device.
    """
    place = local_folder(folder)
    plain = (place / "config.json").is_file() and not holds_composition(place)
    model: LanguageModel
    if plain and anchor is None:
        model = PlainModel(BackboneSource(str(place), dtype=dtype or "float32").load(), _no_save)
    else:
        model = load(place, anchor, augmenting, dtype)
    assert isinstance(model, TextModel), "a composition that is saved reads and writes texts"
    return on_device(model, device)


def on_device(model: TextModel, device: str) -> TextModel:
    """The model where it shall compute.

    Raises:
        CalmError: If there is no such device.
    """
    import torch

    assert isinstance(model, torch.nn.Module), "a LanguageModel is also a torch.nn.Module"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CalmError(f"--device {device} cannot be used: {reason}") from None
    return model


def _converse(asker: Asker, compare: bool) -> None:
    """Questions from the terminal until it says that there are no more (Ctrl-D)."""
    names = [backbone.name for backbone in asker.model.frozen_backbones]
    print(f"Asking {' + '.join(names)}. Ctrl-D ends.")
    askers = [asker, asker.anchor()] if compare else [asker]
    said: list[list[Message]] = [[] for _ in askers]
    while True:
        try:
            question = input("> ")
        except EOFError:
            print()
            return
        if not question.strip():
            continue
        try:
            if compare:
                pairs = zip(askers, said, strict=True)
                answers = [each.answers([question], before)[0] for each, before in pairs]
                _print_both(*answers)
            else:
                answers = [asker.print_answer(question, said[0])]
        except CalmError as error:  # the conversation goes on
            print(f"calm: {error}", file=sys.stderr)
            continue
        for before, answer in zip(said, answers, strict=True):
            before += [_user(question), {"role": "assistant", "content": answer}]


def _print_both(composed: str, anchor: str) -> None:
    table = Table("composed", "anchor", box=None, header_style="bold", pad_edge=False)
    table.add_row(Text(composed, overflow="fold"), Text(anchor, overflow="fold"))
    Console().print(table)


def _user(question: str) -> Message:
    return {"role": "user", "content": question}


def _check_numbers(
    max_new_tokens: int, num_beams: int, batch_size: int, temperature: float, seed: int
) -> None:
    for name, value in (
        ("max-new-tokens", max_new_tokens),
        ("num-beams", num_beams),
        ("batch-size", batch_size),
    ):
        if value < 1:
            raise CalmError(f"--{name} must be at least 1: got {value}.")
    if num_beams > _MOST_BEAMS:
        raise CalmError(f"--num-beams must be at most {_MOST_BEAMS}: got {num_beams}.")
    if not 1e-3 <= temperature < math.inf:
        raise CalmError(
            f"--temperature must be above 0 (at least 0.001, and a number): got {temperature}. "
            "Without --sample the likeliest token is taken."
        )
    if not 0 <= seed < 2**63:
        raise CalmError(f"--seed must be a whole number from 0 to 2^63 - 1: got {seed}.")


def _check_text(question: str) -> None:
    """Refuse what a terminal that is not set to UTF-8 makes of letters."""
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise CalmError(
            f"--prompt {question!r} is not UTF-8 text (character {error.start}). Write it into a "
            "UTF-8 file, and give that by --file."
        ) from None


def _no_save(folder: Path) -> None:
    raise AssertionError(f"a model that was only opened is not saved ({folder})")


def _lines(file: str | None) -> Iterator[str]:
    if file is None:
        return
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise CalmError(f"Cannot read the prompts in {file!r}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise CalmError(f"{file!r} is not UTF-8 text (byte {error.start}).") from None
    except ValueError as error:  # no name of a file
        raise CalmError(f"Cannot read the prompts in {file!r}: {error}.") from None
    yield from (line for line in text.splitlines() if line.strip())
