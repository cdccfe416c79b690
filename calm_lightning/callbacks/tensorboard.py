"""A run's logger, and what the callbacks that write for it have in common."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunLogger(TensorBoardLogger):
    """Lightning's logger without its hparams.yaml.

    That file holds what `save_hyperparameters` collects and `log_hyperparams` is given. A run has
    neither: its settings are in config.yaml, and TensorBoard has them from there (`Dashboard`). So
    the file, which Lightning writes at the first `save` whatever there is to say, would be `{}`.
    """

    @override
    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()


def logger_of(trainer: L.Trainer) -> TensorBoardLogger | None:
    """TensorBoard's logger, in the process that writes; None elsewhere, and where there is none."""
    found = (each for each in trainer.loggers if isinstance(each, TensorBoardLogger))
    return next(found, None) if trainer.is_global_zero else None


def writer_of(trainer: L.Trainer) -> "SummaryWriter | None":
    """The same logger's writer."""
    logger = logger_of(trainer)
    return None if logger is None else logger.experiment


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as TensorBoard's Text tab shows it. Cells are Markdown already; see `as_code`."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_code(text: str, longest: int = 400) -> str:
    """Any text as code in a cell of a table, on one line."""
    cut = text if len(text) <= longest else text[:longest] + "\N{HORIZONTAL ELLIPSIS}"
    line = cut.replace("\r", "").replace("\n", "\N{RETURN SYMBOL}")
    # No escape for these works in every Markdown; look-alikes do.
    safe = line.replace("|", "\N{DIVIDES}").replace("`", "\N{RIGHT SINGLE QUOTATION MARK}")
    return f"`{safe}`" if safe.strip() else "\N{EN DASH}"
