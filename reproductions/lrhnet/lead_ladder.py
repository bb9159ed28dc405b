"""Ladders of lead sets: each rung is a SE-ResNet that learns from all rungs above it, and LRH-Net from all of them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

from kdkit import RecipeError, Study, Trial
from kdkit.metrics import Difference
from kdkit_ecg import Leads
from reproductions.lrhnet.comparisons import CM, Place, difference, value
from reproductions.lrhnet.grid import Run
from reproductions.lrhnet.recipe import recipe

Rungs = tuple[int, ...]
SCORES = {CM: "challenge metric", "macro_auprc": "macro AUPRC", "macro_f1": "macro-F1", "micro_f1": "micro-F1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladders:
    """The students to train: of each ladder, one with so many leads that learns from none, one, two ... of its rungs.

    leads: of the students; those of each ladder's last rung where None. Rungs with fewer leads do not teach them.
    Raises RecipeError for a rung that is no set of leads, and for rungs that do not go down.
    """

    ladders: Sequence[Rungs]
    leads: Sequence[int] | None
    runs: Sequence[Run]
    shared: Mapping[str, Any]

    def __post_init__(self) -> None:
        for rungs in self.ladders:
            if list(rungs) != sorted(set(rungs), reverse=True):
                raise RecipeError(f"a ladder goes down, such as 12-6-3; got {'-'.join(map(str, rungs))}")
        for count in (*(count for rungs in self.ladders for count in rungs), *(self.leads or ())):
            Leads(count)  # refuses a number without a set

    def students(self) -> Iterator[tuple[Rungs, int, tuple[Rungs, ...]]]:
        """Yield each ladder as far as its student can learn from it, the student's leads, and the beginnings of it."""
        for ladder in self.ladders:
            for leads in self.leads or ladder[-1:]:
                rungs = tuple(count for count in ladder if count >= leads)
                yield rungs, leads, tuple(rungs[:count] for count in range(len(rungs) + 1))

    def trials(self) -> tuple[Trial, ...]:
        """Return the cells in their order: every rung before those below it, each once, fold by fold."""
        found: dict[str, Trial] = {}
        for at in self.runs:
            for rungs, leads, beginnings in self.students():
                chains = [self._rung(rungs[: place + 1], at) for place in range(len(rungs))]
                students = [self._student(leads, beginning, at) for beginning in beginnings]
                found.update((trial.name, trial) for trial in (*chains, *students))
        return tuple(found.values())

    def _rung(self, chain: Rungs, at: Run) -> Trial:
        return self._cell("assistant" if len(chain) > 1 else "teacher", chain[-1], chain[:-1], at)

    def _student(self, leads: int, rungs: Rungs, at: Run) -> Trial:
        return self._cell("smlkd" if rungs else "alone", leads, rungs, at)

    def _cell(self, row: str, leads: int, rungs: Rungs, at: Run) -> Trial:
        teachers = tuple(rung_name(rungs[: place + 1], at) for place in range(len(rungs)))
        name = student_name(leads, rungs, at) if row in ("smlkd", "alone") else rung_name((*rungs, leads), at)
        options = {"row": row, "leads": leads, "rungs": rungs, "fold": at.fold, **self.shared}
        return Trial(name=name, recipe=recipe, options=options, needs={"teachers": teachers}, seed=at.seed)


class Point(NamedTuple):
    """A score of students that learned from so many rungs, x100. against: those that had none, and over what."""

    ladder: Rungs
    leads: int
    rungs: int
    score: str
    mean: float
    sd: float | None
    runs: int
    against: tuple[Difference, str] | None


class Gap(NamedTuple):
    """The AUPRC x100 of one disease: of a student, and of its teachers. top: the first rung, nearest: the last."""

    ladder: Rungs
    leads: int
    rungs: int
    disease: str
    positives: float
    student: float
    top: float
    nearest: float


def points(study: Study, ladders: Ladders, ready: Collection[str]) -> Iterator[Point]:
    """Yield the scores of all students that are ready."""
    for rungs, leads, beginnings in ladders.students():
        alone = _students(ladders, leads, (), ready)
        for count, beginning in enumerate(beginnings):
            places = _students(ladders, leads, beginning, ready)
            for score in SCORES if places else ():
                values = [100 * value(study, place, score) for place in places.values()]
                against = difference(study, places, alone, score, ladders.shared) if count else None
                sd = stdev(values) if len(values) > 1 else None
                yield Point(rungs, leads, count, score, fmean(values), sd, len(values), against)


def gaps(study: Study, ladders: Ladders, ready: Collection[str]) -> Iterator[Gap]:
    """Yield the gap of each disease with positives, mean over runs; a student of no rung is held beside the first."""
    for rungs, leads, beginnings in ladders.students():
        for count, beginning in enumerate(beginnings):
            places = _students(ladders, leads, beginning, ready)
            tops = _diseases(study, {at: _rung_place(rungs[:1], at) for at in places}) if places else {}
            near = _diseases(study, {at: _rung_place(beginning or rungs[:1], at) for at in places})
            positives = [_positives(study, place) for place in places.values()]
            for disease, student in _diseases(study, places).items():
                mean = fmean(each[disease] for each in positives)
                yield Gap(rungs, leads, count, disease, mean, student, tops[disease], near[disease])


def rung_name(chain: Rungs, at: Run) -> str:
    """Return the name of the cell of a chain's last rung."""
    return f"rung-{'-'.join(map(str, chain))}-fold{at.fold}-seed{at.seed}"


def student_name(leads: int, rungs: Rungs, at: Run) -> str:
    """Return the name of the cell of a student."""
    return f"student-{leads}-of-{'-'.join(map(str, rungs)) or 'none'}-fold{at.fold}-seed{at.seed}"


def _students(ladders: Ladders, leads: int, rungs: Rungs, ready: Collection[str]) -> dict[Run, Place]:
    places = {at: Place(student_name(leads, rungs, at), "smlkd" if rungs else "alone") for at in ladders.runs}
    return {at: place for at, place in places.items() if place.trial in ready}


def _rung_place(chain: Rungs, at: Run) -> Place:
    return Place(rung_name(chain, at), "assistant" if len(chain) > 1 else "teacher")


def _diseases(study: Study, places: Mapping[Run, Place]) -> dict[str, float]:
    """Return the AUPRC x100 of each disease, mean over the runs whose test fold has positives of it."""
    found: dict[str, list[float]] = {}
    for place in places.values():
        for disease, figure in study.metrics(place.trial)[place.net]["macro_auprc"].by_class.items():
            found.setdefault(disease, []).append(100 * figure)
    return {disease: fmean(figures) for disease, figures in found.items()}


def _positives(study: Study, place: Place) -> dict[str, float]:
    test = study.predictions(*place).test
    return dict(zip(test.classes, (test.labels > 0.5).sum(0).tolist(), strict=True))
