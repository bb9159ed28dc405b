"""Measure ways to compute the convolutions of the ECG networks on a GPU, without changing their mathematics.

    python benchmarks/gpu_convolutions.py [--device cuda] [--rounds 30] [--quick]

A row is the forward and backward pass of a network, captured as a CUDA graph and replayed; on a CPU it is run eagerly,
which only tests this script. The ways alternate. A ratio is relative to `channels last`, which kdkit_ecg uses, and is
the median over pairs of rounds. The last column is the norm of the gradient's difference from that of `time last`,
relative to its norm: rounding, of 10 bits in TF32.
"""

import argparse
import os
import statistics
import time
from unittest import mock

import torch
from torch.nn import functional

from kdkit_ecg import LRHNet, SEResNet
from kdkit_ecg.models import channels_last as layers

USED = "channels last"


def time_last(signal, weight, bias, stride, pads):
    """Convolve as `nn.Conv1d`."""
    return functional.conv1d(functional.pad(signal, pads), weight, bias, stride)


def channels_last(signal, weight, bias, stride, pads):
    """Convolve as kdkit_ecg on CUDA."""
    image = functional.pad(signal.unsqueeze(2).contiguous(memory_format=torch.channels_last), pads)
    kernel = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    return functional.conv2d(image, kernel, bias, (1, stride)).squeeze(2)


def folded(signal, weight, bias, stride, pads):
    """Convolve as `channels_last`, but if strided, without a stride on `stride` times as many channels.

    With channels last, `stride` successive samples are one sample of more channels, without a copy.
    """
    if stride == 1:
        return channels_last(signal, weight, bias, stride, pads)
    channels, kernel = weight.shape[1:]
    taps = -(-kernel // stride)  # of the folded kernel
    length = (signal.shape[2] + sum(pads) - kernel) // stride + 1
    right = stride * (length + taps - 1) - signal.shape[2] - pads[0]  # negative if the last samples have no effect
    rows = functional.pad(signal.transpose(1, 2), (0, 0, pads[0], right)).contiguous()  # (N, T, channels)
    blocks = rows.view(len(rows), -1, stride * channels)
    parts = functional.pad(weight, (0, stride * taps - kernel)).unflatten(2, (taps, stride))
    merged = parts.permute(0, 3, 1, 2).flatten(1, 2)  # (outputs, stride * channels, taps)
    return channels_last(blocks.transpose(1, 2), merged, bias, 1, (0, 0))


def folded_with_four_leads(signal, weight, bias, stride, pads):
    """Convolve as `folded`, with a fourth lead of zeros if there are three: tensor cores take multiples of four."""
    if signal.shape[1] == 3:
        signal, weight = functional.pad(signal, (0, 0, 0, 1)), functional.pad(weight, (0, 0, 0, 1))
    return folded(signal, weight, bias, stride, pads)


WAYS = {
    "time last": time_last,
    USED: channels_last,
    "strided ones folded": folded,
    "the same, 4 leads": folded_with_four_leads,
}


class Passes:
    """The forward and backward pass of a network with one way to convolve.

    gradient: of all parameters, as one vector, without dropout, whose draws depend on the layout.
    """

    def __init__(self, network, convolve, batch, precision):
        self.network, self.convolve, self.batch, self.precision = network, convolve, batch, precision
        self.graph = None
        device = batch[0].device
        with mock.patch.object(layers, "convolve", convolve):
            network.eval()
            self.compute()
            self.gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
            network.train()
            for _ in range(3):  # kernels are chosen, and gradients allocated
                self.compute()
            if device.type == "cuda":
                torch.cuda.synchronize()
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self.compute()

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
            with mock.patch.object(layers, "convolve", self.convolve):
                self.compute()
            return time.perf_counter() - start
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(10):
            self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e4


def measure(title, make_network, size, precision, device, rounds):
    """Print a row for each way."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(size, generator=generator).to(device)
    person = torch.rand(size[0], 5, generator=generator).to(device)
    passes = {}
    for way, convolve in WAYS.items():
        torch.manual_seed(0)
        passes[way] = Passes(make_network().to(device), convolve, (signal, person), precision)
    times = {way: [] for way in passes}
    for _ in range(rounds):
        for way, case in passes.items():
            times[way].append(case.seconds())
    reference = passes["time last"].gradient
    for way, case in passes.items():
        ratio = statistics.median(own / used for own, used in zip(times[way], times[USED], strict=True))
        difference = (case.gradient - reference).norm() / reference.norm()
        milliseconds = 1e3 * statistics.median(times[way])
        print(f"{title:44} {way:22} {milliseconds:9.3f} ms {ratio:7.3f}x {difference:9.1e}", flush=True)


def main():
    """Measure the student and the teachers, each in two precisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="few short records: a test of this script")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; `--device cpu --quick` tests this script without one")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {os.cpu_count()} cores")
    batch, length = (4, 301) if options.quick else (64, 4096)
    networks = {
        "LRH-Net, 3 leads": (lambda: LRHNet(leads=3), 3),
        "LRH-Net, 12 leads": (lambda: LRHNet(leads=12), 12),
        "SE-ResNet, 12 leads, width 16": (lambda: SEResNet(leads=12, width=16), 12),
        "SE-ResNet, 12 leads, width 64": (lambda: SEResNet(leads=12, width=64), 12),
    }
    for title, (make_network, leads) in networks.items():
        for precision in ("fp32", "bf16"):
            measure(f"{title}, {precision}", make_network, (batch, leads, length), precision, device, options.rounds)


if __name__ == "__main__":
    main()
