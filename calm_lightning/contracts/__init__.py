"""What a plug-in promises. Nothing here imports the core, so a plug-in may rely on all of it."""

from calm_lightning.contracts.composition import Composition as Composition
from calm_lightning.contracts.composition import LanguageModel as LanguageModel
from calm_lightning.contracts.errors import CalmError as CalmError
from calm_lightning.contracts.scorer import ExactMatch as ExactMatch
from calm_lightning.contracts.scorer import Scorer as Scorer
from calm_lightning.contracts.task import STAND_IN as STAND_IN
from calm_lightning.contracts.task import EvaluationSet as EvaluationSet
from calm_lightning.contracts.task import Example as Example
from calm_lightning.contracts.task import Question as Question
from calm_lightning.contracts.task import Task as Task
