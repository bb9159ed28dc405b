"""Measure the time and memory of input: preparing records with one process and two, and reading them from the store.

    python benchmarks/data_loading.py --data DIR [--rounds 3] [--scratch DIR] [--seconds 10]

DIR holds records of a Challenge. Compared runs alternate, and each preparation has a separate process. Ratios are of
medians. The memory table needs disk space in --scratch for 100,000 records.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from kdkit_ecg import Challenge2020, LRHNet
from kdkit_ecg.datasets.signal_split import SignalSplit
from kdkit_ecg.records.header import read_header
from kdkit_ecg.store import SignalFile, StoredSignals
from kdkit_ecg.store.index import INDEX, ROW, SIGNALS, make_row

BATCH, LENGTH, RATE, STEPS, ITEMS = 64, 4096, 257, 6, 64
SIZES = (1_000, 10_000, 100_000)


def challenge(folder, store):
    """Return every record of the folder in one split."""
    return Challenge2020(folder, shares=(1.0, 0.0, 0.0), store=store)


def prepare_once(folder, processes):
    """Return the number of records prepared into an empty store, and the seconds, imports included."""
    with tempfile.TemporaryDirectory() as scratch:
        data = challenge(folder, Path(scratch))
        _ = data._selected  # headers are read with or without a store, so they are not timed
        start = time.perf_counter()
        before = os.times()
        count = data.prepare(processes=processes)[1]
        seconds, after = time.perf_counter() - start, os.times()
    cpu_seconds = sum(after[:4]) - sum(before[:4])  # user and system, of this process and of its finished children
    return {"records": count, "seconds": seconds, "cpu_seconds": cpu_seconds}


def epoch_seconds(split, epoch):
    """Return the seconds per record of an epoch's batches."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(epoch))
    start = time.perf_counter()
    for rows in order.split(BATCH):
        split.batch(rows, epoch)
    return (time.perf_counter() - start) / len(split)


def item_seconds(data, paths):
    """Return the seconds per record if each is read and prepared when it is needed."""
    start = time.perf_counter()
    for path in paths:
        prepared = data._preparation.prepare(read_header(path))
        split = SignalSplit(
            signals=[prepared.signal],
            person=torch.zeros(1, 5),
            labels=torch.zeros(1, 24),
            ids=torch.zeros(1, dtype=torch.int64),
            length=LENGTH,
            rate=RATE,
            window="random",
        )
        split.batch([0], 0)
    return (time.perf_counter() - start) / len(paths)


