"""What a run shows and guards."""

from calm_lightning.callbacks.count_work import CountWork as CountWork
from calm_lightning.callbacks.frozen import NothingFrozenMoved as NothingFrozenMoved
from calm_lightning.callbacks.save_model import SaveModel as SaveModel
from calm_lightning.callbacks.write_answers import WriteAnswers as WriteAnswers
