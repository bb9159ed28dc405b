"""The schedules: parallel, sequential and multi-level."""

from collections.abc import Sequence
from typing import Any, Unpack

from kdkit.nets.net import Net
from kdkit.recipe.guidance import GuidingOptions, Level, guiding_of, levels_of
from kdkit.recipe.recipe import Stage


class Parallel:
    """Every net but the last learns from the labels alone, and the last one, the student, from all of them.

    Nets that come trained have no stage of their own. P-MLKD of LRH-Net is a Parallel of three nets (Chauhan et al.
    2022, sec. 3). The options are those of `Guidance`.
    """

    def __init__(self, *nets: Net[Any] | Level, **guidance: Unpack[GuidingOptions]) -> None:
        self._levels = levels_of(nets, 2, "Parallel")
        self._guiding = guiding_of(guidance)

    def stages(self) -> Sequence[Stage]:
        """Return a stage for each untrained teacher, then the student's."""
        *teachers, student = self._levels
        alone = [self._guiding.stage(level, ()) for level in teachers if not level.net.trained]
        return [*alone, self._guiding.stage(student, [level.net for level in teachers])]


class Sequential:
    """The first net learns from the labels alone, and each other one from the labels and the net before it.

    A first net that comes trained has no stage. With a middle-sized net in between this is teacher-assistant
    distillation (Mirzadeh et al. 2020). The options are those of `Guidance`.
    """

    def __init__(self, *nets: Net[Any] | Level, **guidance: Unpack[GuidingOptions]) -> None:
        self._levels = levels_of(nets, 2, "Sequential")
        self._guiding = guiding_of(guidance)

    def stages(self) -> Sequence[Stage]:
        """Return a stage for each net that does not come trained, and for the last one in any case."""
        before = [(), *((level.net,) for level in self._levels)]
        return [
            self._guiding.stage(level, teachers)
            for level, teachers in zip(self._levels, before, strict=False)
            if level is self._levels[-1] or not level.net.trained
        ]


class MultiLevel:
    """The first net learns from the labels alone, and each other one from the labels and from all nets before it.

    Shares stand in the order of the nets. Nets that come trained have no stage. S-MLKD of LRH-Net is a MultiLevel of
    three nets (Chauhan et al. 2022, sec. 3). The options are those of `Guidance`.
    """

    def __init__(self, *nets: Net[Any] | Level, **guidance: Unpack[GuidingOptions]) -> None:
        self._levels = levels_of(nets, 2, "MultiLevel")
        self._guiding = guiding_of(guidance)

    def stages(self) -> Sequence[Stage]:
        """Return a stage for each net that does not come trained, and for the last one in any case."""
        nets = [level.net for level in self._levels]
        return [
            self._guiding.stage(level, nets[:index])
            for index, level in enumerate(self._levels)
            if level is self._levels[-1] or not level.net.trained
        ]
