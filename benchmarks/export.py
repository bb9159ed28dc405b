"""Measure exported LRH-Nets: the size of their files, and their latency against torch eager.

    python benchmarks/export.py [--leads 12] [--length 4096] [--seconds 30]

A network is trained for one epoch on a few simulated records, which suffices for sizes and times, and exported in every
format. All run alternately for one sample on one thread. Printed are the medians and 95th percentiles of the wall time,
the medians of the CPU time, which other work on the machine affects less, and the ratios of both medians to torch.
"""

import argparse
import tempfile
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
from kdkit.utils.modules import eval_mode
from kdkit_ecg import Leads, LRHNet, Synthetic

FORMATS = ("onnx", "onnx-int8", "pt2")
# The ratio of the median to that of torch, and the bytes of the file without metadata.
TARGETS = {"onnx": (0.75, None), "onnx-int8": (0.6, 110_000)}


def main():
    """Export, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leads", type=int, default=12)
    parser.add_argument("--length", type=int, default=4096, help="samples of a record")
    parser.add_argument("--seconds", type=float, default=30.0, help="for all passes")
    options = parser.parse_args()

    def recipe():
        torch.manual_seed(0)
        data = Synthetic(train=64, validation=32, test=32, rate=options.length / 10, length=options.length)
        net = Net("student", LRHNet(leads=options.leads), view=Leads(options.leads))
        stage = Stage({net: Truth(nn.BCEWithLogitsLoss())}, Training(epochs=1, batch_size=16))
        return Recipe(data=data, schedule=[stage], metrics=(MacroAUROC(),))

    with tempfile.TemporaryDirectory() as folder:
        run, out = Path(folder, "run"), Path(folder, "export")
        kdkit.run(recipe, out=run, device="cpu")
        # No gate: one epoch on 64 records teaches nothing that metrics could compare.
        settings = ExportOptions(points=100, calibration=64, finish_epochs=0, timing_seconds=0)
        made = recipe()
        results = {result.format: result for result in export_net(made, run, to=FORMATS, out=out, options=settings)}
        source = ExportSource(made, next(iter(made.stages[0].objectives)), settings)
        contents = {name: result.path.read_bytes() for name, result in results.items()}
    report(source, results, contents, options)


def report(source, results, contents, options):
    """Time all formats in turns, and print a row for each."""
    models = {name: kdkit.registry("exporters")[name]().open(content) for name, content in contents.items()}
    inputs = single_sample(source)
    passes = {"torch": lambda: source.module(*inputs)}
    passes |= {name: lambda model=model: run_model(source, model, inputs) for name, model in models.items()}
    with eval_mode(source.module), torch.inference_mode():
        times = time_in_turns(passes, seconds=options.seconds, most_rounds=2000)
    walls = {name: 1e3 * np.array([wall for wall, _ in values]) for name, values in times.items()}
    cpus = {name: float(1e3 * np.median([cpu for _, cpu in values])) for name, values in times.items()}
    print(f"LRH-Net, {options.leads} leads, {options.length} samples, {len(walls['torch'])} rounds; {machine()}")
    print("format      bytes (without metadata)  peak KiB    p50 ms    p95 ms    CPU ms   p50 ratio   CPU ratio")
    for name, values in walls.items():
        card = results[name].card if name in results else None
        size = f"{card['bytes']:,} ({card['bytes_without_metadata']:,})" if card else "-"
        peak = f"{card['peak_activation_bytes'] / 1024:,.0f}" if card else "-"
        p50, p95 = np.percentile(values, (50, 95))
        ratios = p50 / np.median(walls["torch"]), cpus[name] / cpus["torch"]
        print(
            f"{name:<10}{size:>26}{peak:>10}{p50:>10.2f}{p95:>10.2f}{cpus[name]:>10.2f}"
            f"{ratios[0]:>11.2f}x{ratios[1]:>11.2f}x"
        )
        if name in TARGETS:
            ratio, most = TARGETS[name]
            is_small = most is None or card["bytes_without_metadata"] <= most
            print(f"  target {ratio}x{'' if most is None else f', {most:,} bytes'}: "
                  f"{'met' if min(ratios) <= ratio and is_small else 'MISSED'}")  # fmt: skip


if __name__ == "__main__":
    main()
