"""Measure epochs over a table of millions of rows, with cached teacher outputs, against a loop that is written by hand.

    python benchmarks/many_samples.py
    python benchmarks/many_samples.py --quick

The networks are tiny, so the time is what each sample costs: to draw it, to read its inputs and its cached output, and
in the first epoch to write that output with its checksum. The loop by hand runs the teacher in every epoch. Both take
turns, in one process; ratios are medians over the rounds.
"""

import argparse
import os
import platform
import statistics
import time

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Optimizer, Recipe, Stage, TorchData, Training, Truth
from kdkit.losses import SoftTargets

FEATURES, CLASSES, BATCH, EPOCHS = 16, 4, 4096, 3


def networks():
    """Return a teacher and a student."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    return teacher, nn.Linear(FEATURES, CLASSES)


class Stopwatch:
    """A callback that measures the steps of each epoch, without its validation."""

    def __init__(self):
        self.seconds, self.began, self.ended = [], 0.0, 0.0

    @kdkit.hookimpl
    def stage_started(self, event):
        """Begin the first epoch."""
        self.began = time.perf_counter()

    @kdkit.hookimpl
    def step_ended(self, event):
        """Note the time, which is that of the epoch if no step follows."""
        self.ended = time.perf_counter()

    @kdkit.hookimpl
    def epoch_ended(self, event):
        """End an epoch, and begin the next one after the validation."""
        self.seconds.append(self.ended - self.began)
        self.began = time.perf_counter()


def epochs_of_kdkit(rows):
    """Return the seconds of each epoch of a run."""
    teacher, student = Net("teacher", networks()[0], trained=True), Net("student", networks()[1])
    objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())
    training = Training(epochs=EPOCHS, batch_size=BATCH, optimizer=Optimizer(torch.optim.Adam, lr=1e-3))
    validation = TensorDataset(*(part[:100] for part in rows.tensors))
    recipe = Recipe(data=TorchData(rows, validation), schedule=[Stage({student: objective}, training)])
    stopwatch = Stopwatch()
    kdkit.run(recipe, device="cpu", callbacks=[stopwatch], progress=False, measure=False)
    return stopwatch.seconds


def epochs_by_hand(rows):
    """Return the seconds of each epoch of a loop."""
    (teacher, student), seconds = networks(), []
    teacher.eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    inputs, labels = rows.tensors
    for _ in range(EPOCHS):
        began = time.perf_counter()
        for batch in torch.randperm(len(rows)).split(BATCH):
            x = inputs[batch]
            with torch.no_grad():
                target = teacher(x)
            outputs = student(x)
            log_p, log_q = (functional.log_softmax(side / 4, 1) for side in (target, outputs))
            divergence = 16 * functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
            loss = functional.cross_entropy(outputs, labels[batch]) + divergence
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def main():
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows: a test of this script")
    parser.add_argument("--rows", type=int, default=10_000_000, help="default 10,000,000")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    sizes = parser.parse_args()
    if sizes.quick:
        sizes.rows, sizes.rounds = 20_000, 1
    torch.manual_seed(0)
    inputs = torch.randn(sizes.rows, FEATURES)
    rows = TensorDataset(inputs, inputs[:, :CLASSES].argmax(1))
    epochs_of_kdkit(TensorDataset(inputs[:BATCH], rows.tensors[1][:BATCH]))  # imports, and what is set up once
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    first, later = [], []
    for _ in range(sizes.rounds):
        by_kdkit, by_hand = epochs_of_kdkit(rows), statistics.median(epochs_by_hand(rows))
        first.append(by_kdkit[0] / by_hand)
        later.append(statistics.median(by_kdkit[1:]) / by_hand)
        print(f"kdkit {', '.join(f'{seconds:.1f}' for seconds in by_kdkit)} s; by hand {by_hand:.1f} s an epoch")
    print(f"{sizes.rows:,} rows: first epoch {statistics.median(first):.2f}x, later {statistics.median(later):.2f}x")


if __name__ == "__main__":
    main()
