"""The trials of LRH-Net's tables: one for each row, number of leads, fold and seed, after those of its teachers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from kdkit import RecipeError, Trial
from kdkit.errors import did_you_mean
from reproductions.lrhnet.recipe import TAUGHT_ROWS, recipe

TITLES = {
    "teacher": "SE-ResNet",
    "cnn1d": "1D-CNN",
    "alone": "LRH-Net",
    "kd": "+ vanilla KD",
    "fitnet": "+ FitNet",
    "pskd": "+ PS-KD",
    "cross_layer": "+ cross-layer",
    "smlkd": "+ S-MLKD",
    "pmlkd": "+ P-MLKD",
}
MULTILEVEL = ("smlkd", "pmlkd")  # for students with fewer leads than the teacher's twelve


class Run(NamedTuple):
    """A fold and a seed: trials of different rows are compared in pairs of the same run."""

    fold: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A part of the tables; shared: the options that all trials have.

    Raises RecipeError for a row that does not exist, or if there is no row, number of leads or run.
    """

    rows: Sequence[str]
    leads: Sequence[int]
    runs: Sequence[Run]
    shared: Mapping[str, Any]

    def __post_init__(self) -> None:
        for row in self.rows:
            if row not in TITLES:
                raise RecipeError(f"{row!r} is not a row of the tables; {did_you_mean(row, TITLES)}")
        if not (self.rows and self.leads and self.runs):
            raise RecipeError("name at least one row, number of leads, fold and seed")

    def trials(self) -> tuple[Trial, ...]:
        """Return the trials in order: run by run, and teachers before their students."""
        trials: dict[str, Trial] = {}  # by name, since rows share teachers
        for run in self.runs:
            for leads, row in product(self.leads, self.rows):
                if not (leads == 12 and row in MULTILEVEL):
                    trials.update((trial.name, trial) for trial in self._with_teachers(row, leads, run))
        return tuple(trials.values())

    def _with_teachers(self, row: str, leads: int, run: Run) -> Iterable[Trial]:
        teachers = teachers_of(row, leads)
        for teacher_row, teacher_leads in teachers:
            yield from self._with_teachers(teacher_row, teacher_leads, run)
        options = {
            "row": row,
            "leads": leads,
            "teacher_leads": tuple(teacher_leads for _, teacher_leads in teachers),
            "fold": run.fold,
            **self.shared,
        }
        needs = {"teachers": tuple(trial_name(*teacher, run) for teacher in teachers)}
        yield Trial(name=trial_name(row, leads, run), recipe=recipe, options=options, needs=needs, seed=run.seed)


def teachers_of(row: str, leads: int) -> tuple[tuple[str, int], ...]:
    """Return the row and the leads of each teacher, starting with the one of twelve leads."""
    if row not in TAUGHT_ROWS:
        return ()
    second = {"smlkd": "assistant", "pmlkd": "teacher"}.get(row)
    return (("teacher", 12), *([(second, leads)] if second else []))


def trial_name(row: str, leads: int, run: Run) -> str:
    """Return the name of a trial."""
    return f"{row}-{leads}-fold{run.fold}-seed{run.seed}"
