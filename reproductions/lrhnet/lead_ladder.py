"""Ladders of lead sets, whose rungs teach LRH-Net: each rung is an SE-ResNet that learns from all rungs above it.

The trials of all rungs and students, and their results: scores by number of rungs, and each disease's gap to the rungs.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, stdev
from typing import Any, NamedTuple

from kdkit import RecipeError, Study, Trial
from kdkit.metrics import Difference
from kdkit_ecg import Leads
from reproductions.lrhnet.comparisons import CM, TrainedNet, difference, score_of
from reproductions.lrhnet.grid import Run
from reproductions.lrhnet.recipe import recipe

Rungs = tuple[int, ...]  # the leads of each rung, from the top
SCORES = {CM: "challenge metric", "macro_auprc": "macro AUPRC", "macro_f1": "macro-F1", "micro_f1": "micro-F1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladders:
    """The students to train: for each ladder, one that learns from no rung, one from the first, one from two ...

    leads: of the students; None for those of each ladder's last rung. Rungs with fewer leads do not teach a student.
    Raises RecipeError for a number of leads without a lead set, for rungs that do not go down, and for a student that
    no rung can teach.
    """

    ladders: Sequence[Rungs]
    leads: Sequence[int] | None
    runs: Sequence[Run]
    shared: Mapping[str, Any]

    def __post_init__(self) -> None:
        for rungs in self.ladders:
            if list(rungs) != sorted(set(rungs), reverse=True):
                raise RecipeError(f"a ladder goes down, such as 12-6-3; got {dashed(rungs)}")
        for count in (*(count for rungs in self.ladders for count in rungs), *(self.leads or ())):
            Leads(count)  # raises RecipeError for a number without a lead set
        for (first, *rest), leads in product(self.ladders, self.leads or ()):
            if first < leads:
                raise RecipeError(f"no rung of {dashed((first, *rest))} can teach a student of {leads} leads")

    def students(self) -> Iterator[tuple[Rungs, int, tuple[Rungs, ...]]]:
        """Yield the rungs that can teach a student, the student's leads, and the rungs of each of its trials."""
        for ladder in self.ladders:
            for leads in self.leads or ladder[-1:]:
                rungs = tuple(count for count in ladder if count >= leads)
                yield rungs, leads, tuple(rungs[:count] for count in range(len(rungs) + 1))

    def trials(self) -> tuple[Trial, ...]:
        """Return the trials in order: run by run, and every rung before those below it."""
        trials: dict[str, Trial] = {}  # by name, since ladders share rungs
        for run in self.runs:
            for rungs, leads, taught_by in self.students():
                rung_trials = [self._rung_trial(rungs[: index + 1], run) for index in range(len(rungs))]
                student_trials = [self._student_trial(leads, teachers, run) for teachers in taught_by]
                trials.update((trial.name, trial) for trial in (*rung_trials, *student_trials))
        return tuple(trials.values())

    def _rung_trial(self, chain: Rungs, run: Run) -> Trial:
        return self._trial(rung_net(chain, run), chain[-1], chain[:-1], run)

    def _student_trial(self, leads: int, rungs: Rungs, run: Run) -> Trial:
        return self._trial(student_net(leads, rungs, run), leads, rungs, run)

    def _trial(self, net: TrainedNet, leads: int, rungs: Rungs, run: Run) -> Trial:
        teachers = tuple(rung_net(rungs[: index + 1], run).trial for index in range(len(rungs)))
        options = {"row": net.net, "leads": leads, "teacher_leads": rungs, "fold": run.fold, **self.shared}
        return Trial(name=net.trial, recipe=recipe, options=options, needs={"teachers": teachers}, seed=run.seed)


class Point(NamedTuple):
    """A score of students that learned from this many rungs, x100, over runs.

    against_none: the difference to students that learned from none, and what its interval is over.
    """

    ladder: Rungs
    leads: int
    rungs: int
    score: str
    mean: float
    sd: float | None
    runs: int
    against_none: tuple[Difference, str] | None


class Gap(NamedTuple):
    """The AUPRC of one disease, x100: of a student, and of the top and the nearest of its rungs."""

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
    for rungs, leads, taught_by in ladders.students():
        without_rungs = _ready_students(ladders, leads, (), ready)
        for count, teachers in enumerate(taught_by):
            students = _ready_students(ladders, leads, teachers, ready)
            for score in SCORES if students else ():
                values = [100 * score_of(study, student, score) for student in students.values()]
                against_none = difference(study, students, without_rungs, score, ladders.shared) if count else None
                sd = stdev(values) if len(values) > 1 else None
                yield Point(rungs, leads, count, score, fmean(values), sd, len(values), against_none)


def gaps(study: Study, ladders: Ladders, ready: Collection[str]) -> Iterator[Gap]:
    """Yield the gap of each disease with positives, mean over runs; that of a student of no rung is to the top one."""
    for rungs, leads, taught_by in ladders.students():
        for count, teachers in enumerate(taught_by):
            students = _ready_students(ladders, leads, teachers, ready)
            students = {run: net for run, net in students.items() if rung_net(rungs[:1], run).trial in ready}
            top = _auprc_by_disease(study, [rung_net(rungs[:1], run) for run in students])
            nearest = _auprc_by_disease(study, [rung_net(teachers or rungs[:1], run) for run in students])
            positives = [_positives(study, student) for student in students.values()]
            for disease, auprc in _auprc_by_disease(study, list(students.values())).items():
                mean = fmean(counts[disease] for counts in positives)
                yield Gap(rungs, leads, count, disease, mean, auprc, top[disease], nearest[disease])


def rung_net(chain: Rungs, run: Run) -> TrainedNet:
    """Return the trial and the network of a chain's last rung."""
    return TrainedNet(
        f"rung-{dashed(chain)}-fold{run.fold}-seed{run.seed}", "assistant" if len(chain) > 1 else "teacher"
    )


def student_net(leads: int, rungs: Rungs, run: Run) -> TrainedNet:
    """Return the trial and the network of a student."""
    name = f"student-{leads}-of-{dashed(rungs) or 'none'}-fold{run.fold}-seed{run.seed}"
    return TrainedNet(name, "smlkd" if rungs else "alone")


def dashed(rungs: Rungs) -> str:
    """Return a ladder as it is written on the command line, such as 12-6-3."""
    return "-".join(map(str, rungs))


def _ready_students(ladders: Ladders, leads: int, rungs: Rungs, ready: Collection[str]) -> dict[Run, TrainedNet]:
    students = {run: student_net(leads, rungs, run) for run in ladders.runs}
    return {run: student for run, student in students.items() if student.trial in ready}


def _auprc_by_disease(study: Study, nets: Sequence[TrainedNet]) -> dict[str, float]:
    """Return the AUPRC x100 of each disease, mean over the runs whose test fold has positives of it."""
    values: dict[str, list[float]] = {}
    for net in nets:
        for disease, auprc in study.metrics(net.trial)[net.net]["macro_auprc"].by_class.items():
            values.setdefault(disease, []).append(100 * auprc)
    return {disease: fmean(figures) for disease, figures in values.items()}


def _positives(study: Study, net: TrainedNet) -> dict[str, float]:
    test = study.predictions(*net).test
    return dict(zip(test.classes, (test.labels > 0.5).sum(0).tolist(), strict=True))
