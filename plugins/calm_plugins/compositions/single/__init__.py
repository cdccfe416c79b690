"""One backbone alone."""

from calm_plugins.compositions.single.composition import Single as Single
