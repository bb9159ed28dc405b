"""Everything that the stages of a run share."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from kdkit.data.dataset import LoaderSplit, Split
from kdkit.data.device_data import DeviceData
from kdkit.engine.callbacks import Callbacks
from kdkit.engine.check.plan import Plan
from kdkit.engine.failures.out_of_memory import explain_out_of_memory
from kdkit.engine.interrupts import Interrupts
from kdkit.engine.options import RunOptions
from kdkit.engine.stage.teacher_caching import TeacherCaching
from kdkit.recipe.recipe import Recipe, Stage
from kdkit.utils.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """The checked recipe and the options of a run, and the objects that all of its stages use."""

    recipe: Recipe
    plan: Plan
    options: RunOptions
    device: torch.device
    device_data: DeviceData
    callbacks: Callbacks
    interrupts: Interrupts
    teacher_caching: TeacherCaching

    def stage_seed(self, index: int) -> int:
        """Return the seed of a stage. A baseline has the seed of its stage, so that both draw the same numbers."""
        names = [stage.name for stage in self.plan.stages]
        baseline_of = self.plan.stages[index].baseline_of
        return derive_seed(self.options.seed, names.index(baseline_of) if baseline_of else index)

    def explain_out_of_memory(
        self, stage: Stage, split: Split | LoaderSplit, *, trains: bool
    ) -> AbstractContextManager[None]:
        """Return a context that explains out-of-memory errors, see `explain_out_of_memory`."""
        return explain_out_of_memory(stage, split, self.options, self.device, trains=trains)
