"""Whether one kind of net is better than another: over runs with the same fold and seed, or over the records of one."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from kdkit import Study
from kdkit.metrics import Difference, paired_bootstrap, paired_t_interval
from kdkit_ecg import ChallengeMetric, Folds
from reproductions.lrhnet.grid import Run

CM = "challenge_metric"
FOLDS = 5  # that Challenge2020 makes where no file of folds is given


class Place(NamedTuple):
    """Where a net's results are: a cell of a study, and the name of the net."""

    trial: str
    net: str


def difference(
    study: Study, one: Mapping[Run, Place], other: Mapping[Run, Place], score: str, shared: Mapping[str, Any]
) -> tuple[Difference, str] | None:
    """Return how much better one is, x100, and what that rests on; None where nothing can be said.

    A single run is compared over the records of its test fold, by the challenge metric alone.
    """
    both = [at for at in one if at in other]
    if len(both) > 1:
        ours, theirs = (
            dict[Hashable, float]({at: value(study, each[at], score) for at in both}) for each in (one, other)
        )
        return _x100(paired_t_interval(ours, theirs, overlap=overlap(both, shared))), f"{len(both)} runs"
    if not both or score != CM:
        return None
    said = [study.predictions(*each[both[0]]) for each in (one, other)]
    return _x100(paired_bootstrap(metric(shared), *said)), f"{len(said[0].test)} records of one run"


def value(study: Study, place: Place, score: str) -> float:
    """Return a score of a net."""
    return study.metrics(place.trial)[place.net][score].value


def metric(shared: Mapping[str, Any]) -> ChallengeMetric:
    """Return the challenge metric as the cells have it."""
    return ChallengeMetric(2020, add_highest=shared["preset"] == "paper")


def overlap(runs: Sequence[Run], shared: Mapping[str, Any]) -> float:
    """Return what paired_runs asks for: a fold of those learned from; 0 where runs share no records but by seed."""
    if len({at.fold for at in runs}) < 2 or not shared["data"]:
        return 0.0
    folds = Folds.read(shared["folds"]).k if shared["folds"] else FOLDS
    return 1 / (folds - (1 if shared["preset"] == "paper" else 2))


def _x100(plain: Difference) -> Difference:
    low, high = plain.interval
    return replace(plain, value=100 * plain.value, interval=(100 * low, 100 * high))
