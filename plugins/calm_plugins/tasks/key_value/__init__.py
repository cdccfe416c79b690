"""Arithmetic over keys whose values only the augmenting model knows (the paper's section 4.1)."""

from calm_plugins.tasks.key_value.data import KeyValue as KeyValue
from calm_plugins.tasks.key_value.expressions import KeyTable as KeyTable

# Not the tokenizer: `python -m` would run a module that is already imported, and warn.
