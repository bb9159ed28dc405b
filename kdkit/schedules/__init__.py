"""Who learns from whom, and when: nets and a way of guiding become stages."""

from kdkit.schedules.by_hand import Stages
from kdkit.schedules.guiding import Guiding, Level
from kdkit.schedules.multilevel import MultiLevel
from kdkit.schedules.parallel import Parallel
from kdkit.schedules.sequential import Sequential

__all__ = ["Guiding", "Level", "MultiLevel", "Parallel", "Sequential", "Stages"]
