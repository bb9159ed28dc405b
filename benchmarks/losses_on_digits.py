"""Compare the students of all losses on digits with the same student that learns from the labels alone.

    python benchmarks/losses_on_digits.py
    python benchmarks/losses_on_digits.py --seeds 2 --losses crd hint --epochs 10

Networks and taps are those of `examples/all_losses.py`. The teacher is trained on 1,000 digits, the student on the
first 200 of these, so that the teacher knows more. The weight of each loss is tuned, since those of papers are for
other data: at the balanced weight, the gradient of the loss at the student is as long as that of the labels in the
first epoch. Of this weight, a fifth of it and five times it, the one with the best accuracy on the 197 digits of the
validation split is taken, a mean over seeds that the report does not use. For each seed of the report, all students
share the teacher, the initial weights (except simkd, which has another network) and the order of samples. The weights
of the last epoch are tested on 600 digits, once. Differences are paired by seed; intervals are Student's t.
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
FACTORS = (0.2, 1.0, 5.0)  # of the balanced weight, that are tried
TUNING_SEEDS = (1000, 1001)  # beyond those of the report
PROBE = 1e-4  # a weight so small that the labels alone train the student
UNTUNED = {"pskd", "simkd"}  # their objective is a single term, of weight 1
MULTILABEL = {"per_label_dkd", "per_label_pskd", "per_label_rld", "led"}  # these need several labels per sample


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
    teachers = {seed: train_teacher(seed) for seed in (*TUNING_SEEDS, *range(options.seeds))}
    names = ("none", *options.losses)
    weights = {name: tuned_weight(name, teachers, options.epochs) for name in names}
    accuracy = {"teacher": [teachers[seed].metrics["teacher"]["accuracy"].value for seed in range(options.seeds)]}
    for name in names:
        accuracy[name] = []
        for seed in range(options.seeds):
            student = train_student(name, seed, teachers[seed], options.epochs, weight=weights[name])
            accuracy[name].append(student.metrics["student"]["accuracy"].value)
        print(f"{name}  {statistics.mean(accuracy[name]):.4f}", file=sys.stderr, flush=True)
    minutes = (time.perf_counter() - start) / 60
    console = Console(width=120)
    console.print(table(accuracy, weights))
    console.print(
        f"{options.seeds} seeds, {options.epochs} epochs; {platform.machine()}, {os.cpu_count()} cores, 1 thread, "
        f"torch {torch.__version__}, {date.today()}, {minutes:.0f} minutes"
    )


def tuned_weight(name, teachers, epochs):
    """Return the weight of a loss that is best on the validation split; None for a loss without one."""
    if name == "none" or name in UNTUNED:
        return None
    candidates = [factor * balanced_weight(name, TUNING_SEEDS[0], teachers) for factor in FACTORS]

    def validation_accuracy(weight):
        students = [train_student(name, seed, teachers[seed], epochs, weight, test=False) for seed in TUNING_SEEDS]
        return statistics.mean(student.metrics["student"]["accuracy"].value for student in students)

    values = [validation_accuracy(weight) for weight in candidates]
    print(
        f"{name}  " + "  ".join(f"{weight:.3g}: {value:.3f}" for weight, value in zip(candidates, values, strict=True)),
        file=sys.stderr,
        flush=True,
    )
    best = max(values)
    # Among equals the middle weight, whose gradient is as long as that of the labels.
    return candidates[1] if values[1] == best else candidates[values.index(best)]


def balanced_weight(name, seed, teachers):
    """Return the weight at which the gradient of the loss is as long as that of the labels, in the first epoch."""
    student = train_student(name, seed, teachers[seed], 1, PROBE, test=False, gradients=1)
    norms = next(iter(student.history.values()))[0]["gradients"]["norms"]
    labels = next(norm for label, norm in norms.items() if label.endswith("truth"))
    others = [label for label in norms if not label.endswith("truth")]
    loss = norms[next((label for label in others if label.endswith(name)), others[0])]
    return PROBE * labels / loss


def train_teacher(seed):
    """Return the result of a teacher trained on many digits."""

    def recipe():
        stage = Stage({all_losses.teacher_net("digits").net: all_losses.label_term("digits")}, training(TEACHER_EPOCHS))
        return Recipe(data=all_losses.digits(TEACHER_SAMPLES), schedule=[stage])

    return kdkit.run(recipe, seed=seed, device="cpu", progress=False)


def train_student(name, seed, teacher_result, epochs, weight=None, *, test=True, gradients=0):
    """Return the result of a student trained on few digits with this loss, tested or validated."""

    def recipe():
        teacher = all_losses.teacher_net("digits")
        teacher.net.network.load_state_dict(teacher_result.student.network.state_dict())
        teacher.net.trained = True
        objectives = all_losses.student_objectives(name, "digits", teacher, weight)
        data = all_losses.digits(STUDENT_SAMPLES)
        if not test:
            data = kdkit.TorchData(data.train.dataset, data.validation.dataset, classes=data.classes)
        return Recipe(data=data, schedule=[Stage(objectives, training(epochs))])

    return kdkit.run(recipe, seed=seed, device="cpu", progress=False, gradients=gradients)


def training(epochs):
    """Return the example's training, but keep the last epoch: no choice is made on any split."""
    return replace(all_losses.training(epochs), keep="last")


def table(accuracy, weights):
    """Return a row for each loss: its tuned weight, its accuracy, and its gain over the labels alone."""
    alone = accuracy["none"]
    rows = Table("loss", "weight", "accuracy, %", "difference, points", "95 % interval", box=box.MARKDOWN)
    gains = {
        name: [100 * (value - baseline) for value, baseline in zip(values, alone, strict=True)]
        for name, values in accuracy.items()
    }
    for name in sorted(gains, key=lambda name: -statistics.mean(gains[name])):
        mean = f"{100 * statistics.mean(accuracy[name]):.2f}"
        if name in ("none", "teacher"):
            rows.add_row(f"{name} (labels alone)" if name == "none" else f"the {name}", "", mean, "", "")
        else:
            low, high = interval(gains[name])
            weight = "1" if weights[name] is None else f"{weights[name]:.2g}"
            rows.add_row(name, weight, mean, f"{statistics.mean(gains[name]):+.2f}", f"{low:+.2f} to {high:+.2f}")
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
