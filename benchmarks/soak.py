"""Train many epochs of a tiny run with a run folder, and print its resident memory and open files as it goes on.

    python benchmarks/soak.py
    python benchmarks/soak.py --epochs 1000

Both should be flat after the first tenth of the epochs. The history grows by an entry per epoch, 0.6 kB in memory.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Recipe, Stage, TorchData, Training, Truth
from kdkit.losses import SoftTargets


def main():
    """Run the epochs, and print ten measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=10_000)
    options = parser.parse_args()
    if options.epochs < 10:
        parser.error(f"expected at least 10 epochs, for ten measurements; got {options.epochs}")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        measured = soak(options.epochs, Path(folder) / "run")
    for epoch, memory, files in measured:
        print(f"epoch {epoch:>6}  {memory / 2**20:8.1f} MiB  {files} open files")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{(time.perf_counter() - start) / options.epochs * 1000:.1f} ms per epoch"
    )


def soak(epochs, folder):
    """Return ten times the number of an epoch, the resident memory in bytes, and the number of open files."""
    measured = []

    class Measure:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            if (event.epoch + 1) % (epochs // 10) == 0:
                measured.append((event.epoch + 1, resident_memory(), len(list(Path("/proc/self/fd").iterdir()))))

    kdkit.run(lambda: recipe(epochs), device="cpu", out=folder, callbacks=[Measure()], teacher_cache="off")
    return measured


def recipe(epochs):
    """Return a run whose epochs have two batches, with a teacher, two terms and batch norm."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(32, 6, generator=generator), torch.arange(32) % 3
    data = TorchData(TensorDataset(inputs, labels), TensorDataset(inputs[:6], labels[:6]), classes=list("abc"))
    teacher, student = Net("teacher", small_net(), trained=True), Net("student", small_net())
    objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())
    return Recipe(data=data, schedule=[Stage({student: objective}, Training(epochs=epochs, batch_size=16))])


def small_net():
    """Return a network from six numbers to three classes."""
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))


def resident_memory():
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
