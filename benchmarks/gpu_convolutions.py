"""Measure ways to compute the convolutions of the ECG networks on a GPU, without changing their mathematics.

    python benchmarks/gpu_convolutions.py [--device cuda] [--rounds 30] [--limit SECONDS] [--quick]

A row is the forward and backward pass of a network, captured as a CUDA graph and replayed; on a CPU it is run eagerly,
which only tests this script. The ways alternate. A ratio is relative to `kdkit`, the convolutions of kdkit_ecg in a
captured step, and is the median over pairs of rounds: below 1, the other way is faster. The next column is the norm of
the gradient's difference from that of `time last`, relative to its norm: rounding, of 10 bits in TF32.

Each network is measured in a process of its own, since an error of the device ends all that its process can measure. It
has a quarter of --limit, of which its start takes a part; rounds that do not fit are left out. A way that fails is left
out, with its reason.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from functools import partial
from unittest import mock

import torch

from kdkit_ecg import LRHNet, SEResNet
from kdkit_ecg.models import channels_last as layers
from kdkit_ecg.models.channels_last_blocks import fits_blocks

WAYS = {  # and what replaces functions of kdkit_ecg
    "time last": {"channels_last_on_cuda": lambda signal: False},
    "channels last": {"channels_last_on_cuda": lambda signal: True, "blocks_are_faster": lambda *_: False},
    "kdkit": {"channels_last_on_cuda": lambda signal: True},
    "blocks if they fit": {"channels_last_on_cuda": lambda signal: True, "blocks_are_faster": fits_blocks},
}
NETWORKS = {  # and their leads
    "LRH-Net, 3 leads": (lambda: LRHNet(leads=3), 3),
    "LRH-Net, 12 leads": (lambda: LRHNet(leads=12), 12),
    "SE-ResNet, 12 leads, width 16": (lambda: SEResNet(leads=12, width=16), 12),
    "SE-ResNet, 12 leads, width 64": (lambda: SEResNet(leads=12, width=64), 12),
}


class Passes:
    """The forward and backward pass of a network with one way to convolve.

    gradient: of all parameters, as one vector, without dropout, whose draws depend on the layout.
    """

    def __init__(self, make_network, way, batch, precision):
        self.way, self.batch, self.precision = way, batch, precision
        self.graph = None
        device = batch[0].device
        torch.manual_seed(0)
        self.network = make_network().to(device)
        with mock.patch.multiple(layers, **way):
            self.network.eval()
            self.compute()
            self.gradient = torch.cat([parameter.grad.flatten() for parameter in self.network.parameters()])
            self.network.train()
            if device.type == "cuda":
                self.warm_up(torch.cuda.Stream(device))
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self.compute()

    def warm_up(self, stream):
        """Compute on a stream of its own, as torch requires before a capture: libraries choose their kernels."""
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.compute()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()

    def compute(self):
        """Compute the gradients of all parameters."""
        signal, person = self.batch
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        with torch.autocast(signal.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.network(signal, person)
        output.float().square().mean().backward()

    def seconds(self):
        """Return the time of one pass, a mean of ten in graphs."""
        if self.graph is None:
            start = time.perf_counter()
            with mock.patch.multiple(layers, **self.way):
                self.compute()
            return time.perf_counter() - start
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(10):
            self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e4


def measure_network(title, options):
    """Print the rows of a network, in two precisions."""
    ends = time.monotonic() + options.limit / len(NETWORKS)
    device = torch.device(options.device)
    make_network, leads = NETWORKS[title]
    count, length = (4, 304) if options.quick else (64, 4096)
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(count, leads, length, generator=generator).to(device)
    person = torch.rand(count, 5, generator=generator).to(device)
    for precision, share in (("fp32", 0.5), ("bf16", 1.0)):
        now = time.monotonic()
        passes = {way: partial(Passes, make_network, WAYS[way], (signal, person), precision) for way in WAYS}
        measure(f"{title}, {precision}", passes, options.rounds, now + share * (ends - now))


def measure(title, constructors, rounds, ends):
    """Print a row for each way. constructors: of the passes of each way; ends: when no other round begins."""
    passes, times = {}, {way: [] for way in constructors}

    def attempt(way, method):
        try:
            return method()
        except Exception as error:  # whatever it is, the other ways are measured
            passes.pop(way, None)
            print(f"{title:36} {way:22} {type(error).__name__}: {str(error).partition(chr(10))[0]}", flush=True)
            return None

    for way, construct in constructors.items():
        case = attempt(way, construct)
        if case is not None:
            passes[way] = case
    for number in range(rounds):
        if number and time.monotonic() > ends:
            break
        for way, case in list(passes.items()):
            seconds = attempt(way, case.seconds)
            if seconds is not None:
                times[way].append(seconds)
    for way, case in passes.items():
        ratio = difference = float("nan")
        if "kdkit" in passes:
            ratio = statistics.median(own / used for own, used in zip(times[way], times["kdkit"], strict=True))
        if "time last" in passes:
            reference = passes["time last"].gradient
            difference = (case.gradient - reference).norm() / reference.norm()
        milliseconds = f"{1e3 * statistics.median(times[way]):9.3f} ms"
        print(
            f"{title:36} {way:22} {milliseconds} {ratio:7.3f}x {difference:9.1e}, {len(times[way])} rounds", flush=True
        )


def main():
    """Measure each network in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--limit", type=float, default=240, metavar="SECONDS", help="for all networks; default 240")
    parser.add_argument("--quick", action="store_true", help="few short records: a test of this script")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; `--device cpu --quick` tests this script without one")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {os.cpu_count()} cores", flush=True)
    for title in NETWORKS:
        process = multiprocessing.get_context("spawn").Process(target=measure_network, args=(title, options))
        process.start()
        process.join(options.limit / len(NETWORKS) + 10)
        if process.exitcode is None:
            process.kill()
            process.join()
        if process.exitcode:
            print(f"{title}: its process ended with code {process.exitcode}", flush=True)


if __name__ == "__main__":
    main()
