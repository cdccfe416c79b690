"""Routing: one of the models answers a prompt, or says the next token; or all are mixed."""

from calm_plugins.compositions.routing.composition import Ensemble as Ensemble
from calm_plugins.compositions.routing.composition import PromptRouter as PromptRouter
from calm_plugins.compositions.routing.composition import TokenRouter as TokenRouter
