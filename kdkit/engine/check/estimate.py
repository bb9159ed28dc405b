"""Estimate the cost of a stage: multiply-adds, the time of an epoch, and which teacher outputs are cached."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data
from kdkit.engine.check.multiply_adds import multiply_adds
from kdkit.engine.check.timing import StepTimes, time_reading, time_steps
from kdkit.engine.options import RunOptions
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.teacher_caching import CacheForecast, TeacherCaching
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Recipe
from kdkit.teachers.ema import Ema

_SECONDS = 0.8  # for timing the steps of all stages together


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """The cost of a stage.

    multiply_adds: of a forward pass for one sample, by the name of each student and each teacher that runs; networks
    that cannot be counted are left out. times: None if they could not be measured quickly.
    reading_seconds: the time in which one process reads the training data of an epoch, None if unknown.
    caching: whether the outputs of each frozen teacher are cached, by name.
    """

    multiply_adds: Mapping[str, int]
    times: StepTimes | None
    caching: Mapping[str, CacheForecast]
    reading_seconds: float | None = None

    @property
    def cached_seconds(self) -> float | None:
        """The time of an epoch in which cached teacher outputs are read instead of computed, in seconds."""
        if self.times is None:
            return None
        return self.times.seconds - sum(
            self.times.teachers[name] for name, forecast in self.caching.items() if forecast.is_cached
        )


class Estimator:
    """Estimates the stages of a recipe one after the other. The multiply-adds of each network are counted once."""

    def __init__(self, recipe: Recipe, options: RunOptions) -> None:
        self.data: Data = recipe.data
        self.options = options
        self.budget = _SECONDS / max(len(recipe.stages), 1)
        self.caching = TeacherCaching(recipe, recipe.stages, options, options.torch_device())
        self._counts: dict[Net[Any], int | None] = {}

    def estimate(self, open_stage: OpenStage, batch: Batch, untransformed: Batch) -> StageEstimate:
        """Return the estimate of an open stage without problems.

        batch, untransformed: a tiny batch, after and before the data's `batch_transform`.
        """
        # Before any step is timed: the cache key depends on the teachers as they are now.
        caching = self.caching.forecast(open_stage, batch)
        times = time_steps(open_stage, self.data, untransformed, self.options.precision, budget=self.budget)
        running: dict[str, Net[Any]] = {net.name: net for net in open_stage.stage.objectives}
        for teacher in open_stage.stage.teachers:
            if isinstance(teacher, Net | Ema):  # an Ema runs a copy of its network
                running[teacher.name] = teacher if isinstance(teacher, Net) else teacher.net
        for net in running.values():
            if net not in self._counts:
                self._counts[net] = multiply_adds(net, batch)
        open_stage.module.open_taps.clear()  # the counted pass left its features there
        counts = {name: self._counts[net] for name, net in running.items()}
        return StageEstimate(
            multiply_adds={name: count for name, count in counts.items() if count is not None},
            times=times,
            caching=caching,
            reading_seconds=None if times is None else time_reading(self.data, open_stage.stage.training),
        )
