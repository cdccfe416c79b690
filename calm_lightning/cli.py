"""The `calm` command: LightningCLI, plug-ins found first, and errors that help.

calm fit | validate | test | predict   one run, from a YAML file
calm compare                           many rows and seeds under one budget, as a table
calm estimate                          what a fit would take: memory, arithmetic, GPUs
calm generate                          ask a trained model
calm evaluate                          lm-evaluation-harness on it and on its parts
calm inspect                           one page about a run, to look at without TensorBoard
calm card                              its model card, written anew
calm plugins                           what is installed
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from calm_lightning.callbacks.save_checkpoints import TERMINATED
from calm_lightning.contracts import CalmError
from calm_lightning.discovery import load_plugins
from calm_lightning.run import CalmCLI, quiet_libraries

OVERVIEW = """usage: calm COMMAND [options]

Compose frozen language models through small trained bridges.

commands:
  fit        train a composition:            calm fit --config configs/smoke/key_value.yaml
  validate   score it on the validation part of every evaluation set
  test       score it on every evaluation set: calm test --run runs/NAME
  predict    write its answers
  compare    many rows and seeds, as a table: calm compare configs/key_value/demo.yaml
  estimate   tell what a fit would take:     calm estimate --config FILE --gpu-memory 80
  generate   ask a trained model:            calm generate runs/NAME/model --prompt "<eqga>+<ndj>?"
  evaluate   lm-evaluation-harness on it:    calm evaluate runs/NAME/model --tasks NAME,NAME
  inspect    one HTML page about a run:       calm inspect runs/NAME
  card       write its model card anew, with the results of the comparison that it is from
  plugins    list what is installed

