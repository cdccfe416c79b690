"""Composition at the level of hidden states: one machine for every kind of bridge."""

from calm_lightning.composed.bridge import Bridge as Bridge
from calm_lightning.composed.bridge import Memory as Memory
from calm_lightning.composed.bridge import attention_weights as attention_weights
from calm_lightning.composed.cache import ComposedCache as ComposedCache
from calm_lightning.composed.composition import HiddenStateComposition as HiddenStateComposition
from calm_lightning.composed.joined import JoinedModel as JoinedModel
from calm_lightning.composed.joined import spoilt as spoilt
from calm_lightning.composed.model import ComposedModel as ComposedModel
from calm_lightning.composed.wiring import Connection as Connection
from calm_lightning.composed.wiring import evenly_spaced as evenly_spaced
