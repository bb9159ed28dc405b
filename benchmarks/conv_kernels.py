"""Measure the gains of channels last, fused optimizers and inference mode for the ECG networks on a CPU.

    python benchmarks/conv_kernels.py [--threads 2] [--rounds 15] [--apart 5] [--profile] [--compile]

The reference has torch's own layers with the same weights. Both run alternately. A row has three ratios: of the median
and of the minimum wall time, and of the minimum CPU time, which other work on the machine affects less. Whether a
process keeps freed memory can be set only once, so LRH-Net as `kdkit run` trains it is compared in separate processes;
--apart is their number. --profile prints the time of each operation of a step.
"""

import argparse
import copy
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._python_dispatch import TorchDispatchMode

from kdkit.utils.memory import keep_freed_memory
from kdkit_ecg import LRHNet, SEResNet
from kdkit_ecg.models.channels_last import BatchNorm1d, Conv1d

KINDS = ("plain", "kdkit", "kdkit, memory kept")
SIZES = ((64, 12, 4096), (32, 3, 1000))


def main():
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--apart", type=int, default=5, metavar="TURNS", help="separate processes of each kind; 0 for none"
    )
    parser.add_argument("--alone", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help="print the time of each operation of a step of LRH-Net")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too, which takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        return time_alone(options.alone, SIZES[0], options.rounds)
    for size in SIZES:
        students(size, options.rounds)
    if options.apart:
        compare_processes(options)
    teachers((16, 12, 4096), options.rounds)
    optimizers(options.rounds)
    if options.compile:
        compiled(SIZES[1], options.rounds)
    if options.profile:
        profile(SIZES[0], options.rounds)
    load = ", ".join(f"{load:.2f}" for load in os.getloadavg())
    machine = f"{os.cpu_count()} cores, {platform.machine()}, load {load}"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads of {machine}, {options.rounds} rounds")


def students(size, rounds):
    """Compare LRH-Net with torch's own layers: a training step without its optimizer, and an inference forward."""
    ours, reference, batch = nets_and_batch(LRHNet, size)
    print(f"LRH-Net, {' x '.join(map(str, size))}")
    compare({"plain": lambda: step(reference, batch), "kdkit": lambda: step(ours, batch)}, "step", rounds)
    compare({"plain": lambda: forward(reference, batch), "kdkit": lambda: forward(ours, batch)}, "forward", rounds)


def compare_processes(options):
    """Compare LRH-Net in separate processes: torch's layers, kdkit's, and kdkit's with freed memory kept."""
    times = defaultdict(list)  # by kind, (step, forward) of each process
    for turn in range(options.apart):
        for kind in KINDS if turn % 2 else KINDS[::-1]:
            command = [sys.executable, __file__, "--alone", kind, "--threads", str(options.threads), "--rounds", "7"]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            times[kind].append([float(seconds) for seconds in output.split()])
    print(f"LRH-Net, {' x '.join(map(str, SIZES[0]))}, {options.apart} processes of each kind, alternately")
    for column, what in enumerate(("step", "forward")):
        for kind in KINDS:
            ratios = [ours[column] / plain[column] for ours, plain in zip(times[kind], times[KINDS[0]], strict=True)]
            seconds = statistics.median(process[column] for process in times[kind])
            least, most = min(ratios), max(ratios)
            middle = f"{statistics.median(ratios):.2f}x ({least:.2f} to {most:.2f})"
            print(f"  {what:28} {kind:24} {middle}   median {seconds * 1e3:.2f} ms")


def time_alone(kind, size, rounds):
    """Print the median seconds of a training step and of a forward, in this process alone."""
    if kind == KINDS[2] and not keep_freed_memory():
        sys.exit("malloc cannot keep freed memory here, or is configured otherwise")
    ours, reference, batch = nets_and_batch(LRHNet, size)
    net = reference if kind == KINDS[0] else ours
    medians = []
    for function in (step, forward):
        seconds = []
        for _ in range(rounds + 2):
            start = time.perf_counter()
            function(net, batch)
            seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds[2:]))
    print(*medians)


def teachers(size, rounds):
    """Compare no_grad and inference_mode for SE-ResNet, at the paper's width."""
    net, _, batch = nets_and_batch(SEResNet, size)
    print(f"SE-ResNet, {' x '.join(map(str, size))}")
    modes = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    compare({name: lambda mode=mode: forward(net, batch, mode) for name, mode in modes.items()}, "forward", rounds)


def optimizers(rounds):
    """Compare the step of torch's optimizers with their fused ones."""
    for kind in (LRHNet, SEResNet):
        net = kind()
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3
        for make in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
            built = {
                name: make(copy.deepcopy(net).parameters(), lr=1e-4, **options)
                for name, options in {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}.items()
            }
            for optimizer in built.values():
                for group in optimizer.param_groups:
                    for copied, parameter in zip(group["params"], net.parameters(), strict=True):
                        copied.grad = parameter.grad.clone()
            steps = {name: optimizer.step for name, optimizer in built.items()}
            compare(steps, f"{make.__name__}.step, {kind.__name__}", rounds)


