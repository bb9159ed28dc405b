"""Compare the students of all losses with the same student that learns from the labels alone, on digits or clothes.

    python benchmarks/losses_on_images.py
    python benchmarks/losses_on_images.py --seeds 2 --losses crd hint --epochs 10
    python benchmarks/losses_on_images.py --fashion-mnist FOLDER --seeds 3 --losses soft_targets crd simkd

Networks and taps are those of `examples/all_losses.py`. The teacher is trained on more images than the student, so that
it knows more: on 1,000 digits, the first 200 of which train the student, or on 54,000 images of Fashion-MNIST, the
first 10,000 of which do. FOLDER is that of `torchvision.datasets.FashionMNIST(FOLDER, download=True)`.

The weight of each loss is tuned, since those of papers are for other data: at the balanced weight, the gradient of the
loss at the student is as long as that of the labels in the first epoch. Of this weight, a fifth of it and five times
it, the one with the best accuracy on the validation split is taken, a mean over seeds that the report does not use. For
each seed of the report, all students share the teacher, the initial weights (except simkd, which has another network)
and the order of samples. The weights of the last epoch are tested once. Differences are paired by seed; intervals are
Student's t.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import FashionMNIST

import kdkit
from kdkit import Recipe, Stage

# Examples are scripts, not a package.
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import all_losses

FACTORS = (0.2, 1.0, 5.0)  # of the balanced weight, that are tried
PROBE = 1e-4  # a weight so small that the labels alone train the student
UNTUNED = {"pskd", "simkd"}  # their objective is a single term, of weight 1
MULTILABEL = {"per_label_dkd", "per_label_pskd", "per_label_rld", "led"}  # these need several labels per sample


@dataclass(frozen=True)
class Digits:
    """Images of 8 x 8 pixels: 1,000 for training, 197 for validation, and 600 for testing."""

    teacher_samples, student_samples, teacher_epochs, batch_size = 1000, 200, 20, 32
    tuning_seeds = (1000, 1001)  # beyond those of the report
    one_teacher = False  # a teacher for each seed

    def data(self, samples):
        """Return this many samples for training, with all of the other splits."""
        return all_losses.digits(samples)


@dataclass(frozen=True)
class Clothes:
    """Fashion-MNIST, images of 28 x 28 pixels: 54,000 for training, 6,000 for validation, and 10,000 for testing."""

    folder: Path
    teacher_samples, student_samples, teacher_epochs, batch_size = 54_000, 10_000, 10, 128
    tuning_seeds = (1000,)
    one_teacher = True

    @cached_property
    def _splits(self):
        parts = [FashionMNIST(self.folder, train=train) for train in (True, False)]
        train, test = (TensorDataset(part.data[:, None], part.targets) for part in parts)
        return train, test, parts[0].classes

    def data(self, samples):
        """Return this many samples for training, with all of the other splits."""
        train, test, classes = self._splits
        return kdkit.TorchData(
            Subset(train, range(samples)), Subset(train, range(54_000, 60_000)), test, classes=classes
        )


class Study:
    """Trains teachers and students on one kind of images. epochs: of a student."""

    def __init__(self, images, epochs, folder):
        self.images, self.epochs, self.folder = images, epochs, folder
        self._teachers = {}

    def teacher(self, seed):
        """Return the result of the teacher for the students of a seed."""
        seed = 0 if self.images.one_teacher else seed
        if seed not in self._teachers:
            self._teachers[seed] = self._train_teacher(seed)
        return self._teachers[seed]

    def _train_teacher(self, seed):
        def recipe():
            net = all_losses.teacher_net("digits").net
            stage = Stage({net: all_losses.label_term("digits")}, self._training(self.images.teacher_epochs))
            return Recipe(data=self.images.data(self.images.teacher_samples), schedule=[stage])

        return kdkit.run(recipe, seed=seed, device="cpu", progress=False)

    def student(self, name, seed, weight=None, *, epochs=None, test=True, gradients=0):
        """Return the result of a student that learns with this loss, tested or validated."""
        teacher_result = self.teacher(seed)

        def recipe():
            teacher = all_losses.teacher_net("digits")
            teacher.net.network.load_state_dict(teacher_result.student.network.state_dict())
            teacher.net.trained = True
            objectives = all_losses.student_objectives(name, "digits", teacher, weight)
            data = self.images.data(self.images.student_samples)
            if not test:
                data = kdkit.TorchData(data.train.dataset, data.validation.dataset, classes=data.classes)
            return Recipe(data=data, schedule=[Stage(objectives, self._training(epochs or self.epochs))])

        options = {"teacher_cache": self.folder, "gradients": gradients}
        return kdkit.run(recipe, seed=seed, device="cpu", progress=False, **options)

    def _training(self, epochs):
        """Return the example's training, but keep the last epoch: no choice is made on any split."""
        return replace(all_losses.training(epochs), keep="last", batch_size=self.images.batch_size)

    def tuned_weight(self, name):
        """Return the weight of a loss that is best on the validation split; None for a loss without one."""
        if name == "none" or name in UNTUNED:
            return None
        candidates = [factor * self._balanced_weight(name) for factor in FACTORS]

        def validation_accuracy(weight):
            students = [self.student(name, seed, weight, test=False) for seed in self.images.tuning_seeds]
            return statistics.mean(student.metrics["student"]["accuracy"].value for student in students)

        values = [validation_accuracy(weight) for weight in candidates]
        tried = (f"{weight:.3g}: {value:.4f}" for weight, value in zip(candidates, values, strict=True))
        print(name, *tried, sep="  ", file=sys.stderr, flush=True)
        best = max(values)
        # Among equals the middle weight, whose gradient is as long as that of the labels.
        return candidates[1] if values[1] == best else candidates[values.index(best)]

    def _balanced_weight(self, name):
        """Return the weight at which the gradient of the loss is as long as that of the labels, in the first epoch."""
        student = self.student(name, self.images.tuning_seeds[0], PROBE, epochs=1, test=False, gradients=1)
        norms = next(iter(student.history.values()))[0]["gradients"]["norms"]
        labels = next(norm for label, norm in norms.items() if label.endswith("truth"))
        others = [label for label in norms if not label.endswith("truth")]
        return PROBE * labels / norms[next((label for label in others if label.endswith(name)), others[0])]


