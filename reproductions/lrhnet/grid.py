"""Which cells make LRH-Net's tables: each row, set of leads, fold and seed once, after the teachers that it needs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from kdkit import RecipeError, Trial
from kdkit.errors import did_you_mean
from reproductions.lrhnet.recipe import GUIDED, recipe

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
MULTILEVEL = ("smlkd", "pmlkd")  # which need fewer leads than their teacher's twelve


class Run(NamedTuple):
    """What pairs cells of different rows: they were trained on the same fold from the same seed."""

    fold: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Which part of the tables is asked for; `shared` are the options that all cells have.

    Raises RecipeError for a row that does not exist, or where nothing is asked for.
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
            raise RecipeError("name at least one row, set of leads, fold and seed")

    def trials(self) -> tuple[Trial, ...]:
        """Return the cells in their order: what teaches first, and fold by fold."""
        found: dict[str, Trial] = {}
        for at in self.runs:
            for leads, row in product(self.leads, self.rows):
                if not (leads == 12 and row in MULTILEVEL):
                    found.update((trial.name, trial) for trial in self._with_teachers(row, leads, at))
        return tuple(found.values())

    def _with_teachers(self, row: str, leads: int, at: Run) -> Iterable[Trial]:
        teachers = teachers_of(row, leads)
        for each, count in teachers:
            yield from self._with_teachers(each, count, at)
        rungs = tuple(count for _, count in teachers)
        options = {"row": row, "leads": leads, "rungs": rungs, "fold": at.fold, **self.shared}
        needs = {"teachers": tuple(name_of(each, count, at) for each, count in teachers)}
        yield Trial(name=name_of(row, leads, at), recipe=recipe, options=options, needs=needs, seed=at.seed)


def teachers_of(row: str, leads: int) -> tuple[tuple[str, int], ...]:
    """Return the row and the leads of each teacher, the one of twelve leads first."""
    if row not in GUIDED:
        return ()
    second = {"smlkd": "assistant", "pmlkd": "teacher"}.get(row)
    return (("teacher", 12), *([(second, leads)] if second else []))


def name_of(row: str, leads: int, at: Run) -> str:
    """Return the name of a cell."""
    return f"{row}-{leads}-fold{at.fold}-seed{at.seed}"
