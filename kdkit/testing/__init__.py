"""What every plugin must hold: checks of a loss, a tap and a schedule, to be called in a plugin's own tests."""

from kdkit.testing.losses import check_loss
from kdkit.testing.schedules import check_schedule
from kdkit.testing.taps import check_tap

__all__ = ["check_loss", "check_schedule", "check_tap"]
