"""What a step of kdkit costs over a hand-written loop: where nothing else takes time, and in a net of many taps.

    python benchmarks/step_overhead.py [step] [console] [taps] [import]

Both loops train the same model on the same batches in the same order, with a teacher asked every step. They are run in
turns, first the one and then the other; given are the median over rounds of what kdkit's turn took more, with an
interval that holds it in 95 of 100 such calls, and the least of each, which other work on the machine moves less.
`step` is a net of one layer; `console` the same with the bar of a terminal on; `taps` a small convolutional net (four
layers of 8 to 32 channels on 32 x 32 images, a teacher twice as wide) with 8 taps and 6 terms; `import` compares the
import of kdkit with that of torch.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit.cli.console import ConsoleCallback

EPOCHS, IMPORTS = 3, 9


class OneLayer:
    """A net of one layer, taught by soft targets."""

    samples, batch, taps, rounds = 12_800, 64, (), 41

    def data(self):
        """Return inputs (samples, 16) and labels (samples,)."""
        torch.manual_seed(1)
        return torch.randn(self.samples, 16), torch.randint(0, 4, (self.samples,))

    def nets(self):
        """Return a teacher and a student of one layer."""
        torch.manual_seed(0)
        return nn.Linear(16, 4), nn.Linear(16, 4)

    def guides(self):
        """Return each loss on a teacher, the tapped layer (None for the outputs), and its weight."""
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
        """Return a net of four layers and a head."""
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        layers = []
        for index, (before, after) in enumerate(pairwise(widths)):
            conv = nn.Conv2d(before, after, 3, stride=1 if index in (0, 3) else 2, padding=1)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))

    def guides(self):
        """Return each loss on a teacher, the tapped layer (None for the outputs), and its weight."""
        soft = kdkit.losses.SoftTargets(temperature=4.0)
        features = [kdkit.losses.AttentionTransfer(), kdkit.losses.Hint(), kdkit.losses.Hint(), kdkit.losses.SP()]
        return [(soft, None, 0.5), *((loss, tap, 0.1) for loss, tap in zip(features, self.taps, strict=True))]


def by_hand(case, inputs, labels):
    """Return the seconds per step of the plainest loop that does the same work."""
    teacher, student = case.nets()
    teacher.eval()
    truth, guides = nn.CrossEntropyLoss(), case.guides()
    theirs, ours = heard_by(teacher, case.taps), heard_by(student, case.taps)
    with torch.no_grad():
        teacher(inputs[:4]), student.eval()(inputs[:4])
    trained = [*student.parameters()]
    for loss, tap, _ in guides:
        if hasattr(loss, "build"):
            facts = kdkit.BuildContext(classes=("a",), task="multiclass", samples=case.samples, ids=True)
            loss.build((ours[tap].shape,), (theirs[tap].shape,), facts, teacher)
            trained += loss.parameters()
    optimizer = torch.optim.Adam(trained, lr=1e-3, fused=True)  # as kdkit chooses on a CPU
    seconds = []
    for epoch in range(EPOCHS):
        order = torch.randperm(case.samples, generator=torch.Generator().manual_seed(epoch))
        student.train()
        began = time.perf_counter()
        for rows in order.split(case.batch):
            x, y = inputs[rows], labels[rows]
            with torch.no_grad():
                answer = teacher(x)
            output = student(x)
            total = 0.5 * truth(output, y)
            for loss, tap, weight in guides:
                total = total + weight * (loss(output, answer) if tap is None else loss(ours[tap], theirs[tap]))
            total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / (case.samples // case.batch)


def heard_by(module, taps):
    """Return a dict that holds what each of these layers gave last."""
    heard = {}
    for tap in taps:
        module[tap].register_forward_hook(lambda _module, _args, output, tap=tap: heard.update({tap: output}))
    return heard


def by_kdkit(case, inputs, labels, callbacks=(), teacher_cache="off"):
    """Return the seconds per step of the same through kdkit, its own epochs' clock; the teacher is asked every step."""
    module, learner = case.nets()
    teacher, student = kdkit.Net("teacher", module, trained=True), kdkit.Net("student", learner)
    objective = 0.5 * kdkit.Truth(nn.CrossEntropyLoss())
    for number, (loss, tap, weight) in enumerate(case.guides()):
        sides = {} if tap is None else {"student": kdkit.Tap(learner[tap]), "target": kdkit.Tap(module[tap])}
        objective = objective + weight * kdkit.Match(teacher, loss, label=f"guide {number}", **sides)
    optimizer = kdkit.Optimizer(torch.optim.Adam, lr=1e-3)
    training = kdkit.Training(epochs=EPOCHS, batch_size=case.batch, optimizer=optimizer)
    data = kdkit.TorchData(TensorDataset(inputs, labels), TensorDataset(inputs[:64], labels[:64]))
    recipe = kdkit.Recipe(data=data, schedule=[kdkit.Stage({student: objective}, training)])
    history = kdkit.run(recipe, teacher_cache=teacher_cache, callbacks=callbacks).history["student"]
    return min(epoch["seconds"] for epoch in history) / (case.samples // case.batch)


def with_console(case, inputs, labels):
    """Return the seconds per step with the bar of a terminal on, which is written to a file."""
    with tempfile.TemporaryFile("w") as file:
        return by_kdkit(case, inputs, labels, [ConsoleCallback(Console(file=file, force_terminal=True))])


def compared(name, case, measured):
    """Print what a step costs in turns by hand and by kdkit."""
    inputs, labels = case.data()
    ways, pairs = (by_hand, measured), []
    for number in range(case.rounds + 1):
        order = ways if number % 2 else ways[::-1]
        took = {way: way(case, inputs, labels) * 1e3 for way in order}
        pairs.append([took[way] for way in ways])
    hand, ours = zip(*pairs[1:], strict=True)  # the first turn warms up
    more = sorted(mine - plain for plain, mine in zip(hand, ours, strict=True))
    off = round(0.98 * len(more) ** 0.5)
    low, high = more[len(more) // 2 - off], more[len(more) // 2 + off]
    ratio = statistics.median(mine / plain for plain, mine in zip(hand, ours, strict=True))
    print(
        f"{name}: by hand {statistics.median(hand):.3f} ms; kdkit {statistics.median(more):+.3f} ms "
        f"({low:+.3f} to {high:+.3f}), {ratio:.3f}x; least of each {min(ours) - min(hand):+.3f} ms, "
        f"{min(ours) / min(hand):.3f}x; {len(more)} rounds"
    )


def import_seconds(statement):
    """Return how long a fresh interpreter takes for a statement, its own start left out."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def imports():
    """Print how the import of kdkit compares with that of torch."""
    face = "import kdkit; [getattr(kdkit, name) for name in kdkit.__all__]"
    statements = ("import torch", "import kdkit, torch", face)
    rounds = [[import_seconds(each) for each in statements] for _ in range(IMPORTS)]
    base, bare, whole = (statistics.median(each) for each in zip(*rounds, strict=True))
    print(f"import torch {base:.2f} s; with kdkit {bare / base:.2f}x; with every name of its face {whole / base:.2f}x")


def main():
    """Measure what is asked for, or all, and print ratios."""
    torch.set_num_threads(1)
    measures = {
        "step": lambda: compared("one layer", OneLayer(), by_kdkit),
        "console": lambda: compared("one layer, console on", OneLayer(), with_console),
        "taps": lambda: compared("8 taps, 6 terms", Convolutional(), by_kdkit),
        "import": imports,
    }
    for name in sys.argv[1:] or measures:
        measures[name]()
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}, load {load}")


if __name__ == "__main__":
    main()
