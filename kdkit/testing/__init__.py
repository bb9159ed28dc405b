"""Contract checks for plugins: call them in the tests of a custom loss, metric, tap or schedule."""

from kdkit.testing.losses import check_loss
from kdkit.testing.metrics import check_metric
from kdkit.testing.schedules import check_schedule
from kdkit.testing.taps import check_tap

__all__ = ["check_loss", "check_metric", "check_schedule", "check_tap"]
