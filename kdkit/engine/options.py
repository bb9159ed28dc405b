"""How a recipe is run: where, in which precision, from which seed. None of it changes what is learned from what."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from kdkit.errors import RecipeError, did_you_mean
from kdkit.utils.devices import Precision, autocast, find_device

TEACHER_CACHE = "teacher_cache"  # the folder beside run folders in which they are recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of a run.

    out: the run folder; None keeps nothing on disk. resume: go on with the run in that folder, from its last epoch.
    device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best that is there.
    precision: "fp32", or autocast in "bf16" or "fp16" (with a gradient scaler).
    compile: compile each lesson with torch.compile.
    gradients: at every so many updates, record the norms of the terms' gradients and the cosines between them, as means
    of each epoch; 0 for never. Costs a backward pass for each term then, and memory for as many gradients.
    answers: where it is recorded what frozen teachers say, so that they are asked once: "auto" for the folder `answers`
    beside the run folder, which runs share (a temporary one where nothing is kept on disk), a folder, or "off".
    answers_size: gigabytes that this folder may take; the answers that were not used for longest are deleted.
    only: names of stages to train and leave unscored, where all that they need is finished in `out`; None for all.
    """

    out: Path | None = None
    device: str = "auto"
    precision: Precision = "fp32"
    seed: int = 0
    compile: bool = False
    gradients: int = 0
    teacher_cache: Literal["auto", "off"] | Path = "auto"
    teacher_cache_size: float = 20.0
    resume: bool = False
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise RecipeError(
                f"precision is one of {', '.join(get_args(Precision))}; got {self.precision!r}; "
                f"{did_you_mean(str(self.precision), get_args(Precision))}"
            )
        if isinstance(self.out, str):
            object.__setattr__(self, "out", Path(self.out))
        self._require_teacher_cache()
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise RecipeError(f"a seed is a whole number of at least 0; got {self.seed!r}")
        if isinstance(self.gradients, bool) or not isinstance(self.gradients, int) or self.gradients < 0:
            raise RecipeError(f"gradients is a whole number of updates, 0 for never; got {self.gradients!r}")
        if self.gradients and self.compile:
            raise RecipeError(
                "a compiled lesson does not give the gradient of each term apart; leave out compile or gradients"
            )
        if self.only is not None and self.out is None:
            raise RecipeError("to train some stages alone, say which run folder they are of: out=FOLDER")
        if self.resume and self.out is None:
            raise RecipeError("to resume, say which run folder to go on with: --out FOLDER, or out=FOLDER in Python")

    def teacher_cache_folder(self) -> Path:
        """Return where answers are recorded. Raises RecipeError where no folder is named."""
        if isinstance(self.teacher_cache, Path):
            return self.teacher_cache
        if self.out is None or self.teacher_cache == "off":
            raise RecipeError("answers are recorded in no lasting folder; name one: teacher_cache=FOLDER")
        name = (
            TEACHER_CACHE if self.out.name != TEACHER_CACHE else f"recorded-{TEACHER_CACHE}"
        )  # the run itself may be called so
        return self.out.parent / name

    def torch_device(self) -> torch.device:
        """Return the device. Raises RecipeError where it is not there."""
        return find_device(self.device)

    def _require_teacher_cache(self) -> None:
        if self.teacher_cache not in ("auto", "off"):
            if not self.teacher_cache or not isinstance(self.teacher_cache, str | Path):
                raise RecipeError(f"teacher_cache is 'auto', 'off' or a folder; got {self.teacher_cache!r}")
            object.__setattr__(self, "teacher_cache", Path(self.teacher_cache))
        size = self.teacher_cache_size
        if isinstance(size, bool) or not isinstance(size, float | int) or not 0 < size < float("inf"):
            raise RecipeError(f"teacher_cache_size is a number of gigabytes above 0; got {size!r}")

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context that forward passes run in."""
        return autocast(self.precision, device)
