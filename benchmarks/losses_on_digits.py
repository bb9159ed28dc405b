"""What each loss on the shelf is worth on digits, against the same student that learns from the labels alone.

    python benchmarks/losses_on_digits.py
    python benchmarks/losses_on_digits.py --seeds 2 --losses crd hint --epochs 10

Nets, taps and weights are those of `examples/all_losses.py`; none was tuned on the test split. The teacher is trained
on 1,000 digits, the student on the first 200 of these, so that there is something to gain. For each seed, all students
share the teacher, the initial weights (except simkd, which has another network) and the order of samples. The weights
of the last epoch are scored on 600 digits. Differences are paired by seed; intervals are Student's t.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats

import kdkit
from kdkit import Recipe, Stage

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import all_losses as zoo

TEACHER_SAMPLES, STUDENT_SAMPLES, TEACHER_EPOCHS = 1000, 200, 20
UNFIT = {"per_label_dkd", "per_label_pskd"}  # they need an answer for every label


def main():
    """Measure, and print a table."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--losses", nargs="+", default=[name for name in zoo.NAMES if name not in UNFIT | {"none"}])
    options.add_argument("--epochs", type=int, default=30, help="of the student")
    given = options.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    accuracy = {name: [] for name in ("teacher", "none", *given.losses)}
    for seed in range(given.seeds):
        weights, score = taught(seed)
        accuracy["teacher"].append(score)
        for name in ("none", *given.losses):
            accuracy[name].append(learned(name, seed, weights, given.epochs))
            print(f"seed {seed}  {name}  {accuracy[name][-1]:.4f}", file=sys.stderr, flush=True)
    minutes = (time.perf_counter() - began) / 60
    console = Console(width=120)
    console.print(table(accuracy))
    console.print(
        f"{given.seeds} seeds, {given.epochs} epochs; {platform.machine()}, {os.cpu_count()} cores, 1 thread, "
        f"torch {torch.__version__}, {date.today()}, {minutes:.0f} minutes"
    )


def taught(seed):
    """Return the weights of a teacher that learned from many digits, and its accuracy."""

    def recipe():
        stage = Stage({zoo.large("digits").net: zoo.truth("digits")}, training(TEACHER_EPOCHS))
        return Recipe(data=zoo.digits(TEACHER_SAMPLES), schedule=[stage])

    result = kdkit.run(recipe, seed=seed, device="cpu")
    return result.student.network.state_dict(), result.metrics["teacher"]["accuracy"].value


def learned(name, seed, weights, epochs):
    """Return the accuracy of a student that learned from few digits under this loss."""

    def recipe():
        teacher = zoo.large("digits")
        teacher.net.network.load_state_dict(weights)
        teacher.net.trained = True
        objectives = zoo.student_goals(name, "digits", teacher)
        return Recipe(data=zoo.digits(STUDENT_SAMPLES), schedule=[Stage(objectives, training(epochs))])

    return kdkit.run(recipe, seed=seed, device="cpu").metrics["student"]["accuracy"].value


def training(epochs):
    """Return the zoo's training, with the last epoch kept: no choice is made on any split."""
    return replace(zoo.training(epochs), keep="last")


def table(accuracy):
    """Return a row for each loss: its accuracy, and what it gains over the labels alone."""
    alone = accuracy["none"]
    shown = Table("loss", "accuracy, %", "difference, points", "95 % interval", box=box.MARKDOWN)
    gains = {
        name: [100 * (one - other) for one, other in zip(each, alone, strict=True)] for name, each in accuracy.items()
    }
    for name in sorted(gains, key=lambda name: -statistics.mean(gains[name])):
        mean = f"{100 * statistics.mean(accuracy[name]):.2f}"
        if name in ("none", "teacher"):
            shown.add_row(f"{name} (labels alone)" if name == "none" else f"the {name}", mean, "", "")
        else:
            low, high = interval(gains[name])
            shown.add_row(name, mean, f"{statistics.mean(gains[name]):+.2f}", f"{low:+.2f} to {high:+.2f}")
    return shown


def interval(values):
    """Return the 95 % interval of a mean by Student's t; nothing is known from one value."""
    mean, count = statistics.mean(values), len(values)
    if count < 2:
        return float("-inf"), float("inf")
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(values) / count**0.5
    return mean - half, mean + half


if __name__ == "__main__":
    main()
