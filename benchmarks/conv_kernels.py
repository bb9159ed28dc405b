"""What the layout of features in memory, fused optimizers and inference mode are worth to the ECG nets on a CPU.

    python benchmarks/conv_kernels.py [--threads 2] [--rounds 15] [--apart 5] [--profile] [--compile]

The reference is the plain formulation, torch's own layers one by one with the same weights. Both are run in turns, and
compared by the medians and the minima of the time that passed, and by the minima of the time that the process got,
which tells more while others use the machine; a row has the three ratios in this order. What a process keeps of the
memory that it freed is settled once for all of it, so LRH-Net as `kdkit run` trains it is compared in processes of
their own, so many in turns as --apart says. --profile shows where a step goes, operation by operation.
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
    parser.add_argument("--apart", type=int, default=5, metavar="TURNS", help="of processes; 0 for none")
    parser.add_argument("--alone", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help="where a step of LRH-Net goes")
    parser.add_argument("--compile", action="store_true", help="torch.compile too; takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        return alone(options.alone, SIZES[0], options.rounds)
    for size in SIZES:
        students(size, options.rounds)
    if options.apart:
        apart(options)
    teachers((16, 12, 4096), options.rounds)
    optimizers(options.rounds)
    if options.compile:
        compiled(SIZES[1], options.rounds)
    if options.profile:
        profile(SIZES[0], options.rounds)
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    machine = f"{os.cpu_count()} cores, {platform.machine()}, load {load}"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads of {machine}, {options.rounds} rounds")


def students(size, rounds):
    """Compare LRH-Net, a training step without its optimizer and an inference forward, with its plain layers."""
    ours, reference, batch = pair(LRHNet, size)
    print(f"LRH-Net, {' x '.join(map(str, size))}")
    tell({"plain": lambda: step(reference, batch), "kdkit": lambda: step(ours, batch)}, "step", rounds)
    tell({"plain": lambda: forward(reference, batch), "kdkit": lambda: forward(ours, batch)}, "forward", rounds)


def apart(options):
    """Compare processes that train LRH-Net and ask it: plain, kdkit's, and kdkit's with freed memory kept."""
    took = defaultdict(list)
    for turn in range(options.apart):
        for kind in KINDS if turn % 2 else KINDS[::-1]:
            command = [sys.executable, __file__, "--alone", kind, "--threads", str(options.threads), "--rounds", "7"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            took[kind].append([float(each) for each in said.split()])
    print(f"LRH-Net, {' x '.join(map(str, SIZES[0]))}, {options.apart} processes of each in turns")
    for column, what in enumerate(("step", "forward")):
        for kind in KINDS:
            ratios = [ours[column] / plain[column] for ours, plain in zip(took[kind], took[KINDS[0]], strict=True)]
            seconds = statistics.median(each[column] for each in took[kind])
            least, most = min(ratios), max(ratios)
            middle = f"{statistics.median(ratios):.2f}x ({least:.2f} to {most:.2f})"
            print(f"  {what:28} {kind:24} {middle}   median {seconds * 1e3:.2f} ms")


def alone(kind, size, rounds):
    """Print the median seconds of a training step and of a forward, in a process that does nothing else."""
    if kind == KINDS[2] and not keep_freed_memory():
        sys.exit("malloc cannot be told to keep what is freed, or was told something else")
    ours, reference, batch = pair(LRHNet, size)
    net = reference if kind == KINDS[0] else ours
    medians = []
    for way in (step, forward):
        seconds = []
        for _ in range(rounds + 2):
            began = time.perf_counter()
            way(net, batch)
            seconds.append(time.perf_counter() - began)
        medians.append(statistics.median(seconds[2:]))
    print(*medians)


def teachers(size, rounds):
    """Compare ways of asking SE-ResNet, in the paper's width."""
    net, _, batch = pair(SEResNet, size)
    print(f"SE-ResNet, {' x '.join(map(str, size))}")
    modes = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    tell({name: lambda mode=mode: forward(net, batch, mode) for name, mode in modes.items()}, "forward", rounds)


def optimizers(rounds):
    """Compare the step of torch's optimizers with their fused ones."""
    for kind in (LRHNet, SEResNet):
        net = kind()
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3
        for make in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
            built = {
                name: make(copy.deepcopy(net).parameters(), lr=1e-4, **how)
                for name, how in {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}.items()
            }
            for optimizer in built.values():
                for group in optimizer.param_groups:
                    for mine, theirs in zip(group["params"], net.parameters(), strict=True):
                        mine.grad = theirs.grad.clone()
            steps = {name: optimizer.step for name, optimizer in built.items()}
            tell(steps, f"{make.__name__}.step, {kind.__name__}", rounds)


