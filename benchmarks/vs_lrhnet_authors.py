"""Compare the student's stage of S-MLKD in kdkit and in the procedure of LRH-Net's authors, on the same records.

    python benchmarks/vs_lrhnet_authors.py
    python benchmarks/vs_lrhnet_authors.py --records 640 --width 64 --epochs 6 --data path/to/challenge-2020

The authors' procedure, rewritten plainly: a DataLoader reads a record's file, resamples it and cuts a window whenever
it is needed, and both teachers run at every step. kdkit runs with its defaults, for the same preparation
(`Challenge2020.paper`), loss and optimizer. Both run alternately, and ratios are within a round. Teachers are
untrained, which does not change the time. By default, records of 10 s are simulated and written in the Challenge's
format.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat, savemat
from torch import nn
from torch.utils.data import DataLoader, Dataset

import kdkit
from kdkit_ecg import Challenge2020, Leads, LRHNet, SEResNet
from kdkit_ecg.leads import LEADS
from kdkit_ecg.simulator import Simulator

RATE, BATCH, TEMPERATURE = 257, 64, 7.0
STUDENT_LEADS = 3  # also of the assistant


class UncachedRecords(Dataset):
    """Records that are read, resampled and cut whenever they are needed."""

    def __init__(self, files, labels, length):
        self.files, self.labels, self.length = files, labels, length

    def __len__(self):
        return len(self.files)

    def __getitem__(self, row):
        """Return a window (12, length) in mV, and the labels."""
        signal = loadmat(self.files[row])["val"] / 1000.0
        rate = float(self.files[row].with_suffix(".hea").read_text().split(maxsplit=3)[2])
        old, new = signal.shape[1], int(signal.shape[1] * RATE / rate)  # samples before and after resampling
        old_times, new_times = np.linspace(0, old, old) / rate, np.linspace(0, new, new) / RATE
        signal = np.stack([np.interp(new_times, old_times, lead) for lead in signal]).astype(np.float32)
        window, spare = np.zeros((12, self.length), dtype=np.float32), new - self.length
        offset = np.random.randint(abs(spare) + 1)
        if spare >= 0:
            window[:] = signal[:, offset : offset + self.length]
        else:
            window[:, offset : offset + new] = signal
        return torch.from_numpy(window), self.labels[row]


def nets(width):
    """Return the teacher of twelve leads, the assistant and the student."""
    torch.manual_seed(0)
    return SEResNet(leads=12, width=width), SEResNet(leads=STUDENT_LEADS, width=width), LRHNet(leads=STUDENT_LEADS)


def by_authors(records, options):
    """Return the seconds of each epoch of the authors' procedure."""
    teacher, assistant, student = nets(options.width)
    teacher.eval()
    assistant.eval()
    columns = [LEADS.index(lead) for lead in ("I", "II", "V2")]
    truth = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3, weight_decay=1e-5)
    loader = DataLoader(records, batch_size=BATCH, shuffle=True)
    seconds = []
    for _ in range(options.epochs):
        student.train()
        start = time.perf_counter()
        for signal, labels in loader:
            person = torch.zeros(len(signal), 5)
            with torch.no_grad():
                targets = teacher(signal, person), assistant(signal[:, columns], person)
            output = student(signal[:, columns], person)
            parts = [soft_target_loss(output, target) for target in targets]
            loss = 0.3 * truth(output, labels) + 0.7 * (0.6 * parts[0] + 0.4 * parts[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def soft_target_loss(output, target):
    """Return the divergence of softened logits, (batch, classes) each, without the factor T²."""
    return nn.functional.kl_div(
        (output / TEMPERATURE).log_softmax(1), (target / TEMPERATURE).softmax(1), reduction="batchmean"
    )


def by_kdkit(folder, options):
    """Return the seconds until the first step, and those of each epoch."""
    modules = nets(options.width)
    teacher = kdkit.Net("teacher", modules[0], view=Leads(12), trained=True)
    assistant = kdkit.Net("assistant", modules[1], view=Leads(STUDENT_LEADS), trained=True)
    student = kdkit.Net("student", modules[2], view=Leads(STUDENT_LEADS))
    kd_loss = kdkit.losses.SoftTargets(temperature=TEMPERATURE, t_squared=False)
    targets = 0.6 * kdkit.Match(teacher, kd_loss) + 0.4 * kdkit.Match(assistant, kd_loss)
    adam = kdkit.Optimizer(torch.optim.Adam, lr=3e-3, weight_decay=1e-5)
    training = kdkit.Training(epochs=options.epochs, batch_size=BATCH, optimizer=adam)
    stage = kdkit.Stage({student: 0.3 * kdkit.Truth(nn.BCEWithLogitsLoss()) + 0.7 * targets}, training)
    timer = StartTimer()
    recipe = kdkit.Recipe(data=challenge(folder, options), schedule=[stage], metrics=(kdkit.metrics.MacroF1(),))
    result = kdkit.run(recipe, callbacks=[timer], device="cpu", progress=False)
    return timer.seconds, [epoch["seconds"] for epoch in result.history["student"]]


class StartTimer:
    """A callback that measures the seconds until the first stage starts: the time to read and check the records."""

    def __init__(self):
        self.start, self.seconds = time.perf_counter(), 0.0

    @kdkit.hookimpl
    def stage_started(self, event):
        """Record the time."""
        self.seconds = time.perf_counter() - self.start


def write_records(folder, count):
    """Simulate records of 10 s at 500 Hz, and write them in the Challenge's format: int16 in µV, MATLAB 4."""
    simulator = Simulator(seed=0, rate=500.0, length=5000, difficulty=0.5)
    for index in range(count):
        name = f"S{index:05d}"
        steps = np.clip(np.round(simulator.record(index).signal * 1000), -32_000, 32_000).astype(np.int16)
        savemat(folder / f"{name}.mat", {"val": steps}, format="4")
        sums = (steps.astype(np.int64).sum(1) + 2**15) % 2**16 - 2**15
        lines = [f"{name} 12 500 5000"]
        for lead, row, total in zip(LEADS, steps, sums, strict=True):
            lines.append(f"{name}.mat 16+24 1000/mV 16 0 {row[0]} {total} 0 {lead}")
        (folder / f"{name}.hea").write_text("\n".join([*lines, "#Age: 50", "#Sex: Male", "#Dx: 426783006", ""]))


def challenge(folder, options):
    """Return the records with the authors' preparation, four fifths of them for training."""
    return Challenge2020.paper(folder, length=options.length, shares=(0.8, 0.1, 0.1), validation_split="separate")


def input_seconds(records, split):
    """Return the seconds of an epoch's input without any network: of the authors' procedure, and of kdkit."""
    start = time.perf_counter()
    for _ in DataLoader(records, batch_size=BATCH, shuffle=True):
        pass
    middle = time.perf_counter()
    for rows in torch.randperm(len(split)).split(BATCH):
        split.batch(rows, 1)
    return middle - start, time.perf_counter() - middle


def compare(folder, options):
    """Run both procedures alternately, and print ratios."""
    split = challenge(folder, options).train
    # The time does not depend on which label a record has, so the labels need not match the files.
    files = sorted(folder.rglob("*.mat"))[: len(split)]
    records = UncachedRecords(files, split.labels, options.length)
    later_epochs, all_epochs, inputs = [], [], []
    for _ in range(options.rounds):
        authors = by_authors(records, options)
        reading, epochs = by_kdkit(folder, options)
        later_epochs.append(statistics.median(authors[1:]) / statistics.median(epochs[1:]))
        all_epochs.append(sum(authors) / (reading + sum(epochs)))
        inputs.append(input_seconds(records, split))
        print(
            f"epochs of the authors {' '.join(f'{seconds:.2f}' for seconds in authors)} s; "
            f"kdkit: {reading:.2f} s to read and check, epochs {' '.join(f'{seconds:.2f}' for seconds in epochs)} s"
        )
    input_ratio = statistics.median(authors / kdkit_time for authors, kdkit_time in inputs)
    low, high = min(later_epochs), max(later_epochs)
    print(f"an epoch from the second on: {statistics.median(later_epochs):.2f}x faster ({low:.2f} to {high:.2f})")
    print(f"{options.epochs} epochs with all reading: {statistics.median(all_epochs):.2f}x faster")
    print(f"input of an epoch, no net: {input_ratio:.0f}x faster")
    load = ", ".join(f"{load:.2f}" for load in os.getloadavg())
    print(
        f"{len(split)} training records, {options.length} samples, teachers of width {options.width}, batch {BATCH}, "
        f"{options.rounds} rounds; torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} "
        f"cores, {platform.machine()}, load {load}"
    )


def main():
    """Measure on the records of --data, or on simulated ones."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=Path, help="a folder of Challenge records with .mat files; by default they are simulated"
    )
    parser.add_argument("--records", type=int, default=160, help="to simulate")
    parser.add_argument("--width", type=int, default=16, help="of the teachers; 64 in the paper")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.epochs < 2:
        raise SystemExit("expected at least two epochs: kdkit prepares the records in the first one")
    if options.data:
        compare(options.data, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder), options.records)
        compare(Path(folder), options)


if __name__ == "__main__":
    main()
