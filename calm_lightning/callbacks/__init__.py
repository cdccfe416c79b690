"""What a run shows and guards."""

from calm_lightning.callbacks.count_work import CountWork as CountWork
from calm_lightning.callbacks.dashboard import Dashboard as Dashboard
from calm_lightning.callbacks.frozen import NothingFrozenMoved as NothingFrozenMoved
from calm_lightning.callbacks.look_inside import LookInside as LookInside
from calm_lightning.callbacks.measure_training import MeasureTraining as MeasureTraining
from calm_lightning.callbacks.progress_bar import ProgressBar as ProgressBar
from calm_lightning.callbacks.save_checkpoints import SaveCheckpoints as SaveCheckpoints
from calm_lightning.callbacks.save_model import SaveModel as SaveModel
from calm_lightning.callbacks.show_answers import ShowAnswers as ShowAnswers
from calm_lightning.callbacks.write_answers import WriteAnswers as WriteAnswers
