"""What a step of kdkit costs over a hand-written loop, on a one-layer model where nothing else takes time.

    python benchmarks/overhead.py

Both loops train the same model on the same batches in the same order, with a teacher asked every step. They are run in
turns, and the medians compared; the import of kdkit is compared with that of torch in the same way.
"""

import os
import platform
import statistics
import subprocess
import sys
import time

import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit

SAMPLES, BATCH, EPOCHS, ROUNDS = 12_800, 64, 3, 9


def nets():
    """Return a teacher and a student of one layer."""
    torch.manual_seed(0)
    return nn.Linear(16, 4), nn.Linear(16, 4)


def data():
    """Return inputs (samples, 16) and labels (samples,)."""
    torch.manual_seed(1)
    return torch.randn(SAMPLES, 16), torch.randint(0, 4, (SAMPLES,))


def by_hand(inputs, labels):
    """Return the seconds per step of the plainest loop that does the same work."""
    teacher, student = nets()
    teacher.eval()
    truth, guide = nn.CrossEntropyLoss(), kdkit.SoftTargets(temperature=4.0)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    seconds = 0.0
    for epoch in range(EPOCHS):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        student.train()
        began = time.perf_counter()
        for rows in order.split(BATCH):
            x, y = inputs[rows], labels[rows]
            with torch.no_grad():
                answer = teacher(x)
            output = student(x)
            loss = 0.5 * truth(output, y) + 0.5 * guide(output, answer)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - began
    return seconds / (EPOCHS * (SAMPLES // BATCH))


def by_kdkit(inputs, labels):
    """Return the seconds per step of the same through kdkit, its own epochs' clock."""
    teacher, student = nets()
    select = TensorDataset(inputs[:64], labels[:64])
    schedule = kdkit.Parallel(
        kdkit.Net("teacher", teacher, trained=True),
        kdkit.Net("student", student),
        truth=kdkit.Truth(nn.CrossEntropyLoss()),
        guide=kdkit.SoftTargets(temperature=4.0),
        training=kdkit.Training(epochs=EPOCHS, batch_size=BATCH, optimizer=kdkit.Optimizer(torch.optim.Adam, lr=1e-3)),
    )
    recipe = kdkit.Recipe(data=kdkit.TorchData(TensorDataset(inputs, labels), select), schedule=schedule)
    history = kdkit.run(recipe).history["student"]
    return sum(epoch["seconds"] for epoch in history) / (EPOCHS * (SAMPLES // BATCH))


def import_seconds(statement):
    """Return how long a fresh interpreter takes for a statement, its own start left out."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main():
    """Measure, and print ratios."""
    torch.set_num_threads(1)
    inputs, labels = data()
    pairs = [(by_hand(inputs, labels), by_kdkit(inputs, labels)) for _ in range(ROUNDS + 1)][1:]  # the first warms up
    hand, ours = (statistics.median(each) * 1e3 for each in zip(*pairs, strict=True))
    extra = statistics.median((b - a) * 1e3 for a, b in pairs)
    print(f"step by hand {hand:.3f} ms, by kdkit {ours:.3f} ms: {extra:+.3f} ms, ratio {ours / hand:.2f}")
    face = "import kdkit; [getattr(kdkit, name) for name in kdkit.__all__]"
    imports = [
        (import_seconds("import torch"), import_seconds("import kdkit, torch"), import_seconds(face))
        for _ in range(ROUNDS)
    ]
    base, bare, whole = (statistics.median(each) for each in zip(*imports, strict=True))
    print(f"import torch {base:.2f} s; with kdkit {bare / base:.2f}x; with every name of its face {whole / base:.2f}x")
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}, load {load}, {ROUNDS} rounds")


if __name__ == "__main__":
    main()