def main():
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fashion-mnist", type=Path, metavar="FOLDER", help="learn Fashion-MNIST instead of digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--losses", nargs="+", default=[name for name in all_losses.NAMES if name not in MULTILABEL | {"none"}]
    )
    parser.add_argument("--epochs", type=int, default=30, help="of the student")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    images = Clothes(options.fashion_mnist) if options.fashion_mnist else Digits()
    with tempfile.TemporaryDirectory() as folder:  # of the teacher cache, which all students share
        study = Study(images, options.epochs, folder)
        accuracy, weights = compare(study, options.losses, range(options.seeds))
    minutes = (time.perf_counter() - start) / 60
    console = Console(width=120)
    console.print(table(accuracy, weights))
    console.print(
        f"{options.seeds} seeds, {options.epochs} epochs; {platform.machine()}, {os.cpu_count()} cores, 1 thread, "
        f"torch {torch.__version__}, {date.today()}, {minutes:.0f} minutes"
    )


def compare(study, losses, seeds):
    """Return the test accuracies for these seeds, and the tuned weight, by name of a loss."""
    accuracy = {"teacher": [study.teacher(seed).metrics["teacher"]["accuracy"].value for seed in seeds]}
    weights = {}
    for name in ("none", *losses):
        weights[name] = study.tuned_weight(name)
        results = [study.student(name, seed, weights[name]) for seed in seeds]
        accuracy[name] = [result.metrics["student"]["accuracy"].value for result in results]
        print(name, *(f"{value:.4f}" for value in accuracy[name]), sep="  ", file=sys.stderr, flush=True)
    return accuracy, weights


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