def compiled(size, rounds):
    """Compare torch.compile with running layer by layer."""
    ours, reference, batch = pair(LRHNet, size)
    print("torch.compile, LRH-Net")
    nets = {"plain": reference, "kdkit": ours}
    nets |= {f"{name}, compiled": torch.compile(net) for name, net in nets.items()}
    for what, how in (("step", step), ("forward", forward)):
        tell({name: lambda net=net, how=how: how(net, batch) for name, net in nets.items()}, what, rounds)


def pair(kind, size):
    """Return a net, the same of torch's own layers with the same weights, and a batch: signal, person, labels."""
    torch.manual_seed(0)
    ours = kind(size[1])
    reference = plain(ours)
    batch = torch.randn(size), torch.rand(size[0], 5), (torch.rand(size[0], 24) < 0.1).float()
    return ours, reference, batch


def plain(net):
    """Return a copy of a net with each layer that kdkit has a form of its own for as torch has it."""
    net = copy.deepcopy(net)
    for name, module in net.named_children():
        setattr(net, name, plain_layer(module) if not list(module.children()) else plain(module))
    return net


def plain_layer(layer):
    """Return a layer of torch's own, with the weights of this one."""
    made = layer
    if isinstance(layer, Conv1d):
        outputs, inputs, kernel = layer.weight.shape
        made = nn.Conv1d(inputs, outputs, kernel, layer.stride, layer.padding, bias=layer.bias is not None)
    elif isinstance(layer, BatchNorm1d):
        made = nn.BatchNorm1d(layer.num_features)
    made.load_state_dict(layer.state_dict())
    if isinstance(layer, Conv1d) and layer.pads != (layer.padding[0], layer.padding[0]):
        return nn.Sequential(nn.ConstantPad1d(layer.pads, 0.0), made)
    return made


def step(net, batch):
    """Train once, without the optimizer's part."""
    net.train()
    signal, person, labels = batch
    net.zero_grad(set_to_none=True)
    binary_cross_entropy_with_logits(net(signal, person), labels).backward()


def forward(net, batch, quiet=torch.no_grad):
    """Ask without gradients."""
    net.eval()
    with quiet():
        return net(*batch[:2])


def tell(ways, what, rounds):
    """Run the ways in turns, and print each beside the first."""
    passed, got = defaultdict(list), defaultdict(list)
    for number in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            began, before = time.perf_counter(), time.process_time()
            way()
            if number:
                passed[name].append(time.perf_counter() - began)
                got[name].append(time.process_time() - before)
    first = next(iter(ways))
    for name in ways:
        ratios = [statistics.median(passed[name]) / statistics.median(passed[first])]
        ratios += [min(each[name]) / min(each[first]) for each in (passed, got)]
        said = "x, ".join(f"{ratio:.2f}" for ratio in ratios)
        times = f"median {statistics.median(passed[name]) * 1e3:.2f} ms, least {min(passed[name]) * 1e3:.2f} ms"
        print(f"  {what:28} {name:24} {said}x   {times}")


class Clock(TorchDispatchMode):
    """Notes how long each operation takes; the thread's own time where there is but one."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        """Run an operation, and note its name, its first two shapes, and its seconds."""
        now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        began = now()
        answer = operation(*args, **(kwargs or {}))
        shapes = [tuple(each.shape) for each in args if isinstance(each, torch.Tensor)]
        self.noted.append(((str(operation).removeprefix("aten."), str(shapes[:2])[1:-1]), now() - began))
        return answer


def profile(size, rounds):
    """Print where a step goes: the least time of each operation over the rounds."""
    ours, reference, batch = pair(LRHNet, size)
    least = {}
    for _ in range(rounds + 1):
        for name, net in (("plain", reference), ("kdkit", ours)):
            with Clock() as clock:
                step(net, batch)
            before = least.get(name, clock.noted)
            least[name] = [(what, min(a, b)) for (what, a), (_, b) in zip(clock.noted, before, strict=True)]
    for name, noted in least.items():
        print(f"{name}: {sum(seconds for _, seconds in noted) * 1e3:.1f} ms in operations")
        grouped = defaultdict(list)
        for what, seconds in noted:
            grouped[what].append(seconds * 1e3)
        for (operation, shapes), times in sorted(grouped.items(), key=lambda each: -sum(each[1]))[:30]:
            print(f"  {sum(times):8.2f} ms  {len(times):3} x  {operation:38} {shapes}")


if __name__ == "__main__":
    main()
