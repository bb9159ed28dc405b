"""What input costs: preparing records in one process and in two, reading them from the store, and holding them.

    python benchmarks/data_loading.py --data DIR [--rounds 3] [--scratch DIR] [--seconds 10]

DIR holds records of a Challenge. Runs that are compared take turns, each pass of preparation in a process of its own;
ratios are of medians, since other work only slows. The memory table needs room in `scratch` for 100,000 records.
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
from kdkit_ecg.store import MappedSignals, SignalFile
from kdkit_ecg.store.index import INDEX, ROW, SIGNALS, make_row

BATCH, LENGTH, RATE, STEPS, ITEMS = 64, 4096, 257, 6, 64
SIZES = (1_000, 10_000, 100_000)


def challenge(folder, store):
    """Return every record of the folder in one split."""
    return Challenge2020(folder, shares=(1.0, 0.0, 0.0), store=store)


def one_pass(folder, processes):
    """Return how many records were prepared into an empty store, and the seconds that it took, imports among them."""
    with tempfile.TemporaryDirectory() as scratch:
        data = challenge(folder, Path(scratch))
        _ = data._selected  # headers are read with and without a store
        began = time.perf_counter()
        before = os.times()
        count = data.prepare(processes=processes)[1]
        seconds, after = time.perf_counter() - began, os.times()
    busy = [now - then for now, then in zip(after[:4], before[:4], strict=True)]  # here and in processes that ended
    return {"records": count, "seconds": seconds, "processors": sum(busy)}


def epoch_seconds(split, epoch):
    """Return the seconds per record of an epoch's batches."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(epoch))
    began = time.perf_counter()
    for rows in order.split(BATCH):
        split.batch(rows, epoch)
    return (time.perf_counter() - began) / len(split)


def item_seconds(data, paths):
    """Return the seconds per record where each is read and prepared when it is asked for."""
    began = time.perf_counter()
    for path in paths:
        outcome = data._preparation.prepare(read_header(path))
        alone = SignalSplit(
            signals=[outcome.signal],
            person=torch.zeros(1, 5),
            labels=torch.zeros(1, 24),
            ids=torch.zeros(1, dtype=torch.int64),
            length=LENGTH,
            rate=RATE,
            window="random",
        )
        alone.batch([0], 0)
    return (time.perf_counter() - began) / len(paths)


