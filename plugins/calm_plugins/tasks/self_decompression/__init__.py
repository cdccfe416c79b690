"""Self-decompression (TG): training data drawn out of a frozen model, and replay beside a task."""

from calm_plugins.tasks.self_decompression.data import SelfDecompression as SelfDecompression
from calm_plugins.tasks.self_decompression.replay import Replay as Replay
