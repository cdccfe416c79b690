"""One run from a config: LightningCLI over `CalmModule` and any installed task."""

import logging
import os
import re
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from calm_lightning.callbacks import NothingFrozenMoved, SaveModel, WriteAnswers
from calm_lightning.contracts import CalmError, Composition, Scorer, Task
from calm_lightning.discovery import implementations, load_plugins
from calm_lightning.module import CalmModule

RUN_HELP = (
    "Folder of the run: config, checkpoints, TensorBoard files and the trained model go there. "
    "By default runs/<name of the config file>, with a number if that exists. For validate, test "
    "and predict: the run whose config and last checkpoint are used."
)


class CalmParser(LightningArgumentParser):
    """A parser whose errors name the plug-in that was probably meant."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise CalmError(_plain(message) + _hint(message)) from ex


class CalmCLI(LightningCLI):
    """LightningCLI over `CalmModule` and any installed task."""

    def __init__(self, args: ArgsType = None, run: bool = True, **kwargs: Any) -> None:
        load_plugins()
        super().__init__(
            CalmModule,
            Task,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            save_config_callback=SaveConfigCallback if run else None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            # Tasks share their examples out among processes themselves.
            trainer_defaults={"use_distributed_sampler": False},
            args=args,
            run=run,
            **kwargs,
        )

    _before: dict[str, float] = {}  # noqa: RUF012  (replaced, never changed)

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs.pop("default_config_files", None)
        parser = CalmParser(**kwargs)
        parser.add_argument(
            "-c", "--config", action="config", help="A YAML file; may be given several times."
        )
        return parser

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str | None, default=None, help=RUN_HELP)
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

    @override
    def _parse_ckpt_path(self) -> None:
        config = self.config[self.config.subcommand] if self.config.get("subcommand") else {}
        path = config.get("ckpt_path")
        if path and path not in ("best", "last", "hpc") and "://" not in path:
            _check_checkpoint(path)
        super()._parse_ckpt_path()

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
            if config.threads < 1:
                raise CalmError(f"threads={config.threads} must be at least 1.")
            torch.set_num_threads(config.threads)
        torch.set_float32_matmul_precision(config.matmul_precision)
        if str(config.trainer.precision) in ("16-true", "bf16-true", "64-true", "64"):
            raise CalmError(
                f"trainer.precision={config.trainer.precision} would cast frozen and trained "
                "weights alike. Load the frozen models in a smaller type (model.anchor.dtype, and "
                "that of each augmenting model), and train in 32-true or bf16-mixed."
            )
        if config.trainer.val_check_interval == 0:
            raise CalmError("trainer.val_check_interval=0: at least 1, or a share of an epoch.")
        if type(config.trainer.val_check_interval) is int and (
            config.trainer.check_val_every_n_epoch == 1
        ):
            config.trainer.check_val_every_n_epoch = None  # so many steps, however long an epoch is
        if not self.subcommand or config.trainer.fast_dev_run:
            return
        if self.subcommand in ("validate", "test"):
            config.verbose = False  # Lightning's table is a screen per set; ours follows
        folder = Path(config.run) if config.run else _fresh_folder(config)
        if folder.exists() and not folder.is_dir():
            raise CalmError(f"--run {folder}: that is a file; name a folder.")
        if self.subcommand == "fit":
            _refuse_used(folder, config.ckpt_path)
            if not config.ckpt_path:
                _refuse_own_config(folder, config.get("config") or [])
        config.run = str(folder)
        config.trainer.default_root_dir = str(folder)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Any:
        config = self.config[self.config.subcommand] if self.subcommand else self.config
        extra: list[Any] = [NothingFrozenMoved()]
        if self.subcommand and self.subcommand != "fit":  # config.yaml stays that of the fit
            self.save_config_kwargs["config_filename"] = f"{self.subcommand}.yaml"
        if self.subcommand and config.run:
            folder = config.run
            if self.subcommand == "fit":
                extra.append(SaveModel(os.path.join(folder, "model")))
                if config.trainer.enable_checkpointing is not False:
                    checkpoints = os.path.join(folder, "checkpoints")
                    extra.append(ModelCheckpoint(checkpoints, save_last=True))
            if self.subcommand == "predict":
                extra.append(WriteAnswers(folder))
            if config.trainer.logger in (None, True):
                kwargs["logger"] = TensorBoardLogger(
                    folder, name="", version="", default_hp_metric=False
                )
        if any(
            "ModelCheckpoint" in str(getattr(c, "class_path", c))
            for c in (config.trainer.callbacks or [])
        ):
            extra = [c for c in extra if not isinstance(c, ModelCheckpoint)]
        kwargs["callbacks"] = [*kwargs.get("callbacks", []), *extra]
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise CalmError(f"trainer: {error}") from error

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
        from calm_lightning.report import print_scores

        logged = {k: float(v) for k, v in self.trainer.callback_metrics.items()}
        scores = {k: v for k, v in logged.items() if k.startswith(f"{stage}/")}
        if self.trainer.is_global_zero:
            title = f"{stage}, {self.config[self.config.subcommand].run}"
            print_scores(scores, title, self.model.signatures())

    def before_fit(self) -> None:
        """Score the untrained composition, which answers as the anchor alone does."""
        if (
            self.config[self.config.subcommand].trainer.fast_dev_run
            or not self.trainer.limit_val_batches
        ):
            return
        self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        self._before = {k: float(v) for k, v in self.trainer.callback_metrics.items()}

    def after_fit(self) -> None:
        """Show what the training changed, and say where everything is."""
        from calm_lightning.report import print_change

        run = self.config[self.config.subcommand].run
        if not self.trainer.is_global_zero:
            return
        if self._before:
            print_change(self._before, self.trainer.callback_metrics)
        if run:
            whole = Path(run, "model", "config.json").is_file()  # an adapter alone answers nothing
            print(
                f"The trained model is in {run}/model. Score it: calm test --run {run}."
                + (f' Ask it: calm generate {run}/model --prompt "..."' if whole else "")
            )


def _fresh_folder(config: Any) -> Path:
    """runs/<config's name>, numbered if it is taken."""
    files = config.get("config") or []
    stem = Path(str(files[-1])).stem if files else "run"
    folder, number = Path("runs") / stem, 2
    while folder.exists():
        folder, number = Path("runs") / f"{stem}-{number}", number + 1
    return folder


