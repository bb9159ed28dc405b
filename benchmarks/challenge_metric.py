"""Compare the challenge metric with plain loops over its definition, on as many records as the Challenge has.

    python benchmarks/challenge_metric.py

The loops are over records and pairs of classes, as in the definition (Perez Alday et al. 2020; Reyna et al. 2021) and
in the official scorers. Both run alternately, and the medians are compared. The time of a bootstrap interval on the
same records is measured as well.
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
from kdkit_ecg.metrics.official import reward_matrix

RECORDS, ROUNDS = 43_101, 5
PREVALENCE = 0.06  # of each class, so that a record has about 1.5 classes


def records(year):
    """Return labels, outputs that are mostly correct, and logits, (records, classes) each."""
    random = np.random.default_rng(year)
    classes = len(scored_classes(year).names)
    labels = random.random((RECORDS, classes)) < PREVALENCE
    logits = 4 * labels - 2 + random.normal(0, 1.2, labels.shape)
    return labels, logits >= 0, logits


def by_loops(labels, outputs, year):
    """Return the metric by its definition: the reward of the outputs, relative to those of two extremes."""
    normal = np.zeros_like(labels)
    normal[:, scored_classes(year).codes.index(NORMAL)] = True
    rewards = reward_matrix(year)
    observed, correct, inactive = (np.sum(rewards * confusion(labels, rows)) for rows in (outputs, labels, normal))
    return (observed - inactive) / (correct - inactive) if correct != inactive else 0.0


def confusion(labels, outputs):
    """Return (classes, classes): predicted classes by true class, each count divided by the record's classes."""
    count, classes = labels.shape
    table = np.zeros((classes, classes))
    for record in range(count):
        union = max(1.0, float(np.sum(np.logical_or(labels[record], outputs[record]))))
        for true in range(classes):
            if labels[record, true]:
                for predicted in range(classes):
                    if outputs[record, predicted]:
                        table[true, predicted] += 1.0 / union
    return table


def timed(function, *args):
    """Return the result of a call, and its seconds."""
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def compare(year):
    """Print the ratio for one year."""
    labels, outputs, _ = records(year)
    challenge_metric(labels, outputs, year)  # reads the table of rewards, which is cached
    pairs = []
    for _ in range(ROUNDS):
        expected, loops = timed(by_loops, labels, outputs, year)
        value, kdkit = timed(challenge_metric, labels, outputs, year)
        assert abs(value - expected) < 1e-9
        pairs.append((loops, kdkit))
    loops, kdkit = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    print(
        f"{year}, {RECORDS:,} records x {labels.shape[1]} classes: loops {loops:.2f} s, kdkit {kdkit * 1e3:.1f} ms, "
        f"{statistics.median(a / b for a, b in pairs):.0f}x"
    )


def intervals(year):
    """Print the time of an interval with 1000 resamples."""
    labels, _, logits = records(year)
    test = Predictions(labels=labels.astype(np.float32), outputs=logits, classes=scored_classes(year).names)
    for metric in (MacroAUPRC(), MacroAUROC(), ChallengeMetric(year)):
        _, seconds = timed(BootstrapInterval(metric).compute, test)
        print(f"{year}, interval of {metric.name}, 1000 resamples: {seconds:.2f} s")


def main():
    """Measure both years, and print ratios."""
    for year in (2020, 2021):
        compare(year)
    intervals(2020)
    load = ", ".join(f"{load:.2f}" for load in os.getloadavg())
    print(f"numpy {np.__version__}, {os.cpu_count()} cores, {platform.machine()}, load {load}, {ROUNDS} rounds")


if __name__ == "__main__":
    main()
