"""One run from a config: LightningCLI over `CalmModule` and any installed task."""

import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn
from typing_extensions import override

from calm_lightning.alone import alone_in
from calm_lightning.callbacks import (
    Dashboard,
    LookInside,
    MeasureTraining,
    NothingFrozenMoved,
    ProgressBar,
    SaveCheckpoints,
    SaveModel,
    ShowAnswers,
    WriteAnswers,
)
from calm_lightning.callbacks.save_checkpoints import processes_of
from calm_lightning.callbacks.tensorboard import RunLogger
from calm_lightning.checkpoint_io import (
    LAST,
    SealedCheckpointIO,
    checkpoints_in,
    newest_checkpoint,
    read_checkpoint,
    write_text,
)
from calm_lightning.contracts import CalmError, Composition, Scorer, Task
from calm_lightning.discovery import implementations, load_plugins
from calm_lightning.module import CalmModule
from calm_lightning.plain_data import Bomb, guard_jsonargparse, parse_yaml, refuse_hidden_bombs
from calm_lightning.resuming import refuse_other_settings, settings_of

RUN_HELP = (
    "Folder of the run: config, checkpoints, TensorBoard files and the trained model go there. "
    "By default runs/<name of the config file>, with a number if that exists. For validate, test "
    "and predict: the run whose config and last checkpoint are used."
)


RESUME_HELP = (
    "fit: go on with the run in --run (by default the newest called after the config file), from "
    "its newest whole checkpoint. `calm fit --run FOLDER --resume` takes FOLDER/config.yaml."
)


MOST_THREADS = 1024
"""Of a processor; a larger number is a slip, and some thread libraries end the process at it."""


class CalmParser(LightningArgumentParser):
    """A parser whose errors name the file, and the plug-in that was probably meant."""

    @override
    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        if Path(path).is_file():  # what is no file (a pipe) can be read only once
            _check_config(Path(path))
        return super().parse_path(path, *args, **kwargs)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise CalmError(_plain(message) + _hint(message)) from ex


class TrainingBegun(L.Callback):
    """Tells what goes wrong while a checkpoint is restored from what goes wrong in training."""

    yes = False

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.yes = True


class SaveConfig(SaveConfigCallback):
    """Writes the config into the run's folder, whole or not at all."""

    @override
    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        folder = Path(trainer.default_root_dir)  # log_dir would wait for the other processes
        folder.mkdir(parents=True, exist_ok=True)
        write_text(self.parser.dump(self.config, skip_none=False), folder / self.config_filename)


