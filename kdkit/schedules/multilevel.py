"""Each level learns from every level above it."""

from collections.abc import Sequence
from typing import Any, Unpack

from kdkit.net import Net
from kdkit.recipe import Stage
from kdkit.schedules.guiding import GuidingOptions, Level, guiding_of, levels_of


class MultiLevel:
    """The first net learns from the labels alone, and each other one from the labels and from all nets before it.

    Shares stand in the order of the nets. Nets that come trained have no stage. S-MLKD of LRH-Net is a MultiLevel of
    three nets (Chauhan et al. 2022, sec. 3). The options are those of `Guiding`.
    """

    def __init__(self, *nets: Net[Any] | Level, **guiding: Unpack[GuidingOptions]) -> None:
        self._levels = levels_of(nets, 2, "MultiLevel")
        self._guiding = guiding_of(guiding)

    def stages(self) -> Sequence[Stage]:
        """Return a stage for each net that does not come trained, and for the last one in any case."""
        nets = [level.net for level in self._levels]
        return [
            self._guiding.stage(level, nets[:index])
            for index, level in enumerate(self._levels)
            if level is self._levels[-1] or not level.net.trained
        ]
