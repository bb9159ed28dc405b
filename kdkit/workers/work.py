"""A cell made ready to be run anywhere: what its recipe is called with, where it writes, and what is recorded of it."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdkit.provenance import Origin
from kdkit.recipe import Recipe
from kdkit.runfolder import started
from kdkit.running import run
from kdkit.runoptions import RunOptions
from kdkit.stagefolder import write

CELL = "cell.json"  # written last, so that a cell with it is finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a cell ended. seconds: of this go. error: why it failed."""

    seconds: float = 0.0
    error: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One cell to be run, or some stages of a run. folder: its own. given: what its recipe is called with."""

    name: str
    folder: Path
    recipe: Callable[..., Recipe]
    given: Mapping[str, Any]
    origin: Origin
    options: RunOptions
    watchers: Sequence[object] = ()

    def do(self) -> Ended:
        """Run it, or go on with it, and mark it as finished; whatever it raises is told and not raised."""
        began = time.perf_counter()
        try:
            options = replace(self.options, out=self.folder, resume=started(self.folder))
            run(lambda: self.recipe(**self.given), options, watchers=self.watchers, origin=self.origin)
        except Exception as error:  # whatever a recipe raises must not cost the other cells
            return Ended(seconds=time.perf_counter() - began, error=error)
        seconds = time.perf_counter() - began
        if options.only is None:
            write(self.folder / CELL, json.dumps({"seconds": seconds}))
        return Ended(seconds=seconds)