def step_seconds(net, optimizer, batch):
    """Return the seconds of a training step with the labels alone."""
    began = time.perf_counter()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(net(*batch.inputs), batch.labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def write_store(folder, count, time_):
    """Write a store of so many records of random signals, 256 of them over and over."""
    signals = np.random.default_rng(0).standard_normal((256, 12, time_)).astype(np.float32)
    each = signals[0].nbytes
    with (folder / SIGNALS).open("wb") as file, (folder / INDEX).open("wb") as index:
        for number in range(count):
            file.write(signals[number % 256].data)
            key = number.to_bytes(16, "big")
            index.write(make_row(key, key, number * each, signals[number % 256], ""))


def resident():
    """Return the resident bytes of this process: anonymous memory, and pages of files that the system may take back."""
    told = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return [int(told[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")]


def memory(folder, count, held):
    """Return by how much resident memory grew to its peak in an epoch over a store, or over arrays that are held."""
    before = resident()
    rows = np.fromfile(Path(folder) / INDEX, dtype=ROW)
    signals = MappedSignals(SignalFile(Path(folder), rows))
    split = SignalSplit(
        signals=[signal.copy() for signal in signals] if held else signals,
        person=torch.zeros(count, 5),
        labels=torch.zeros(count, 24),
        ids=torch.arange(count),
        length=LENGTH,
        rate=RATE,
        window="random",
    )
    peak = before
    for number, chosen in enumerate(torch.randperm(count).split(BATCH)):
        split.batch(chosen, 0)
        if number % 10 == 0:
            peak = np.maximum(peak, resident())
    return (np.maximum(peak, resident()) - before).tolist()


def apart(what, *args):
    """Return what a function of this file says in a process of its own."""
    command = [sys.executable, __file__, "--call", json.dumps([what, *map(str, args)])]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def show_preparing(folder, rounds):
    """Compare passes of one process and of two."""
    passes = {1: [], 2: []}
    for turn in range(rounds):
        for processes in (1, 2) if turn % 2 else (2, 1):
            passes[processes].append(apart("one_pass", folder, processes))
    one, two = (statistics.median(each["seconds"] for each in seen) for seen in passes.values())
    pairs = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(*passes.values(), strict=True))
    best = [min(each["seconds"] for each in seen) for seen in passes.values()]
    busy = [min(each["processors"] for each in seen) for seen in passes.values()]
    print(f"preparing {passes[1][0]['records']} records: 1 process {one:.1f} s, 2 processes {two:.1f} s, ", end="")
    print(f"{one / two:.2f}x; pairs {pairs:.2f}x; fastest {best[0] / best[1]:.2f}x")
    print(f"  seconds of processors {busy[0]:.1f} and {busy[1]:.1f}: ", end="")
    print(f"{2 * busy[0] / busy[1]:.2f}x on two that do nothing else")


def show_reading(folder, rounds, scratch):
    """Compare an epoch from the store with preparing each record when it is asked for, and with a student's step."""
    data = challenge(folder, scratch)
    split = data.train
    paths = [header.path for header in data._selected[0]]
    item_seconds(data, paths[:2])  # imports
    first = epoch_seconds(split, 0)
    pairs = [
        (item_seconds(data, paths[at * ITEMS : (at + 1) * ITEMS]), epoch_seconds(split, at + 1))
        for at in range(min(rounds * 2, len(paths) // ITEMS))
    ]
    item, stored = (statistics.median(each) for each in zip(*pairs, strict=True))
    print(
        f"input of a record: prepared when asked for {item * 1e3:.2f} ms, from the store {stored * 1e3:.4f} ms, ",
        end="",
    )
    print(f"{item / stored:.0f}x; in the first epoch, which checks each record, {item / first:.0f}x")
    net = LRHNet(leads=12)
    optimizer = torch.optim.Adam(net.parameters())
    steps = []
    for number in range(STEPS + 1):
        rows = torch.randperm(len(split))[:BATCH]
        began = time.perf_counter()
        batch = split.batch(rows, number)
        seconds = time.perf_counter() - began
        steps.append((seconds, step_seconds(net, optimizer, batch)))
    fetched, on_step = (statistics.median(each) for each in zip(*steps[1:], strict=True))
    print(
        f"a batch of {BATCH} x 12 x {LENGTH}: {fetched * 1e3:.1f} ms of input to {on_step * 1e3:.0f} ms of LRH-Net's ",
        end="",
    )
    print(f"step, {fetched / on_step:.1%}")


def show_memory(scratch, seconds):
    """Print by how much resident memory grows in an epoch over more and more records."""
    print(f"resident memory of an epoch over records of {seconds:g} s, MB:")
    print("records    of signals   store: anonymous   store: pages of the file   held: anonymous")
    for count in SIZES:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            write_store(Path(folder), count, int(seconds * RATE))
            size = (Path(folder) / SIGNALS).stat().st_size
            anonymous, mapped = apart("memory", folder, count, "")
            held = f"{apart('memory', folder, count, 'held')[0] / 1e6:.0f}" if count < SIZES[-1] else "not tried"
            print(f"{count:<10,} {size / 1e6:<12,.0f} {anonymous / 1e6:<18.0f} {mapped / 1e6:<26,.0f} {held}")


def main():
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--call", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.call:
        what, *args = json.loads(given.call)
        print(
            json.dumps(
                one_pass(Path(args[0]), int(args[1])) if what == "one_pass" else memory(args[0], int(args[1]), args[2])
            )
        )
        return
    load = [f"{each:.2f}" for each in os.getloadavg()]
    if given.data:
        show_preparing(given.data.resolve(), given.rounds)
        with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
            show_reading(given.data.resolve(), given.rounds, Path(folder))
    show_memory(given.scratch, given.seconds)
    load += [f"{each:.2f}" for each in os.getloadavg()]
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}, load {', '.join(load)}")


if __name__ == "__main__":
    main()