`calm COMMAND --help` tells the options of each.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    A fault in the input ends with one message on standard error and exit status 2; set
    CALM_TRACEBACK=1 to see where it was raised.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    quiet_libraries()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(OVERVIEW, end="")
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "--version":
        from calm_lightning import __version__

        print(__version__)
        return
    try:
        own = OWN_COMMANDS.get(arguments[0])
        if own is not None:
            own(arguments[1:])
        elif arguments[0] in TRAINER_COMMANDS:
            sys.argv[1:] = _with_run(arguments)  # strategies that start processes run it again
            cli = CalmCLI()
            if arguments[0] == "test" and (run := _value(arguments, "--run")) is not None:
                _record_test(cli, Path(run), arguments)
        else:
            commands = [*TRAINER_COMMANDS, *OWN_COMMANDS]
            near = get_close_matches(arguments[0], commands, 1, 0.6)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise CalmError(
                f"There is no command {arguments[0]!r}.{hint} Commands: {', '.join(commands)}."
            )
    except (CalmError, MisconfigurationException, OSError) as error:
        if os.environ.get("CALM_TRACEBACK"):
            raise
        print(f"calm: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except SIGTERMException:  # Lightning's, which would exit with status 0
        raise SystemExit(TERMINATED) from None
    except KeyboardInterrupt:
        print("calm: stopped.", file=sys.stderr)
        raise SystemExit(130) from None


def _with_run(arguments: list[str]) -> list[str]:
    """`test --run FOLDER` stands for the config and the last checkpoint in that folder.

    So does `fit --run FOLDER --resume`, which finds the checkpoint later.
    """
    run = _value(arguments, "--run")
    begins = arguments[0] == "fit" and "--resume" not in arguments
    if begins or run is None or _value(arguments, "--config", "-c") is not None:
        return arguments
    folder = Path(run)
    config, checkpoint = folder / "config.yaml", folder / "checkpoints" / "last.ckpt"
    if not config.is_file():
        raise CalmError(f"{str(folder)!r} is not the folder of a run: it has no config.yaml.")
    extra = ["--config", str(config)]
    if arguments[0] != "fit" and _value(arguments, "--ckpt_path") is None:
        if not checkpoint.is_file():
            raise CalmError(
                f"{str(folder)!r} has no checkpoints/last.ckpt: its training did not come so far. "
                "Name another checkpoint with --ckpt_path, or null to take the untrained model."
            )
        extra += ["--ckpt_path", str(checkpoint)]
    return [arguments[0], *extra, *arguments[1:]]


def _value(arguments: list[str], *options: str) -> str | None:
    """What follows the first of these options; None if it is not among the arguments."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, equals, value = argument.partition("=")
        if name in options:
            return value if equals else following
    return None


def _record_test(cli: CalmCLI, run: Path, arguments: Sequence[str]) -> None:
    """Put the scores of a test on the model card of its run, if that very model was tested."""
    from calm_lightning.card import add_facts
    from calm_lightning.checkpoint import holds_weights_of

    folder = run / "model"
    same = holds_weights_of(cli.model.language_model, folder)
    if not (same and cli.trainer.is_global_zero):
        return
    scores = {
        name.removeprefix("test/"): float(value)
        for name, value in cli.trainer.callback_metrics.items()
        if name.startswith("test/")
    }
    add_facts(folder, test=scores, command=f"calm {shlex.join(arguments)}")


def _plugins(arguments: Sequence[str]) -> None:
    from calm_lightning.screen import print_plugins

    _parser("plugins", "List the installed plug-ins and what they offer.").parse_args(arguments)
    print_plugins(load_plugins())


def _generate(arguments: Sequence[str]) -> None:
    from calm_lightning.generate import generate

    parser = _parser(
        "generate",
        "Print a trained model's continuation of every prompt. On a terminal, without prompts and "
        "file, questions are asked for.",
    )
    add = parser.add_argument
    add("--prompt", action="append", help="what to ask; repeat it for several")
    add("--file", help="text file with one prompt a line; - reads standard input")
    add("--max-new-tokens", type=int, default=64, help="longest continuation (default: 64)")
    add("--sample", action="store_true", help="draw at random instead of the likeliest token")
    add("--temperature", type=float, default=1.0, help="of the draw")
    add("--num-beams", type=int, default=1, help="beams of beam search")
    add("--seed", type=int, default=0, help="of the draws of every batch")
    add("--batch-size", type=int, default=8, help="prompts answered together (default: 8)")
    add("--chat", action="store_true", help="prompts are messages, by the anchor's chat template")
    add("--anchor-only", action="store_true", help="the anchor's answers, without the composition")
    add("--compare", action="store_true", help="both models' answers, side by side")
    add(
        "--draft",
        type=int,
        metavar="N",
        help="augmenting model, counted from 0, that proposes tokens: same answers, fewer passes",
    )
    add("--compile", action="store_true", help="by torch: same answers, sooner after the first")
    _add_model(parser)
    generate(**vars(parser.parse_args(arguments)))


def _evaluate(arguments: Sequence[str]) -> None:
    from calm_lightning.evaluation import evaluate_command

    parser = _parser(
        "evaluate",
        "Run lm-evaluation-harness on a composed model, on its anchor alone and on its augmenting "
        "models alone.",
    )
    add = parser.add_argument
    add("--tasks", required=True, type=_names, help="names of tasks or groups, with commas")
    add("--limit", type=float, help="only so many examples of each task, or such a share below 1")
    add("--include-path", help="folder with tasks of your own (YAML files)")
    add("--num-fewshot", type=int, help="solved examples in each prompt (default: the task's)")
    add("--batch-size", type=int, default=8, help="requests answered together (default: 8)")
    add("--chat", action="store_true", help="prompts by the chat template of each tokenizer")
    add("--out", help="JSON file (default: evaluation.json in the model's folder, numbered)")
    _add_model(parser)
    evaluate_command(**vars(parser.parse_args(arguments)))


def _names(said: str) -> list[str]:
    return [name.strip() for name in said.split(",") if name.strip()]


def _card(arguments: Sequence[str]) -> None:
    from calm_lightning.card import CARD, add_facts, facts_of_comparison
    from calm_lightning.checkpoint import read_description

    parser = _parser(
        "card",
        "Write a model's card (README.md) anew, with the results of the comparison that it is "
        "from. What you wrote there outside of the marks is kept.",
    )
    parser.add_argument("model", help="runs/NAME/model, or RESULTS/rows/ROW/seed_N/model")
    folder = Path(parser.parse_args(arguments).model)
    read_description(folder)  # refuses what is no composition
    if not add_facts(folder, **facts_of_comparison(folder)):
        raise CalmError(
            f"{folder / CARD} was written by somebody else and is left as it is. Move it away to "
            "have one made."
        )
    print(f"Written: {folder / CARD}")


def _inspect(arguments: Sequence[str]) -> None:
    from calm_lightning.inspect.command import inspect_run

    parser = _parser(
        "inspect",
        "Write one HTML page about a run, which needs no other file and no network: models and "
        "connections, scores, what the augmenting model contributes, samples, curves, attention.",
    )
    add = parser.add_argument
    add("run", help="folder of the run: runs/NAME, or RESULTS/rows/ROW/seed_N")
    add("--out", help="the page (default: inspect.html in the run's folder)")
    add(
        "--examples",
        type=int,
        default=64,
        help="questions of each evaluation set that are asked anew; 0 asks none (default: 64)",
    )
    inspect_run(**vars(parser.parse_args(arguments)))


def _add_model(parser: argparse.ArgumentParser) -> None:
    """The options that say which model is opened, and how."""
    from calm_lightning.backbone import DType

    add = parser.add_argument
    add("model", help="folder written by `calm fit` (runs/NAME/model), or of a plain model")
    add("--anchor", help="where the anchor is now, if it moved")
    add("--augmenting", action="append", help="where the augmenting models are now, in order")
    add(
        "--dtype",
        choices=get_args(DType),
        help="of the backbones' weights (default: as when the composition was saved)",
    )
    add("--device", default="auto", help="where to compute (default: the first GPU, if there is)")


def _estimate(arguments: Sequence[str]) -> None:
    from calm_lightning.estimate.command import run_estimate

    sys.argv[1:] = arguments  # it is read as that of `calm fit` is
    run_estimate()


def _compare(arguments: Sequence[str]) -> None:
    from calm_lightning.compare import compare

    parser = _parser("compare", "Train and score many rows under one budget, as a table.")
    add = parser.add_argument
    add("config", help="the comparison's YAML file")
    add("--out", help="folder of the results (default: runs/NAME)")
    add("--workers", type=int, help="runs at a time")
    add("--rows", nargs="+", default=(), help="only these rows")
    add("--seeds", nargs="+", type=int, default=(), help="only these seeds")
    compare(**vars(parser.parse_args(arguments)))


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"calm {command}", description=description)


TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
OWN_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "card": _card,
    "compare": _compare,
    "estimate": _estimate,
    "evaluate": _evaluate,
    "generate": _generate,
    "inspect": _inspect,
    "plugins": _plugins,
}
