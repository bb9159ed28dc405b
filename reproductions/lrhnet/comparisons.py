"""Compare two kinds of network: over pairs of runs, or over the test records of a single run."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from kdkit import Study
from kdkit.metrics import Difference, paired_bootstrap, paired_t_interval
from kdkit_ecg import ChallengeMetric, Folds
from reproductions.lrhnet.grid import Run

CM = "challenge_metric"
FOLDS = 5  # into which Challenge2020 divides the records if there is no file of folds


class TrainedNet(NamedTuple):
    """A network with results: the name of its trial, and its name there."""

    trial: str
    net: str


def difference(
    study: Study,
    nets: Mapping[Run, TrainedNet],
    baselines: Mapping[Run, TrainedNet],
    score: str,
    shared: Mapping[str, Any],
) -> tuple[Difference, str] | None:
    """Return how much the score exceeds the baseline's, x100, and what the interval is over.

    With a single common run, the test records are resampled, for the challenge metric alone. Returns None for other
    scores of a single run, and if there is no common run.
    """
    runs = [run for run in nets if run in baselines]
    if len(runs) > 1:
        values, baseline_values = (
            dict[Hashable, float]({run: score_of(study, trained[run], score) for run in runs})
            for trained in (nets, baselines)
        )
        return times_100(paired_t_interval(values, baseline_values, overlap=overlap(runs, shared))), f"{len(runs)} runs"
    if not runs or score != CM:
        return None
    predictions = [study.predictions(*trained[runs[0]]) for trained in (nets, baselines)]
    bootstrap = paired_bootstrap(challenge_metric(shared), *predictions)
    return times_100(bootstrap), f"{len(predictions[0].test)} records of one run"


def score_of(study: Study, trained: TrainedNet, score: str) -> float:
    """Return a score of a network."""
    return study.metrics(trained.trial)[trained.net][score].value


def challenge_metric(shared: Mapping[str, Any]) -> ChallengeMetric:
    """Return the challenge metric as the trials compute it."""
    return ChallengeMetric(2020, add_highest=shared["preset"] == "paper")


def overlap(runs: Sequence[Run], shared: Mapping[str, Any]) -> float:
    """Return the argument of paired_t_interval: the size of a test fold relative to the training records.

    Returns 0 if runs differ by seed only, and for simulated records, which folds do not share.
    """
    if len({run.fold for run in runs}) < 2 or not shared["data"]:
        return 0.0
    folds = Folds.read(shared["folds"]).k if shared["folds"] else FOLDS
    # The corrected protocol has a validation fold in addition to the test fold; the paper validates on the test fold.
    return 1 / (folds - (1 if shared["preset"] == "paper" else 2))


def times_100(result: Difference) -> Difference:
    """Return a difference and its interval in points."""
    low, high = result.interval
    return replace(result, value=100 * result.value, interval=(100 * low, 100 * high), error=100 * result.error)
