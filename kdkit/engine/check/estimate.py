"""Estimate the cost of a stage: multiply-adds, the time of an epoch, and which teacher outputs are cached."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data
from kdkit.engine.check.step_times import StepTimes, time_reading, time_steps
from kdkit.engine.measurement.multiply_adds import multiply_adds
from kdkit.engine.options import RunOptions
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.teacher_caching import TeacherCaching, frozen_teachers, probe_samples
from kdkit.errors import CacheError
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Recipe, Stage
from kdkit.teachers.cache import Codec, EntryInfo, read_info
from kdkit.teachers.ema import Ema

_SECONDS = 0.8  # for timing the steps of all stages together


class CacheForecast(NamedTuple):
    """Whether the outputs of a teacher will be cached.

    reason: why they will not; "" if they will, or if no output is needed twice. folder: the cache folder; None if only
    this run reads it. entry: the existing entry that will be reused; None if there is none, or if an earlier stage
    trains the teacher. bytes: the most that this stage will write if nothing is cached yet.
    """

    is_cached: bool
    reason: str = ""
    folder: Path | None = None
    entry: EntryInfo | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """The cost of a stage.

    multiply_adds: of a forward pass for one sample, by the name of each student and each teacher that runs; networks
    that cannot be counted are left out. times: None if they could not be measured.
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
        self.caching = TeacherCaching(recipe, options, options.torch_device())
        self._counts: dict[Net[Any], int | None] = {}

    def estimate(self, open_stage: OpenStage, batch: Batch, untransformed: Batch) -> StageEstimate:
        """Return the estimate of an open stage without problems.

        batch, untransformed: a tiny batch, after and before the data's `batch_transform`.
        """
        # Before any step is timed: the cache key depends on the teachers as they are now.
        caching = {net.name: self._forecast(net, open_stage, batch) for net in frozen_teachers(open_stage.stage)}
        times = time_steps(open_stage, self.data, untransformed, budget=self.budget)
        running: dict[str, Net[Any]] = {net.name: net for net in open_stage.stage.objectives}
        for teacher in open_stage.stage.teachers:
            if isinstance(teacher, Net | Ema):  # an Ema runs a copy of its network
                running[teacher.name] = teacher if isinstance(teacher, Net) else teacher.net
        for net in running.values():
            if net not in self._counts:
                self._counts[net] = multiply_adds(net, batch)
        counts = {name: self._counts[net] for name, net in running.items()}
        return StageEstimate(
            multiply_adds={name: count for name, count in counts.items() if count is not None},
            times=times,
            caching=caching,
            reading_seconds=None if times is None else time_reading(self.data, open_stage.stage.training),
        )

    def _forecast(self, net: Net[Any], open_stage: OpenStage, batch: Batch) -> CacheForecast:
        """Return whether the outputs of a frozen teacher will be cached. Nothing is written."""
        caching, options = self.caching, self.options
        if options.teacher_cache == "off":
            return CacheForecast(False, "the cache is off")
        try:
            caching.location.identity.require()
            with torch.no_grad(), open_stage.autocast():  # the cache key depends on the latter
                split, session = caching.cached_split(net, open_stage), open_stage.sessions[net.name]
                if split is None:
                    return CacheForecast(False)
                probed = probe_samples(session, batch, split, autocast=open_stage.precision != "fp32")
                codec = Codec(caching.recipe.teacher_cache, probed.output)
                size = caching.new_outputs(open_stage.stage) * sum(part.bytes for part in codec.parts)
                folder = None if caching.location.is_private else caching.location.folder()
                entry = None if folder is None else self._existing_entry(folder, net, open_stage.stage)
                return CacheForecast(True, folder=folder, entry=entry, bytes=size)
        except CacheError as error:
            return CacheForecast(False, str(error))

    def _existing_entry(self, folder: Path, net: Net[Any], stage: Stage) -> EntryInfo | None:
        """Return the entry in the cache folder that a stage will reuse, or None."""
        stages = self.caching.recipe.stages
        before = stages[: stages.index(stage)]
        if any(net in earlier.objectives for earlier in before):  # its weights, and so its key, are not known yet
            return None
        with suppress(OSError):  # the run reports a folder that cannot be read
            # Computing the key reads all weights, so it is skipped if the cache is empty.
            if folder.is_dir() and any(folder.iterdir()):
                entry = read_info(folder / self.caching.key(net, stage).digest)
                return entry if entry is not None and entry.readable else None
        return None
