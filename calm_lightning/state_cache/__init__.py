"""States of frozen backbones on disk: computed when a text is first met, and read ever after.

What a frozen model makes of a text never changes, so an epoch after the first one needs neither the
augmenting models nor the anchor's layers below its first connection.
"""

from calm_lightning.state_cache.folder import CacheFolder as CacheFolder
from calm_lightning.state_cache.reading import KeptStates as KeptStates
from calm_lightning.state_cache.settings import StateCache as StateCache
from calm_lightning.state_cache.store import StateStore as StateStore
