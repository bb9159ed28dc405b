"""Measure exported LRH-Net and LRH-Net-S: the size of their files, and their latency against torch eager.

    python benchmarks/export.py [--leads 12] [--length 4096] [--seconds 60]

Each network is trained for one epoch on a few simulated records, which suffices for sizes and times, and exported in
every format. All run alternately for one sample on one thread. Printed are the medians and 95th percentiles of the wall
time, the medians of the CPU time, which other work on the machine affects less, and the ratios of both medians: to
torch eager with the same network, and of LRH-Net-S to LRH-Net.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import kdkit
from kdkit import ExportOptions, Net, Recipe, Stage, Training, Truth, export_net
from kdkit.export.gates import run_model
from kdkit.export.latency import machine, single_sample, time_in_turns
from kdkit.export.source import ExportSource
from kdkit.metrics import MacroAUROC
from kdkit_ecg import Leads, LRHNet, LRHNetS, Synthetic

NETWORKS = {"LRH-Net": LRHNet, "LRH-Net-S": LRHNetS}
FORMATS = ("onnx", "onnx-int8", "pt2")
LARGEST_FILE, LARGEST_PEAK = 110_000, 256 * 1024  # bytes of an int8 file without metadata, and of int8 activations
MOST_OF_TORCH = {"onnx": 0.75, "onnx-int8": 0.6}
MOST_OF_LRH_NET = 0.4


@dataclass(frozen=True)
class Pass:
    """What is timed: a network by torch, or an export of it, with its card."""

    network: str
    format: str
    call: object
    card: dict | None = None


def main():
    """Export, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leads", type=int, default=12)
    parser.add_argument("--length", type=int, default=4096, help="samples of a record")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all passes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        exported = {name: trained(name, Path(folder, name), options) for name in NETWORKS}
        passes = [timed for name, made in exported.items() for timed in passes_of(name, *made)]
    with torch.inference_mode():
        calls = {(timed.network, timed.format): timed.call for timed in passes}
        times = time_in_turns(calls, seconds=options.seconds, most_rounds=2000)
    print(f"{options.leads} leads, {options.length} samples, {len(next(iter(times.values())))} rounds; {machine()}")
    report(passes, times)


def trained(name, folder, options):
    """Train a network, and return it as the source of exports, with the results of all exports."""

    def recipe():
        torch.manual_seed(0)
        data = Synthetic(train=64, validation=32, test=32, rate=options.length / 10, length=options.length)
        net = Net("student", NETWORKS[name](leads=options.leads), view=Leads(options.leads))
        stage = Stage({net: Truth(nn.BCEWithLogitsLoss())}, Training(epochs=1, batch_size=16))
        return Recipe(data=data, schedule=[stage], metrics=(MacroAUROC(),))

    made = recipe()
    # No gate: one epoch on 64 records teaches nothing that metrics could compare.
    settings = ExportOptions(points=100, calibration=64, finish_epochs=0, timing_seconds=0)
    kdkit.run(recipe, out=folder / "run", device="cpu")
    results = export_net(made, folder / "run", to=FORMATS, out=folder / "export", options=settings)
    return ExportSource(made, next(iter(made.stages[0].objectives)), settings), results


def passes_of(name, source, results):
    """Yield the network by torch, and each of its exports."""
    inputs = single_sample(source)
    source.module.eval()
    yield Pass(name, "torch", lambda: source.module(*inputs))
    for result in results:
        model = kdkit.registry("exporters")[result.format]().open(result.path.read_bytes())
        yield Pass(name, result.format, lambda model=model: run_model(source, model, inputs), result.card)


def report(passes, times):
    """Print a row for each pass, and whether it meets its targets."""
    walls = {key: 1e3 * np.array([wall for wall, _ in values]) for key, values in times.items()}
    cpus = {key: float(1e3 * np.median([cpu for _, cpu in values])) for key, values in times.items()}

    def ratios(key, other):
        return np.median(walls[key]) / np.median(walls[other]), cpus[key] / cpus[other]

    print(f"{'network':<11}{'format':<11}{'bytes (without metadata)':>26}{'peak KiB':>10}{'p50 ms':>9}{'p95 ms':>9}"
          f"{'CPU ms':>9}  of torch (CPU)   of LRH-Net (CPU)")  # fmt: skip
    for timed in passes:
        key, card = (timed.network, timed.format), timed.card
        size = f"{card['bytes']:,} ({card['bytes_without_metadata']:,})" if card else "-"
        peak = f"{card['peak_activation_bytes'] / 1024:,.0f}" if card else "-"
        p50, p95 = np.percentile(walls[key], (50, 95))
        of_torch, of_lrh_net = ratios(key, (timed.network, "torch")), ratios(key, ("LRH-Net", timed.format))
        print(f"{timed.network:<11}{timed.format:<11}{size:>26}{peak:>10}{p50:>9.2f}{p95:>9.2f}{cpus[key]:>9.2f}"
              f"{of_torch[0]:>8.2f}x ({of_torch[1]:.2f}x){of_lrh_net[0]:>9.2f}x ({of_lrh_net[1]:.2f}x)")  # fmt: skip
        targets = {}
        if timed.format in MOST_OF_TORCH:
            most = MOST_OF_TORCH[timed.format]
            targets[f"{most}x of torch"] = of_torch[0] <= most
        if timed.format == "onnx-int8":
            targets[f"{LARGEST_FILE:,} bytes"] = card["bytes_without_metadata"] <= LARGEST_FILE
        if timed.network == "LRH-Net-S" and timed.format in MOST_OF_TORCH:
            targets[f"{MOST_OF_LRH_NET}x of LRH-Net"] = of_lrh_net[0] <= MOST_OF_LRH_NET
            if timed.format == "onnx-int8":
                targets[f"{LARGEST_PEAK // 1024} KiB"] = card["peak_activation_bytes"] <= LARGEST_PEAK
        for target, is_met in targets.items():
            print(f"  target {target}: {'met' if is_met else 'MISSED'}")


if __name__ == "__main__":
    main()
