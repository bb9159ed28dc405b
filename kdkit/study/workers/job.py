"""A cell made ready to be run anywhere: what its recipe is called with, where it writes, and what is recorded of it."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from kdkit.engine.options import RunOptions
from kdkit.engine.run import run
from kdkit.engine.run_record import Origin
from kdkit.engine.storage.run_folder import can_resume
from kdkit.recipe.recipe import Recipe
from kdkit.utils.files import write

CELL = "cell.json"  # written last, so that a cell with it is finished


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a cell ended. seconds: of this go. error: why it failed."""

    seconds: float = 0.0
    error: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One cell to be run, or some stages of a run. folder: its own. given: what its recipe is called with."""

    name: str
    folder: Path
    recipe: Callable[..., Recipe]
    given: Mapping[str, Any]
    origin: Origin
    options: RunOptions
    callbacks: Sequence[object] = ()

    def do(self) -> JobResult:
        """Run it, or go on with it, and mark it as finished; whatever it raises is told and not raised."""
        began = time.perf_counter()
        try:
            options = replace(self.options, out=self.folder, resume=can_resume(self.folder))
            run(lambda: self.recipe(**self.given), options, callbacks=self.callbacks, origin=self.origin)
        except Exception as error:  # whatever a recipe raises must not cost the other cells
            return JobResult(seconds=time.perf_counter() - began, error=error)
        seconds = time.perf_counter() - began
        if options.only is None:
            write(self.folder / CELL, json.dumps({"seconds": seconds}))
        return JobResult(seconds=seconds)


class Workers(Protocol):
    """Whoever runs cells."""

    @property
    def room(self) -> bool:
        """Whether another cell may be begun."""
        ...

    def begin(self, work: Job) -> None:
        """Begin a cell. Raises KdkitError where it cannot be brought to a worker."""
        ...

    def next_ended(self) -> tuple[str, JobResult]:
        """Wait until one of those that were begun has ended; return its name and how it ended."""
        ...

    def close(self) -> None:
        """Stop what is still running; the folders of its cells can be gone on with."""
        ...


class InProcess:
    """This process, one cell at a time."""

    def __init__(self) -> None:
        self._begun: list[Job] = []

    @property
    def room(self) -> bool:
        """Whether nothing was begun."""
        return not self._begun

    def begin(self, work: Job) -> None:
        """Keep it for `next_ended`."""
        self._begun.append(work)

    def next_ended(self) -> tuple[str, JobResult]:
        """Run what was begun."""
        work = self._begun.pop()
        return work.name, work.do()

    def close(self) -> None:
        """Leave everything as it is."""
