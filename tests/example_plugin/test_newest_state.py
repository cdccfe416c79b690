from calm_example.newest_state import NewestState

from calm_lightning.testing import ConformanceSuite


class TestNewestState(ConformanceSuite):
    composition = NewestState(rank=3)
