"""A chain: each net learns from the one before it."""

from collections.abc import Sequence
from typing import Any, Unpack

from kdkit.net import Net
from kdkit.recipe import Stage
from kdkit.schedules.guiding import GuidingOptions, Level, guiding_of, levels_of


class Sequential:
    """The first net learns from the labels alone, and each other one from the labels and the net before it.

    A first net that comes trained has no stage. With a middle-sized net in between this is teacher-assistant
    distillation (Mirzadeh et al. 2020). The options are those of `Guiding`.
    """

    def __init__(self, *nets: Net[Any] | Level, **guiding: Unpack[GuidingOptions]) -> None:
        self._levels = levels_of(nets, 2, "Sequential")
        self._guiding = guiding_of(guiding)

    def stages(self) -> Sequence[Stage]:
        """Return a stage for each net that does not come trained, and for the last one in any case."""
        before = [(), *((level.net,) for level in self._levels)]
        return [
            self._guiding.stage(level, teachers)
            for level, teachers in zip(self._levels, before, strict=False)
            if level is self._levels[-1] or not level.net.trained
        ]
