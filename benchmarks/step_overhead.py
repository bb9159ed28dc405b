"""Measure the overhead of a step of kdkit over a hand-written loop, in the smallest network and in one with many taps.

    python benchmarks/step_overhead.py [step] [console] [taps] [distiller] [import]

Both loops train the same model on the same batches in the same order, and run the teacher at every step. They run
alternately. Printed are the median over rounds of the additional time, with a 95 % interval, and the difference of the
minima, which other work on the machine affects less. `step` is a network of one layer; `console` the same with the
live view on a pseudo-terminal, which another process reads; `taps` a small convolutional network (four layers of 8 to
32 channels on 32 x 32 images, a teacher twice as wide) with 8 taps and 6 terms; `distiller` the network of one layer in
a plain loop around a `kdkit.Distiller`; `import` compares the import of kdkit with that of torch.
"""

import os
import platform
import pty
import statistics
import subprocess
import sys
import time
from itertools import pairwise

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit.engine.display.console import ConsoleCallback

EPOCHS, IMPORTS = 3, 9


class OneLayer:
    """A network of one layer that learns from soft targets."""

    samples, batch, taps, rounds = 12_800, 64, (), 41

    def data(self):
        """Return inputs (samples, 16) and labels (samples,)."""
        torch.manual_seed(1)
        return torch.randn(self.samples, 16), torch.randint(0, 4, (self.samples,))

    def nets(self):
        """Return a teacher and a student of one layer."""
        torch.manual_seed(0)
        return nn.Linear(16, 4), nn.Linear(16, 4)

    def kd_terms(self):
        """Return each loss against the teacher, the tapped layer (None for the outputs), and its weight."""
        return [(kdkit.losses.SoftTargets(temperature=4.0), None, 0.5)]


class Convolutional(OneLayer):
    """Four layers of convolution, each tapped on both sides, and six terms."""

    samples, batch, taps, rounds = 640, 32, (0, 3, 6, 9), 15

    def data(self):
        """Return images (samples, 3, 32, 32) and labels (samples,)."""
        torch.manual_seed(1)
        return torch.randn(self.samples, 3, 32, 32), torch.randint(0, 10, (self.samples,))

    def nets(self):
        """Return a teacher and a student of half its width."""
        torch.manual_seed(0)
        return self.net(16), self.net(8)

    def net(self, width):
        """Return a network of four layers and a head."""
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        layers = []
        for index, (before, after) in enumerate(pairwise(widths)):
            conv = nn.Conv2d(before, after, 3, stride=1 if index in (0, 3) else 2, padding=1)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))

    def kd_terms(self):
        """Return each loss against the teacher, the tapped layer (None for the outputs), and its weight."""
        soft = kdkit.losses.SoftTargets(temperature=4.0)
        features = [kdkit.losses.AttentionTransfer(), kdkit.losses.Hint(), kdkit.losses.Hint(), kdkit.losses.SP()]
        return [(soft, None, 0.5), *((loss, tap, 0.1) for loss, tap in zip(features, self.taps, strict=True))]


