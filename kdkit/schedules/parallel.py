"""Teachers learn alone, and the student learns from all of them."""

from collections.abc import Sequence
from typing import Any, Unpack

from kdkit.net import Net
from kdkit.recipe import Stage
from kdkit.schedules.guiding import GuidingOptions, Level, guiding_of, levels_of


class Parallel:
    """Every net but the last learns from the labels alone, and the last one, the student, from all of them.

    Nets that come trained have no stage of their own. P-MLKD of LRH-Net is a Parallel of three nets (Chauhan et al.
    2022, sec. 3). The options are those of `Guiding`.
    """

    def __init__(self, *nets: Net[Any] | Level, **guiding: Unpack[GuidingOptions]) -> None:
        self._levels = levels_of(nets, 2, "Parallel")
        self._guiding = guiding_of(guiding)

    def stages(self) -> Sequence[Stage]:
        """Return a stage for each untrained teacher, then the student's."""
        *teachers, student = self._levels
        alone = [self._guiding.stage(level, ()) for level in teachers if not level.net.trained]
        return [*alone, self._guiding.stage(student, [level.net for level in teachers])]
