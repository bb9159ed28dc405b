"""Measure `kdkit predict`: records per second from files to rows, imports included, on one and two processes.

    python benchmarks/predict.py --data DIR [--model FILE] [--rounds 3]

DIR holds records of a Challenge, which are all predicted. FILE is an exported network; without it, LRH-Net for 12 leads
and 4,096 samples is exported with random weights, which take the same time. Printed are the wall time of the command,
and its CPU time, which other work on the machine affects less: two idle cores take half of that of two processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import BCEWithLogitsLoss

from kdkit import ExportOptions, Net, Recipe, Stage, Training, Truth, export_net
from kdkit.export.latency import machine
from kdkit.metrics import MacroF1
from kdkit_ecg import Challenge2020, LRHNet

TARGET = 50  # records per second on two cores


def main():
    """Export a network if none is given, run the command in turns, and print a row for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or exported(options.data, Path(folder))
        runs = {jobs: [] for jobs in (1, 2)}
        for _ in range(options.rounds):
            for jobs, results in runs.items():
                results.append(predict(model, options.data, Path(folder, "rows.jsonl"), jobs))
    print(f"{runs[1][0]['rows']} rows, {runs[1][0]['refused']} of them refused; {machine()}")
    reached = 0.0
    for jobs, results in runs.items():
        rows = results[0]["rows"]
        wall, cpu = (statistics.median(result[key] for result in results) for key in ("seconds", "cpu_seconds"))
        print(
            f"--jobs {jobs}: {wall:.1f} s, {rows / wall:.1f} records/s; CPU {cpu:.1f} s, {jobs * rows / cpu:.1f} per s"
        )
        reached = max(reached, rows / wall)
    print(f"target {TARGET} records/s on two cores: {'met' if reached >= TARGET else 'MISSED'}")


def exported(data, folder):
    """Return an exported LRH-Net whose weights are random."""
    torch.manual_seed(0)
    dataset = Challenge2020(data, store=folder / "store")
    net = Net("student", LRHNet.for_data(dataset))
    save_file(
        {name: tensor.contiguous() for name, tensor in net.network.state_dict().items()}, folder / "net.safetensors"
    )
    stage = Stage({net: Truth(BCEWithLogitsLoss())}, Training(epochs=1))
    recipe = Recipe(data=dataset, schedule=[stage], metrics=(MacroF1(),))
    settings = ExportOptions(points=100, timing_seconds=0)
    return export_net(recipe, folder / "net.safetensors", out=folder / "student.onnx", options=settings)[0].path


def predict(model, data, out, jobs):
    """Return the rows and the seconds of a command."""
    before, start = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "kdkit", "predict", model, data, "--out", out, "--jobs", str(jobs)]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode not in (0, 1):  # 1 if a record is refused
        raise SystemExit(done.stderr)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    out.unlink()
    return {
        "rows": len(rows),
        "refused": sum(row["refused"] is not None for row in rows),
        "seconds": seconds,
        "cpu_seconds": sum(after[2:4]) - sum(before[2:4]),  # of finished children, and of theirs
    }


if __name__ == "__main__":
    main()