def by_hand(case, inputs, labels):
    """Return the seconds per step of the plainest loop that does the same work."""
    teacher, student = case.nets()
    teacher.eval()
    truth, kd_terms = nn.CrossEntropyLoss(), case.kd_terms()
    teacher_features, student_features = tapped(teacher, case.taps), tapped(student, case.taps)
    with torch.no_grad():
        teacher(inputs[:4]), student.eval()(inputs[:4])  # for the shapes of the features
    trained = [*student.parameters()]
    for loss, tap, _ in kd_terms:
        if hasattr(loss, "build"):
            context = kdkit.BuildContext(classes=("a",), task="multiclass", samples=case.samples, ids=True)
            loss.build((student_features[tap].shape,), (teacher_features[tap].shape,), context, teacher)
            trained += loss.parameters()
    optimizer = torch.optim.Adam(trained, lr=1e-3, fused=True)  # as kdkit chooses on a CPU
    seconds = []
    for epoch in range(EPOCHS):
        order = torch.randperm(case.samples, generator=torch.Generator().manual_seed(epoch))
        student.train()
        start = time.perf_counter()
        for rows in order.split(case.batch):
            x, y = inputs[rows], labels[rows]
            with torch.no_grad():
                target = teacher(x)
            output = student(x)
            total = 0.5 * truth(output, y)
            for loss, tap, weight in kd_terms:
                sides = (output, target) if tap is None else (student_features[tap], teacher_features[tap])
                total = total + weight * loss(*sides)
            total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / (case.samples // case.batch)


def tapped(module, taps):
    """Return a dict with the latest output of each of these layers."""
    features = {}
    for tap in taps:
        module[tap].register_forward_hook(lambda _module, _args, output, tap=tap: features.update({tap: output}))
    return features


def by_kdkit(case, inputs, labels, callbacks=(), teacher_cache="off"):
    """Return the seconds per step in kdkit, by the time of its epochs; by default the teacher runs at every step."""
    student, objective = student_and_objective(case)
    optimizer = kdkit.Optimizer(torch.optim.Adam, lr=1e-3)
    training = kdkit.Training(epochs=EPOCHS, batch_size=case.batch, optimizer=optimizer)
    data = kdkit.TorchData(TensorDataset(inputs, labels), TensorDataset(inputs[:64], labels[:64]))
    recipe = kdkit.Recipe(data=data, schedule=[kdkit.Stage({student: objective}, training)])
    history = kdkit.run(recipe, teacher_cache=teacher_cache, callbacks=callbacks, progress=False).history["student"]
    return min(epoch["seconds"] for epoch in history) / (case.samples // case.batch)


def student_and_objective(case):
    """Return a student, and its objective against the labels and a teacher."""
    teacher_module, student_module = case.nets()
    teacher, student = kdkit.Net("teacher", teacher_module, trained=True), kdkit.Net("student", student_module)
    objective = 0.5 * kdkit.Truth(nn.CrossEntropyLoss())
    for number, (loss, tap, weight) in enumerate(case.kd_terms()):
        taps = (
            {"student": kdkit.Tap(student_module[tap]), "target": kdkit.Tap(teacher_module[tap])}
            if tap is not None
            else {}
        )
        objective = objective + weight * kdkit.Match(teacher, loss, label=f"term {number}", **taps)
    return student, objective


def by_distiller(case, inputs, labels):
    """Return the seconds per step of a plain loop around a Distiller."""
    student, objective = student_and_objective(case)
    seconds = []
    with kdkit.Distiller(student, objective, (inputs[:4], labels[:4]), samples=case.samples) as distiller:
        optimizer = torch.optim.Adam(distiller.parameters(), lr=1e-3, fused=True)
        for epoch in range(EPOCHS):
            order = torch.randperm(case.samples, generator=torch.Generator().manual_seed(epoch))
            distiller.train()
            start = time.perf_counter()
            for rows in order.split(case.batch):
                distiller(inputs[rows], labels[rows]).loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - start)
    return min(seconds) / (case.samples // case.batch)


def with_console(case, inputs, labels):
    """Return the seconds per step with the live view on a pseudo-terminal, which another process reads."""
    leader, terminal = pty.openpty()
    reader = subprocess.Popen(["cat"], stdin=leader, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(leader)
    with os.fdopen(terminal, "w") as file:
        # The environment may say that there is no terminal, as NO_COLOR does.
        console = Console(file=file, width=100, height=32, _environ={"TERM": "xterm-256color"})
        seconds = by_kdkit(case, inputs, labels, [ConsoleCallback(console)])
    reader.wait()  # it ends when the terminal is closed
    return seconds


def compare(name, case, kdkit_loop):
    """Print the time of a step by hand and in kdkit."""
    inputs, labels = case.data()
    loops, pairs = (by_hand, kdkit_loop), []
    for number in range(case.rounds + 1):
        order = loops if number % 2 else loops[::-1]  # neither loop is always the first
        milliseconds = {loop: loop(case, inputs, labels) * 1e3 for loop in order}
        pairs.append([milliseconds[loop] for loop in loops])
    hand, ours = zip(*pairs[1:], strict=True)  # the first round warms up
    more = [kdkit_time - plain for plain, kdkit_time in zip(hand, ours, strict=True)]
    middle, low, high = median_and_interval(more)
    ratio = statistics.median(kdkit_time / plain for plain, kdkit_time in zip(hand, ours, strict=True))
    print(
        f"{name}: by hand {statistics.median(hand):.3f} ms; kdkit {middle:+.3f} ms "
        f"({low:+.3f} to {high:+.3f}), {ratio:.3f}x; minima {min(ours) - min(hand):+.3f} ms, "
        f"{min(ours) / min(hand):.3f}x; {len(more)} rounds"
    )


def median_and_interval(values):
    """Return the median and its 95 % interval by order statistics: the rank is binomial, with sd sqrt(n) / 2."""
    ordered, last = sorted(values), len(values) - 1
    lower = max(round(last / 2 - 0.98 * len(values) ** 0.5), 0)
    return statistics.median(ordered), ordered[lower], ordered[last - lower]


def import_seconds(statement):
    """Return the seconds of a statement in a fresh interpreter, without its start."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def imports():
    """Compare the import of kdkit with that of torch."""
    all_names = "import kdkit; [getattr(kdkit, name) for name in kdkit.__all__]"
    statements = ("import torch", "import kdkit, torch", all_names)
    rounds = [[import_seconds(statement) for statement in statements] for _ in range(IMPORTS)]
    base, bare, whole = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    print(f"import torch {base:.2f} s; with kdkit {bare / base:.2f}x; with every public name {whole / base:.2f}x")


def main():
    """Run the named measurements, or all, and print ratios."""
    torch.set_num_threads(1)
    measures = {
        "step": lambda: compare("one layer", OneLayer(), by_kdkit),
        "console": lambda: compare("one layer, console on", OneLayer(), with_console),
        "taps": lambda: compare("8 taps, 6 terms", Convolutional(), by_kdkit),
        "distiller": lambda: compare("one layer, kdkit.Distiller", OneLayer(), by_distiller),
        "import": imports,
    }
    names = sys.argv[1:] or list(measures)
    if not set(names) <= set(measures):
        raise SystemExit(__doc__)
    for name in names:
        measures[name]()
    load = ", ".join(f"{load:.2f}" for load in os.getloadavg())
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}, load {load}")


if __name__ == "__main__":
    main()