class CalmCLI(LightningCLI):
    """LightningCLI over `CalmModule` and any installed task."""

    def __init__(self, args: ArgsType = None, run: bool = True, **kwargs: Any) -> None:
        load_plugins()
        try:
            refuse_hidden_bombs([word.partition("=")[2] or word for word in sys.argv[1:]])
        except Bomb as error:
            raise CalmError(f"An option cannot be read: {error}") from None
        with ExitStack() as self._while_running:
            super().__init__(
                CalmModule,
                Task,
                subclass_mode_data=True,
                save_config_kwargs={"save_to_log_dir": False},
                save_config_callback=SaveConfig if run else None,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                # Tasks share their examples out among processes themselves.
                trainer_defaults={"use_distributed_sampler": False},
                args=args,
                run=run,
                **kwargs,
            )

    _saving: SaveModel | None = None
    _checkpoint: Path | None = None  # to go on with, and what it holds of the run's settings
    _its_settings: dict[str, Any] | None = None
    _begun = TrainingBegun()

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs.pop("default_config_files", None)
        guard_jsonargparse()
        parser = CalmParser(**kwargs)
        parser.add_argument(
            "-c", "--config", action="config", help="A YAML file; may be given several times."
        )
        return parser

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        """The one that the command line asks for: a parser takes a while to make, and four do."""
        every = LightningCLI.subcommands()
        asked = every.keys() & set(sys.argv[1:2])
        return {name: every[name] for name in asked or every}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str | None, default=None, help=RUN_HELP)
        parser.add_argument("--resume", action="store_true", help=RESUME_HELP)
        parser.add_argument(
            "--checkpoint_steps",
            type=int | None,
            default=None,
            help="Steps between two checkpoints of a fit, beside those at validations and at ends "
            "of epochs.",
        )
        parser.add_argument(
            "--checkpoint_minutes",
            type=float,
            default=10.0,
            help="Longest time between two checkpoints of a fit.",
        )
        parser.add_argument(
            "--threads", type=int | None, default=None, help="CPU threads that torch may use."
        )
        parser.add_argument(
            "--matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="Of float32 matrix products: medium computes them in bfloat16 where that is fast "
            "(GPUs, and processors with AMX; there, take `attention: eager` with it).",
        )

    @override
    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, CalmError):
                cause = cause.__cause__ or cause.__context__  # jsonargparse wraps what it meets
            raise (cause or CalmError(_plain(str(error)))) from error
        _check_optimizer(self.model.optimizer)

    @override
    def _parse_ckpt_path(self) -> None:
        config = self.config[self.config.subcommand] if self.config.get("subcommand") else {}
        path = config.get("ckpt_path")
        if path and path not in ("best", "last", "hpc") and "://" not in path:
            _check_checkpoint(path)
        # Lightning would put a checkpoint's `hyper_parameters` over the config, and so let a file
        # say which classes are imported. Ours have none.

    @override
    def _set_seed(self) -> None:
        config = self.config[self.subcommand] if self.subcommand else self.config
        seed = config.get("seed_everything")
        if type(seed) is int and not 0 <= seed < 2**32:
            raise CalmError(f"seed_everything={seed} must be from 0 to 2^32 - 1.")
        super()._set_seed()

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.config.subcommand] if self.subcommand else self.config
        if config.threads is not None:
            if not 1 <= config.threads <= MOST_THREADS:
                raise CalmError(f"threads={config.threads} must be from 1 to {MOST_THREADS}.")
            torch.set_num_threads(config.threads)
        torch.set_float32_matmul_precision(config.matmul_precision)
        if str(config.trainer.precision) in ("16-true", "bf16-true", "64-true", "64"):
            raise CalmError(
                f"trainer.precision={config.trainer.precision} would cast frozen and trained "
                "weights alike. Load the frozen models in a smaller type (model.anchor.dtype, and "
                "that of each augmenting model), and train in 32-true or bf16-mixed."
            )
        for option in ("checkpoint_steps", "checkpoint_minutes"):
            if (value := config[option]) is not None and not 0 < value < math.inf:
                raise CalmError(f"{option}={value} must be more than 0, and a number.")
        for option in ("accumulate_grad_batches", "check_val_every_n_epoch"):
            if (value := config.trainer[option]) is not None and value < 1:
                raise CalmError(f"trainer.{option}={value} must be at least 1.")
        if config.trainer.val_check_interval == 0:
            raise CalmError("trainer.val_check_interval=0: at least 1, or a share of an epoch.")
        if type(config.trainer.val_check_interval) is int and (
            config.trainer.check_val_every_n_epoch == 1
        ):
            config.trainer.check_val_every_n_epoch = None  # so many steps, however long an epoch is
        if shares_weights(config.trainer.strategy):
            # What an evaluation gathers weights into is used by training, too.
            config.trainer.inference_mode = False
        if not self.subcommand or config.trainer.fast_dev_run:
            return
        if self.subcommand in ("validate", "test"):
            config.verbose = False  # Lightning's table is a screen per set; ours follows
        if self.subcommand != "fit" and config.resume:
            raise CalmError("--resume is for `calm fit`: nothing else goes on where it was.")
        choose = _newest_folder if config.resume else _fresh_folder
        folder = Path(config.run) if config.run else choose(config)
        if folder.exists() and not folder.is_dir():
            raise CalmError(f"--run {folder}: that is a file; name a folder.")
        if self.subcommand == "fit":
            self._find_checkpoint(folder, config)
            if self._checkpoint is None:
                _refuse_own_config(folder, config.get("config") or [])
        config.run = str(folder)
        config.trainer.default_root_dir = str(folder)

    def _find_checkpoint(self, folder: Path, config: Any) -> None:
        """What to go on with; refuses to begin where something is already."""
        path = config.ckpt_path
        if config.resume or path == "last":
            # They are of this command and not of the run, so config.yaml should not hold them.
            wanted, config.resume, config.ckpt_path = config.resume, False, None
            if (folder / "model").exists():
                _refuse_more(folder, config)
                _say(f"{folder} is finished; its model is in {folder}/model. Nothing was changed.")
                raise SystemExit(0)
            if not wanted and not checkpoints_in(folder / "checkpoints"):
                return  # `--ckpt_path last` may be there from the beginning
            file, saved, wrong = newest_checkpoint(folder / "checkpoints")
            for fault in wrong:
                _say(f"calm: {fault} Going on from the one before it: '{file}'.")
        else:
            _refuse_used(folder, path)
            if not path or path in ("best", "hpc") or "://" in path:
                return
            file = Path(path)
            saved = read_checkpoint(file)
        self._checkpoint, self._its_settings = file, saved.get("settings")

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Any:
        config = self.config[self.config.subcommand] if self.subcommand else self.config
        # What is handed over here takes the place of the config's own callbacks.
        given = self._get(self.config_init, "trainer").get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        self._begun = TrainingBegun()
        extra: list[Any] = [NothingFrozenMoved(), self._begun]
        if config.trainer.enable_progress_bar is not False and not any(
            isinstance(callback, LightningProgressBar) for callback in given
        ):
            extra.append(ProgressBar())
        if self.subcommand and self.subcommand != "fit":  # config.yaml stays that of the fit
            self.save_config_kwargs["config_filename"] = f"{self.subcommand}.yaml"
        if self.subcommand and config.run:
            folder = config.run
            if self.subcommand == "fit":
                self._saving = SaveModel(os.path.join(folder, "model"))
                extra.append(self._saving)
                if config.trainer.enable_checkpointing is not False:
                    checkpoints = os.path.join(folder, "checkpoints")
                    often = config.checkpoint_steps, config.checkpoint_minutes
                    extra.append(SaveCheckpoints(checkpoints, self._settings(), *often))
            if self.subcommand == "predict":
                extra.append(WriteAnswers(folder))
            else:
                showing = (MeasureTraining, LookInside, ShowAnswers, Dashboard)
                known = {type(callback) for callback in given}
                extra += [kind() for kind in showing if kind not in known]
            if config.trainer.logger in (None, True):
                kwargs["logger"] = RunLogger(folder, name="", version="", default_hp_metric=False)
        kwargs["callbacks"] = [*kwargs.get("callbacks", []), *given, *extra]
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, SealedCheckpointIO()]
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise CalmError(f"trainer: {error}") from error

    def _settings(self) -> dict[str, Any]:
        config = self.config[self.config.subcommand]
        return settings_of(yaml.safe_load(self._parser(self.subcommand).dump(config)))

    def after_test(self) -> None:
        """Print the scores of every evaluation set."""
        self._print_scores("test")

    def after_validate(self) -> None:
        """The same for `calm validate`."""
        self._print_scores("val")

    def after_predict(self) -> None:
        """Say where the answers are."""
        run = self.config[self.config.subcommand].run
        if run and self.trainer.is_global_zero:
            print(f"Written: {run}/predictions.jsonl")

    def _print_scores(self, stage: str) -> None:
        from calm_lightning.screen import print_scores

        logged = {k: float(v) for k, v in self.trainer.callback_metrics.items()}
        scores = {k: v for k, v in logged.items() if k.startswith(f"{stage}/")}
        if self.trainer.is_global_zero:
            title = f"{stage}, {self.config[self.config.subcommand].run}"
            print_scores(scores, title, self.model.signatures())

    def before_fit(self) -> None:
        """Score the untrained composition, which answers as the anchor alone does."""
        if (folder := self.config[self.config.subcommand].run) and self.trainer.is_global_zero:
            alone = alone_in(Path(folder), "calm fit", "--run")
            self._while_running.enter_context(alone)
        if self._checkpoint is not None:
            if self._its_settings is not None:
                own = self._settings() | processes_of(self.trainer)
                refuse_other_settings(self._its_settings, own, self._checkpoint)
            return  # it was scored when the run began; a second time would hide what came since
        if (
            self.config[self.config.subcommand].trainer.fast_dev_run
            or not self.trainer.limit_val_batches
        ):
            return
        self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        if self.trainer.received_sigterm:  # during the last batch, after which nothing asks
            raise SIGTERMException

    def fit(self, **arguments: Any) -> None:
        """`Trainer.fit`, from the checkpoint that was found."""
        if self._checkpoint is not None:
            arguments["ckpt_path"] = str(self._checkpoint)
        try:
            self.trainer.fit(**arguments)
        except CalmError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if self._checkpoint is None or self._begun.yes:
                raise
            raise CalmError(
                f"'{self._checkpoint}' cannot be gone on with: {error!r}. It is damaged, or was "
                "not written by `calm fit`. Nothing was changed."
            ) from error
        except RuntimeError as error:
            if not (why := _outside_cause(error)):
                raise
            raise CalmError(f"{why} To go on: the same command with --resume.") from error

    def after_fit(self) -> None:
        """Show what the training changed, and say where everything is."""
        from calm_lightning.screen import print_change

        run = self.config[self.config.subcommand].run
        if not self.trainer.is_global_zero:
            return
        if self._saving is not None:
            print_change(self._saving.before, self.trainer.callback_metrics)
            if run and not any(name.startswith("val/") for name in self.trainer.callback_metrics):
                print(f"There was no validation in training. Now: calm validate --run {run}")
        if run:
            whole = Path(run, "model", "config.json").is_file()  # an adapter alone answers nothing
            print(
                f"The trained model is in {run}/model. Score it: calm test --run {run}."
                + (f' Ask it: calm generate {run}/model --prompt "..."' if whole else "")
            )


