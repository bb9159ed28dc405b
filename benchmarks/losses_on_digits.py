"""Compare the students of all losses on digits with the same student that learns from the labels alone.

    python benchmarks/losses_on_digits.py
    python benchmarks/losses_on_digits.py --seeds 2 --losses crd hint --epochs 10

Networks, taps and weights are those of `examples/all_losses.py`; none was tuned on the test split. The teacher is
trained on 1,000 digits, the student on the first 200 of these, so that the teacher knows more. For each seed, all
students share the teacher, the initial weights (except simkd, which has another network) and the order of samples. The
weights of the last epoch are tested on 600 digits. Differences are paired by seed; intervals are Student's t.
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

# Examples are scripts, not a package.
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import all_losses

TEACHER_SAMPLES, STUDENT_SAMPLES, TEACHER_EPOCHS = 1000, 200, 20
MULTILABEL = {"per_label_dkd", "per_label_pskd"}  # these need several labels per sample


def main():
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--losses", nargs="+", default=[name for name in all_losses.NAMES if name not in MULTILABEL | {"none"}]
    )
    parser.add_argument("--epochs", type=int, default=30, help="of the student")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    accuracy = {name: [] for name in ("teacher", "none", *options.losses)}
    for seed in range(options.seeds):
        weights, teacher_accuracy = train_teacher(seed)
        accuracy["teacher"].append(teacher_accuracy)
        for name in ("none", *options.losses):
            accuracy[name].append(train_student(name, seed, weights, options.epochs))
            print(f"seed {seed}  {name}  {accuracy[name][-1]:.4f}", file=sys.stderr, flush=True)
    minutes = (time.perf_counter() - start) / 60
    console = Console(width=120)
    console.print(table(accuracy))
    console.print(
        f"{options.seeds} seeds, {options.epochs} epochs; {platform.machine()}, {os.cpu_count()} cores, 1 thread, "
        f"torch {torch.__version__}, {date.today()}, {minutes:.0f} minutes"
    )


def train_teacher(seed):
    """Return the weights of a teacher trained on many digits, and its accuracy."""

    def recipe():
        stage = Stage({all_losses.teacher_net("digits").net: all_losses.label_term("digits")}, training(TEACHER_EPOCHS))
        return Recipe(data=all_losses.digits(TEACHER_SAMPLES), schedule=[stage])

    result = kdkit.run(recipe, seed=seed, device="cpu", progress=False)
    return result.student.network.state_dict(), result.metrics["teacher"]["accuracy"].value


def train_student(name, seed, weights, epochs):
    """Return the accuracy of a student trained on few digits with this loss."""

    def recipe():
        teacher = all_losses.teacher_net("digits")
        teacher.net.network.load_state_dict(weights)
        teacher.net.trained = True
        objectives = all_losses.student_objectives(name, "digits", teacher)
        return Recipe(data=all_losses.digits(STUDENT_SAMPLES), schedule=[Stage(objectives, training(epochs))])

    return kdkit.run(recipe, seed=seed, device="cpu", progress=False).metrics["student"]["accuracy"].value


def training(epochs):
    """Return the example's training, but keep the last epoch: no choice is made on any split."""
    return replace(all_losses.training(epochs), keep="last")


def table(accuracy):
    """Return a row for each loss: its accuracy, and its gain over the labels alone."""
    alone = accuracy["none"]
    rows = Table("loss", "accuracy, %", "difference, points", "95 % interval", box=box.MARKDOWN)
    gains = {
        name: [100 * (value - baseline) for value, baseline in zip(values, alone, strict=True)]
        for name, values in accuracy.items()
    }
    for name in sorted(gains, key=lambda name: -statistics.mean(gains[name])):
        mean = f"{100 * statistics.mean(accuracy[name]):.2f}"
        if name in ("none", "teacher"):
            rows.add_row(f"{name} (labels alone)" if name == "none" else f"the {name}", mean, "", "")
        else:
            low, high = interval(gains[name])
            rows.add_row(name, mean, f"{statistics.mean(gains[name]):+.2f}", f"{low:+.2f} to {high:+.2f}")
    return rows


def interval(values):
    """Return the 95 % interval of a mean by Student's t; infinite for a single value."""
    mean, count = statistics.mean(values), len(values)
    if count < 2:
        return float("-inf"), float("inf")
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(values) / count**0.5
    return mean - half, mean + half


if __name__ == "__main__":
    main()
