"""The student's stage of S-MLKD by kdkit and as LRH-Net's authors run it, on the same records and the same nets.

    python benchmarks/vs_lrhnet_authors.py
    python benchmarks/vs_lrhnet_authors.py --records 640 --width 64 --epochs 6 --data path/to/challenge-2020

The authors' procedure, re-stated plainly: a DataLoader that reads a record's file, resamples it and cuts a window each
time it is asked for, and both teachers asked at every step. kdkit does what it does by default for the same preparation
(`Challenge2020.paper`), loss and optimizer. Both are run in turns; every figure is a ratio within one turn. Teachers
keep their first weights, since what they say costs the same. Without --data, records of 10 s are simulated and written
as the Challenge has them.
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
FEW = 3  # leads of the assistant and the student


class ReadEachTime(Dataset):
    """Records that are read, resampled and cut anew whenever they are asked for."""

    def __init__(self, files, labels, length):
        self.files, self.labels, self.length = files, labels, length

    def __len__(self):
        return len(self.files)

    def __getitem__(self, row):
        """Return a window (12, length) in mV, and the labels."""
        signal = loadmat(self.files[row])["val"] / 1000.0
        rate = float(self.files[row].with_suffix(".hea").read_text().split(maxsplit=3)[2])
        samples, to = signal.shape[1], int(signal.shape[1] * RATE / rate)
        grid, wanted = np.linspace(0, samples, samples) / rate, np.linspace(0, to, to) / RATE
        signal = np.stack([np.interp(wanted, grid, lead) for lead in signal]).astype(np.float32)
        window, spare = np.zeros((12, self.length), dtype=np.float32), to - self.length
        offset = np.random.randint(abs(spare) + 1)
        if spare >= 0:
            window[:] = signal[:, offset : offset + self.length]
        else:
            window[:, offset : offset + to] = signal
        return torch.from_numpy(window), self.labels[row]


def nets(width):
    """Return the teacher of twelve leads, the assistant and the student."""
    torch.manual_seed(0)
    return SEResNet(leads=12, width=width), SEResNet(leads=FEW, width=width), LRHNet(leads=FEW)


def by_authors(records, given):
    """Return the seconds of each epoch of the plain procedure."""
    teacher, assistant, student = nets(given.width)
    for each in (teacher, assistant):
        each.eval()
    few = [LEADS.index(lead) for lead in ("I", "II", "V2")]
    truth = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3, weight_decay=1e-5)
    loader = DataLoader(records, batch_size=BATCH, shuffle=True)
    seconds = []
    for _ in range(given.epochs):
        student.train()
        began = time.perf_counter()
        for signal, labels in loader:
            person = torch.zeros(len(signal), 5)
            with torch.no_grad():
                guides = teacher(signal, person), assistant(signal[:, few], person)
            output = student(signal[:, few], person)
            parts = [softened(output, kd_loss) for kd_loss in guides]
            loss = 0.3 * truth(output, labels) + 0.7 * (0.6 * parts[0] + 0.4 * parts[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def softened(output, kd_loss):
    """Return the divergence of softened outputs, (batch, classes) each, without the factor T²."""
    return nn.functional.kl_div(
        (output / TEMPERATURE).log_softmax(1), (kd_loss / TEMPERATURE).softmax(1), reduction="batchmean"
    )


def by_kdkit(folder, given):
    """Return the seconds until the first step, and those of each epoch."""
    modules = nets(given.width)
    teacher = kdkit.Net("teacher", modules[0], view=Leads(12), trained=True)
    assistant = kdkit.Net("assistant", modules[1], view=Leads(FEW), trained=True)
    student = kdkit.Net("student", modules[2], view=Leads(FEW))
    soft = kdkit.losses.SoftTargets(temperature=TEMPERATURE, t_squared=False)
    guides = 0.6 * kdkit.Match(teacher, soft) + 0.4 * kdkit.Match(assistant, soft)
    adam = kdkit.Optimizer(torch.optim.Adam, lr=3e-3, weight_decay=1e-5)
    training = kdkit.Training(epochs=given.epochs, batch_size=BATCH, optimizer=adam)
    stage = kdkit.Stage({student: 0.3 * kdkit.Truth(nn.BCEWithLogitsLoss()) + 0.7 * guides}, training)
    clock = Clock()
    recipe = kdkit.Recipe(data=challenge(folder, given), schedule=[stage], metrics=(kdkit.metrics.MacroF1(),))
    result = kdkit.run(recipe, callbacks=[clock], device="cpu")
    return clock.first, [epoch["seconds"] for epoch in result.history["student"]]


class Clock:
    """How long it takes until the first stage begins: records read and checked."""

    def __init__(self):
        self.began, self.first = time.perf_counter(), 0.0

    @kdkit.hookimpl
    def stage_started(self, event):
        """Stop."""
        self.first = time.perf_counter() - self.began


def write_records(folder, count):
    """Simulate records of 10 s at 500 Hz, and write them as the Challenge has them: int16 in µV, MATLAB 4."""
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


def challenge(folder, given):
    """Return the records as the authors prepare them, four fifths of them to learn from."""
    return Challenge2020.paper(folder, length=given.length, shares=(0.8, 0.1, 0.1), validation_split="separate")


def input_seconds(records, split):
    """Return what an epoch's input takes, without any net: of the plain procedure, and of kdkit's split."""
    began = time.perf_counter()
    for _ in DataLoader(records, batch_size=BATCH, shuffle=True):
        pass
    between = time.perf_counter()
    for rows in torch.randperm(len(split)).split(BATCH):
        split.batch(rows, 1)
    return between - began, time.perf_counter() - between


def compare(folder, given):
    """Measure in turns, and print ratios."""
    split = challenge(folder, given).train
    # Which label stands beside which record costs nothing, so the labels of the split do for as many files.
    files = sorted(folder.rglob("*.mat"))[: len(split)]
    records = ReadEachTime(files, split.labels, given.length)
    later, whole, inputs = [], [], []
    for _ in range(given.rounds):
        theirs = by_authors(records, given)
        reading, ours = by_kdkit(folder, given)
        later.append(statistics.median(theirs[1:]) / statistics.median(ours[1:]))
        whole.append(sum(theirs) / (reading + sum(ours)))
        inputs.append(input_seconds(records, split))
        print(
            f"epochs of the authors {' '.join(f'{each:.2f}' for each in theirs)} s; "
            f"kdkit: {reading:.2f} s to read and check, epochs {' '.join(f'{each:.2f}' for each in ours)} s"
        )
    low, high = min(later), max(later)
    print(f"an epoch from the second on: {statistics.median(later):.2f}x faster ({low:.2f} to {high:.2f})")
    print(f"{given.epochs} epochs with all reading: {statistics.median(whole):.2f}x faster")
    print(f"input of an epoch, no net: {statistics.median(one / other for one, other in inputs):.0f}x faster")
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    print(
        f"{len(split)} records to learn from, {given.length} samples, teachers of width {given.width}, batch {BATCH}, "
        f"{given.rounds} rounds; torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} "
        f"cores, {platform.machine()}, load {load}"
    )


def main():
    """Measure on the records given, or on simulated ones."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--data", type=Path, help="of Challenge records with .mat files; simulated ones if not given")
    options.add_argument("--records", type=int, default=160, help="to simulate")
    options.add_argument("--width", type=int, default=16, help="of the teachers; 64 in the paper")
    options.add_argument("--length", type=int, default=4096)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    if given.epochs < 2:
        raise SystemExit("two epochs are needed at least: what is kept from the first shows in those after it")
    if given.data:
        compare(given.data, given)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder), given.records)
        compare(Path(folder), given)


if __name__ == "__main__":
    main()