def _refuse_more(folder: Path, config: Any) -> None:
    """Refuse to go on with a finished run for longer; other options have no say there either."""
    file = folder / "config.yaml"
    said = (parse_yaml(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}
    trainer = said.get("trainer") or {}
    longer = [
        f"{name}: {trainer[name]} there, {config.trainer[name]} here"
        for name in ("max_steps", "max_epochs", "max_time")
        if name in trainer and trainer[name] != config.trainer[name]
    ]
    if longer:
        raise CalmError(
            f"{folder} is finished, and --resume does not make it longer ({'; '.join(longer)}). To "
            f"train its model further: --model.start_from {folder}/model and another --run."
        )


def _fresh_folder(config: Any) -> Path:
    """runs/<config's name>, numbered if it is taken."""
    files = config.get("config") or []
    stem = Path(str(files[-1])).stem if files else "run"
    folder, number = Path("runs") / stem, 2
    while folder.exists():
        folder, number = Path("runs") / f"{stem}-{number}", number + 1
    return folder


def _newest_folder(config: Any) -> Path:
    """The last of the folders that `_fresh_folder` gave out."""
    files = config.get("config") or []
    stem = Path(str(files[-1])).stem if files else "run"
    taken = [path for path in Path("runs").glob(f"{stem}*") if _number(path, stem)]
    return max(taken, key=lambda path: _number(path, stem), default=Path("runs") / stem)


def _number(folder: Path, stem: str) -> int:
    """1 for stem, 2 for stem-2; 0 for any other name."""
    if folder.name == stem:
        return 1
    number = folder.name.removeprefix(f"{stem}-")
    return int(number) if number.isdecimal() else 0


def shares_weights(strategy: Any) -> bool:
    """Whether a strategy, as the config names it, shares out the weights among processes."""
    name = str(getattr(strategy, "class_path", strategy)).rpartition(".")[2]
    return name in ("fsdp2", "FullyShard", "ModelParallelStrategy")


def _check_config(file: Path) -> None:
    """Refuse a config that cannot be read, by its name.

    Raises:
        CalmError: If it is not UTF-8, not YAML, or not a mapping of options.
    """
    try:
        said = parse_yaml(file.read_text(encoding="utf-8"))
        refuse_hidden_bombs(said)
    except UnicodeDecodeError as error:
        raise CalmError(f"{file} is not UTF-8 text (byte {error.start}).") from None
    except yaml.YAMLError as error:
        raise CalmError(f"{file} cannot be read as YAML: {error}") from None
    if not isinstance(said, dict) or not all(isinstance(name, str) for name in said):
        raise CalmError(
            f"{file}: a config is a mapping of options, as in `trainer: {{max_steps: 100}}`, not: "
            f"{str(said)[:200]}"
        )


def _check_optimizer(build: Callable[[list[nn.Parameter]], Any]) -> None:
    """Refuse settings that an optimizer does not take, before any model is read."""
    try:
        made = build([nn.Parameter(torch.zeros(1, 1))])
    except (TypeError, ValueError, AssertionError) as error:
        raise CalmError(f"model.optimizer: {error}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise CalmError(f"model.optimizer makes no optimizer, but {made!r}.")


def _check_checkpoint(path: str) -> None:
    if not Path(path).is_dir():  # of a distributed strategy; Lightning checks it
        read_checkpoint(Path(path))


def _outside_cause(error: RuntimeError) -> str:
    """What no fault of the program ended the training, said to the user; empty if it was one."""
    said = (str(error).strip() or repr(error)).splitlines()[0]
    if "DataLoader worker" in said:
        return (
            f"A process that prepares batches died: {said.rstrip('. ')}. Where memory ran out, "
            "fewer of them (data.num_workers) help."
        )
    if isinstance(error, torch.OutOfMemoryError):
        return f"The device has no memory left: {said.rstrip('. ')}."
    return ""


@rank_zero_only
def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _refuse_used(folder: Path, checkpoint: str | None) -> None:
    if (folder / "model").exists():
        raise CalmError(
            f"{folder} already holds a trained model. Name another folder with --run, or move "
            "that one away; nothing was changed."
        )
    last = folder / "checkpoints" / LAST
    if last.exists() and not checkpoint:
        raise CalmError(
            f"{folder} holds a run that did not finish. Go on with it by --resume (or from a "
            f"checkpoint of your choice, --ckpt_path {last}), name another folder with --run, or "
            "move that one away; nothing was changed."
        )


def _refuse_own_config(folder: Path, files: Sequence[Any]) -> None:
    """The run's own config.yaml must not take the place of one that a user wrote."""
    config = folder / "config.yaml"
    if config.exists() and any(config.samefile(str(file)) for file in files):
        raise CalmError(
            f"--run {folder} would write the whole config over {config}, which was given by "
            "--config. Name another folder with --run; nothing was changed."
        )


def _plain(message: str) -> str:
    """A message of jsonargparse without the names of Python's types."""
    noise = ("Subtypes:", "Given value type:", "Given value: N", "- Expected a <class 'None")
    lines = [line for line in message.splitlines() if not line.strip().startswith(noise)]
    lines = [line if len(line) <= 500 else f"{line[:200]} ... {line[-50:]}" for line in lines]
    text = "\n".join(lines).replace("typing.Literal", "one of ")
    text = text.replace("Unexpected config:", "A config is a mapping of options, not:")
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)


def _hint(message: str) -> str:
    if "unrecognized arguments" in message:
        return "\n--help lists the options; an entry of a config is one too, a.b for b in a."
    if '"model.augmenting"' in message and "Sequence" in message:
        return "\nmodel.augmenting is a list of models: --model.augmenting '[{path: FOLDER}]'."
    if "import path" not in message and "subclass" not in message:
        return ""
    known = sorted({name for kind in (Composition, Task, Scorer) for name in implementations(kind)})
    words = [w.rpartition(".")[2] for w in re.findall(r"import path string: (\S+)", message)]
    near = [m for word in words for m in get_close_matches(word, known, 1, 0.6)]
    failed = [f"{p.name} ({p.error})" for p in load_plugins() if p.error]
    lines = [f"Did you mean {near[0]}?"] if near else []
    lines.append(f"Installed: {', '.join(known)}.")
    if failed:
        lines.append(f"Left out because they could not be imported: {'; '.join(failed)}.")
    return "".join(f"\n{line}" for line in lines)


def quiet_libraries() -> None:
    """Hide other packages' advertisements and warnings that no user can act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*The dirpath has changed.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # the task is
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*You have overridden `transfer_batch_to_device`.*")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    warnings.filterwarnings("ignore", message=".*recommended to use .*sync_dist=True")  # they are
    tips = re.compile("litlogger|litmodels|Tip:|GPU available|TPU available|HPU available")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).addFilter(lambda record: not tips.search(record.getMessage()))
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
