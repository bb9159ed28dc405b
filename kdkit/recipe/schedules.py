"""Schedules: parallel, sequential and multi-level distillation. A list of stages is also a schedule."""

from collections.abc import Sequence
from typing import Any, Unpack

from kdkit.nets.net import Net
from kdkit.recipe.guidance import GuidanceOptions, Level, as_levels, build_guidance
from kdkit.recipe.recipe import Stage


class _LevelSchedule:
    """Base class of schedules of networks in the order of their levels; a subclass defines their teachers."""

    def __init__(self, *nets: Net[Any] | Level, **options: Unpack[GuidanceOptions]) -> None:
        self._levels = as_levels(nets, 2, type(self).__name__)
        self._guidance = build_guidance(options)

    def __repr__(self) -> str:
        nets = ", ".join(level.net.name for level in self._levels)
        return f"{type(self).__name__}({nets}, {self._guidance})"

    def stages(self) -> Sequence[Stage]:
        """Return a stage for each network that is not yet trained, and always for the last one."""
        nets = [level.net for level in self._levels]
        return [
            self._guidance.stage(level, self._teachers(nets[:index]))
            for index, level in enumerate(self._levels)
            if level is self._levels[-1] or not level.net.trained
        ]

    def _teachers(self, earlier: Sequence[Net[Any]]) -> Sequence[Net[Any]]:
        """Return those of the earlier networks that the next one learns from."""
        raise NotImplementedError


class Parallel(_LevelSchedule):
    """All networks except the last learn from the labels only. The last one, the student, learns from all of them.

    Networks that are already trained have no stage, except the last one. P-MLKD of LRH-Net is a Parallel of three
    networks (Chauhan et al. 2022, sec. 3). The options are the fields of `Guidance`.
    """

    def _teachers(self, earlier: Sequence[Net[Any]]) -> Sequence[Net[Any]]:
        return earlier if len(earlier) == len(self._levels) - 1 else ()


class Sequential(_LevelSchedule):
    """The first network learns from the labels only, and each other one from the labels and the network before it.

    Networks that are already trained have no stage, except the last one. With a medium-sized network in between, this
    is teacher-assistant distillation (Mirzadeh et al. 2020). The options are the fields of `Guidance`.
    """

    def _teachers(self, earlier: Sequence[Net[Any]]) -> Sequence[Net[Any]]:
        return earlier[-1:]


class MultiLevel(_LevelSchedule):
    """The first network learns from the labels only, and each other one from the labels and all networks before it.

    Teacher weights are in the order of the networks. Networks that are already trained have no stage, except the last
    one. S-MLKD of LRH-Net is a MultiLevel of three networks (Chauhan et al. 2022, sec. 3). The options are the fields
    of `Guidance`.
    """

    def _teachers(self, earlier: Sequence[Net[Any]]) -> Sequence[Net[Any]]:
        return earlier