def compiled(size, rounds):
    """Compare torch.compile with running layer by layer."""
    ours, reference, batch = nets_and_batch(LRHNet, size)
    print("torch.compile, LRH-Net")
    nets = {"plain": reference, "kdkit": ours}
    nets |= {f"{name}, compiled": torch.compile(net) for name, net in nets.items()}
    for label, function in (("step", step), ("forward", forward)):
        methods = {name: lambda net=net, function=function: function(net, batch) for name, net in nets.items()}
        compare(methods, label, rounds)


def nets_and_batch(kind, size):
    """Return a network, the same with torch's own layers and the same weights, and a batch: signal, person, labels."""
    torch.manual_seed(0)
    ours = kind(size[1])
    reference = plain(ours)
    batch = torch.randn(size), torch.rand(size[0], 5), (torch.rand(size[0], 24) < 0.1).float()
    return ours, reference, batch


def plain(net):
    """Return a copy of a network with torch's layers in place of kdkit's."""
    net = copy.deepcopy(net)
    for name, module in net.named_children():
        setattr(net, name, plain_layer(module) if not list(module.children()) else plain(module))
    return net


def plain_layer(layer):
    """Return the layer of torch with the weights of this one."""
    plain = layer
    if isinstance(layer, Conv1d):
        outputs, inputs, kernel = layer.weight.shape
        plain = nn.Conv1d(inputs, outputs, kernel, layer.stride, layer.padding, bias=layer.bias is not None)
    elif isinstance(layer, BatchNorm1d):
        plain = nn.BatchNorm1d(layer.num_features)
    plain.load_state_dict(layer.state_dict())
    if isinstance(layer, Conv1d) and layer.pads != (layer.padding[0], layer.padding[0]):
        return nn.Sequential(nn.ConstantPad1d(layer.pads, 0.0), plain)
    return plain


def step(net, batch):
    """Run a training step without its optimizer."""
    net.train()
    signal, person, labels = batch
    net.zero_grad(set_to_none=True)
    binary_cross_entropy_with_logits(net(signal, person), labels).backward()


def forward(net, batch, mode=torch.no_grad):
    """Run a forward pass without gradients."""
    net.eval()
    with mode():
        return net(*batch[:2])


def compare(methods, label, rounds):
    """Run the methods alternately, and print the ratio of each to the first."""
    wall, cpu = defaultdict(list), defaultdict(list)
    for number in range(rounds + 1):  # the first warms up
        for name, method in methods.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            method()
            if number:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - cpu_start)
    first = next(iter(methods))
    for name in methods:
        ratios = [statistics.median(wall[name]) / statistics.median(wall[first])]
        ratios += [min(seconds[name]) / min(seconds[first]) for seconds in (wall, cpu)]
        text = "x, ".join(f"{ratio:.2f}" for ratio in ratios)
        times = f"median {statistics.median(wall[name]) * 1e3:.2f} ms, minimum {min(wall[name]) * 1e3:.2f} ms"
        print(f"  {label:28} {name:24} {text}x   {times}")


class OperationTimer(TorchDispatchMode):
    """Records the time of each operation: CPU time if there is one thread, wall time otherwise."""

    def __init__(self):
        super().__init__()
        self.records = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        """Run an operation, and record its name, its first two shapes, and its seconds."""
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        output = operation(*args, **(kwargs or {}))
        shapes = [tuple(arg.shape) for arg in args if isinstance(arg, torch.Tensor)]
        self.records.append(((str(operation).removeprefix("aten."), str(shapes[:2])[1:-1]), clock() - start))
        return output


def profile(size, rounds):
    """Print the minimum time over the rounds of each operation of a step."""
    ours, reference, batch = nets_and_batch(LRHNet, size)
    least = {}
    for _ in range(rounds + 1):
        for name, net in (("plain", reference), ("kdkit", ours)):
            with OperationTimer() as timer:
                step(net, batch)
            fastest = least.get(name, timer.records)
            least[name] = [(key, min(a, b)) for (key, a), (_, b) in zip(timer.records, fastest, strict=True)]
    for name, records in least.items():
        print(f"{name}: {sum(seconds for _, seconds in records) * 1e3:.1f} ms in operations")
        grouped = defaultdict(list)
        for key, seconds in records:
            grouped[key].append(seconds * 1e3)
        for (operation, shapes), times in sorted(grouped.items(), key=lambda item: -sum(item[1]))[:30]:
            print(f"  {sum(times):8.2f} ms  {len(times):3} x  {operation:38} {shapes}")


if __name__ == "__main__":
    main()