def step_seconds(net, optimizer, batch):
    """Return the seconds of a training step on the labels alone."""
    start = time.perf_counter()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(net(*batch.inputs), batch.labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def write_store(folder, count, samples):
    """Write a store of this many records, which repeat 256 random signals."""
    signals = np.random.default_rng(0).standard_normal((256, 12, samples)).astype(np.float32)
    size = signals[0].nbytes
    with (folder / SIGNALS).open("wb") as file, (folder / INDEX).open("wb") as index:
        for number in range(count):
            file.write(signals[number % 256].data)
            key = number.to_bytes(16, "big")
            index.write(make_row(key, key, number * size, signals[number % 256], ""))


def resident():
    """Return the resident bytes of this process: anonymous memory, and pages of mapped files, such as libraries."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return [int(status[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")]


def memory_growth(folder, count, in_memory):
    """Return the growth of resident memory to its peak in an epoch, over a store or over arrays in memory."""
    before = resident()
    rows = np.fromfile(Path(folder) / INDEX, dtype=ROW)
    signals = StoredSignals(SignalFile(Path(folder), rows))
    split = SignalSplit(
        signals=[signal.copy() for signal in signals] if in_memory else signals,
        person=torch.zeros(count, 5),
        labels=torch.zeros(count, 24),
        ids=torch.arange(count),
        length=LENGTH,
        rate=RATE,
        window="random",
    )
    peak = before
    for number, rows in enumerate(torch.randperm(count).split(BATCH)):
        split.batch(rows, 0)
        if number % 10 == 0:
            peak = np.maximum(peak, resident())
    return (np.maximum(peak, resident()) - before).tolist()


def in_process(function, *args):
    """Return the result of a function of this file, called in a separate process."""
    command = [sys.executable, __file__, "--call", json.dumps([function, *map(str, args)])]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def show_preparing(folder, rounds):
    """Compare the preparation with one process and with two."""
    passes = {1: [], 2: []}
    for turn in range(rounds):
        for processes in (1, 2) if turn % 2 else (2, 1):
            passes[processes].append(in_process("prepare_once", folder, processes))
    one, two = (statistics.median(result["seconds"] for result in results) for results in passes.values())
    pairs = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(*passes.values(), strict=True))
    best = [min(result["seconds"] for result in results) for results in passes.values()]
    cpu = [min(result["cpu_seconds"] for result in results) for results in passes.values()]
    print(f"preparing {passes[1][0]['records']} records: 1 process {one:.1f} s, 2 processes {two:.1f} s, ", end="")
    print(f"{one / two:.2f}x; pairs {pairs:.2f}x; fastest {best[0] / best[1]:.2f}x")
    print(f"  CPU seconds {cpu[0]:.1f} and {cpu[1]:.1f}: ", end="")
    print(f"{2 * cpu[0] / cpu[1]:.2f}x on two idle cores")


def show_reading(folder, rounds, scratch):
    """Compare an epoch from the store with preparing each record when it is needed, and with a student's step."""
    data = challenge(folder, scratch)
    split = data.train
    paths = [header.path for header in data._selected[0]]
    item_seconds(data, paths[:2])  # imports
    first = epoch_seconds(split, 0)
    pairs = [
        (item_seconds(data, paths[index * ITEMS : (index + 1) * ITEMS]), epoch_seconds(split, index + 1))
        for index in range(min(rounds * 2, len(paths) // ITEMS))
    ]
    item, stored = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    print(
        f"input of a record: prepared when needed {item * 1e3:.2f} ms, from the store {stored * 1e3:.4f} ms, ",
        end="",
    )
    print(f"{item / stored:.0f}x; in the first epoch, which checks each record, {item / first:.0f}x")
    net = LRHNet(leads=12)
    optimizer = torch.optim.Adam(net.parameters())
    steps = []
    for number in range(STEPS + 1):
        rows = torch.randperm(len(split))[:BATCH]
        start = time.perf_counter()
        batch = split.batch(rows, number)
        seconds = time.perf_counter() - start
        steps.append((seconds, step_seconds(net, optimizer, batch)))
    # The first step warms up.
    input_seconds, training_seconds = (statistics.median(seconds) for seconds in zip(*steps[1:], strict=True))
    milliseconds = f"{input_seconds * 1e3:.1f} ms of input to {training_seconds * 1e3:.0f} ms of LRH-Net's step"
    print(f"a batch of {BATCH} x 12 x {LENGTH}: {milliseconds}, {input_seconds / training_seconds:.1%}")


def show_memory(scratch, seconds):
    """Print the growth of resident memory in an epoch, for several numbers of records."""
    print(f"resident memory of an epoch over records of {seconds:g} s, MB:")
    print("records    of signals   store: anonymous   store: mapped files        in memory: anonymous")
    for count in SIZES:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            write_store(Path(folder), count, int(seconds * RATE))
            size = (Path(folder) / SIGNALS).stat().st_size
            anonymous, mapped = in_process("memory_growth", folder, count, "")
            in_memory = (
                f"{in_process('memory_growth', folder, count, 'in memory')[0] / 1e6:.0f}"
                if count < SIZES[-1]
                else "not measured"
            )
            print(f"{count:<10,} {size / 1e6:<12,.0f} {anonymous / 1e6:<18.0f} {mapped / 1e6:<26,.0f} {in_memory}")


def main():
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--call", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:  # by in_process
        function, *args = json.loads(options.call)
        result = (
            prepare_once(Path(args[0]), int(args[1]))
            if function == "prepare_once"
            else memory_growth(args[0], int(args[1]), args[2])
        )
        print(json.dumps(result))
        return
    load = [f"{load:.2f}" for load in os.getloadavg()]
    if options.data:
        show_preparing(options.data.resolve(), options.rounds)
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            show_reading(options.data.resolve(), options.rounds, Path(folder))
    show_memory(options.scratch, options.seconds)
    load += [f"{load:.2f}" for load in os.getloadavg()]
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}, load {', '.join(load)}")


if __name__ == "__main__":
    main()
