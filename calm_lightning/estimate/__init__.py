"""What a run would take, told from its config alone: weights, memory, arithmetic, GPUs."""

from calm_lightning.estimate.figures import Estimate as Estimate
from calm_lightning.estimate.figures import Work as Work
from calm_lightning.estimate.gpus import plan_generation as plan_generation
from calm_lightning.estimate.gpus import plan_training as plan_training
from calm_lightning.estimate.measure import Setting as Setting
from calm_lightning.estimate.measure import estimate as estimate
from calm_lightning.estimate.sharing import share as share
