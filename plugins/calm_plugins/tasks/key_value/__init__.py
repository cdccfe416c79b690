"""Arithmetic over keys whose values only the augmenting model knows (the paper's section 4.1)."""

from calm_plugins.tasks.key_value.data import KeyValue as KeyValue
from calm_plugins.tasks.key_value.expressions import KeyTable as KeyTable
