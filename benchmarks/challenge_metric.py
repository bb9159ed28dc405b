"""How much faster the challenge metric is than the loops it is defined by, on as many records as the Challenge has.

    python benchmarks/challenge_metric.py

The loops go record by record and cell by cell over arrays, as the definition reads (Perez Alday et al. 2020; Reyna et
al. 2021) and as the official scorers compute it. Both are run in turns, and the medians compared. Beside it stands what
a bootstrap interval of the ranked scores costs on the same records.
"""

import os
import platform
import statistics
import time

import numpy as np

from kdkit import Predictions
from kdkit.metrics import BootstrapInterval, MacroAUPRC, MacroAUROC
from kdkit_ecg.labels import NORMAL, scored_classes
from kdkit_ecg.metrics import ChallengeMetric, challenge_metric
from kdkit_ecg.metrics.official import weights

RECORDS, ROUNDS = 43_101, 5
OFTEN = 0.06  # of the records have a class, so that one has about 1.5 of them


def records(year):
    """Return labels, answers that are mostly right, and logits, (records, classes) each."""
    random = np.random.default_rng(year)
    classes = len(scored_classes(year).names)
    labels = random.random((RECORDS, classes)) < OFTEN
    logits = 4 * labels - 2 + random.normal(0, 1.2, labels.shape)
    return labels, logits >= 0, logits


def by_loops(labels, answers, year):
    """Return the metric as it is defined: what the answers earn, between what the two extremes earn."""
    normal = np.zeros_like(labels)
    normal[:, scored_classes(year).codes.index(NORMAL)] = True
    earned, right, inactive = (np.sum(weights(year) * shared(labels, each)) for each in (answers, labels, normal))
    return (earned - inactive) / (right - inactive) if right != inactive else 0.0


def shared(labels, answers):
    """Return (classes, classes): how often a class was answered where another is true, each record's one shared."""
    count, classes = labels.shape
    table = np.zeros((classes, classes))
    for record in range(count):
        among = max(1.0, float(np.sum(np.logical_or(labels[record], answers[record]))))
        for true in range(classes):
            if labels[record, true]:
                for answered in range(classes):
                    if answers[record, answered]:
                        table[true, answered] += 1.0 / among
    return table


def timed(function, *given):
    """Return what a call returns, and its seconds."""
    began = time.perf_counter()
    result = function(*given)
    return result, time.perf_counter() - began


def compare(year):
    """Print the ratio for one year."""
    labels, answers, _ = records(year)
    challenge_metric(labels, answers, year)  # reads the table of weights
    pairs = []
    for _ in range(ROUNDS):
        (slow, loops), (fast, ours) = (
            timed(by_loops, labels, answers, year),
            timed(challenge_metric, labels, answers, year),
        )
        assert abs(slow - fast) < 1e-9
        pairs.append((loops, ours))
    loops, ours = (statistics.median(each) for each in zip(*pairs, strict=True))
    print(
        f"{year}, {RECORDS:,} records x {labels.shape[1]} classes: loops {loops:.2f} s, ours {ours * 1e3:.1f} ms, "
        f"{statistics.median(a / b for a, b in pairs):.0f}x"
    )


def intervals(year):
    """Print what an interval of 1000 resamples takes."""
    labels, _, logits = records(year)
    test = Predictions(labels=labels.astype(np.float32), outputs=logits, classes=scored_classes(year).names)
    for score in (MacroAUPRC(), MacroAUROC(), ChallengeMetric(year)):
        _, seconds = timed(BootstrapInterval(score).compute, test)
        print(f"{year}, interval of {score.name}, 1000 resamples: {seconds:.2f} s")


def main():
    """Measure both years, and print ratios."""
    for year in (2020, 2021):
        compare(year)
    intervals(2020)
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    print(f"numpy {np.__version__}, {os.cpu_count()} cores, {platform.machine()}, load {load}, {ROUNDS} rounds")


if __name__ == "__main__":
    main()
