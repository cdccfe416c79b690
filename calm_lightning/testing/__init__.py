"""The conformance suite for compositions, and tiny backbones to test with.

See `calm_lightning.testing.conformance`. Nothing here is needed to train or to generate.
"""

from calm_lightning.testing.case import Case as Case
from calm_lightning.testing.conformance import CHECKS as CHECKS
from calm_lightning.testing.conformance import PROMISES as PROMISES
from calm_lightning.testing.conformance import ConformanceSuite as ConformanceSuite
from calm_lightning.testing.conformance import broken_promises as broken_promises
from calm_lightning.testing.conformance import check as check
from calm_lightning.testing.tiny import FAMILIES as FAMILIES
from calm_lightning.testing.tiny import TinySource as TinySource
from calm_lightning.testing.tiny import tiny_backbone as tiny_backbone
from calm_lightning.testing.tiny import tiny_tokenizer as tiny_tokenizer
from calm_lightning.testing.training import augmenting_report as augmenting_report