def _check_checkpoint(path: str) -> None:
    if not Path(path).exists():
        raise CalmError(f"There is no checkpoint {path!r}. Those of a run are in its checkpoints/.")
    if Path(path).is_dir():
        return  # of a distributed strategy; Lightning checks it
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        checkpoint["state_dict"]
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0].partition(". ")[0]
        raise CalmError(
            f"{path!r} is damaged, or is no checkpoint of `calm fit`: {reason}"
        ) from None


def _refuse_used(folder: Path, checkpoint: str | None) -> None:
    if (folder / "model").exists():
        raise CalmError(
            f"{folder} already holds a trained model. Name another folder with --run, or move "
            "that one away; nothing was changed."
        )
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists() and not checkpoint:
        raise CalmError(
            f"{folder} holds a run that did not finish. Go on with it by --ckpt_path {last}, name "
            "another folder with --run, or move that one away; nothing was changed."
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
    text = "\n".join(lines).replace("typing.Literal", "one of ")
    text = text.replace("Unexpected config:", "A config is a mapping of options, not:")
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)


def _hint(message: str) -> str:
    if "unrecognized arguments" in message:
        return "\n--help lists the options; an entry of a config is one too, a.b for b in a."
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
    tips = re.compile("litlogger|litmodels|Tip:|GPU available|TPU available|HPU available")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).addFilter(lambda record: not tips.search(record.getMessage()))
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
