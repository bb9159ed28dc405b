"""Measure how long a checkpoint stops the training loop, and that its interval costs nothing in the other steps.

    python benchmarks/checkpoint_stall.py [--rounds N]

A network of 25 million parameters is trained with Adam, whose state has two numbers for each parameter, so that a
checkpoint has 300 MB. A run with a checkpoint after every tenth step, and one without any, alternate. Printed are the
times of steps, how long the loop is stopped by a checkpoint, how much of that is the copy of its state, and the time of
writing the file. A thread does that while training continues, so steps at that time are slower if there is no core left
for it.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit.engine.storage import run_files, stage_folder
from kdkit.engine.training import stage_checkpoints
from kdkit.utils.processes import usable_cores

STEPS, EVERY, WIDTH, LAYERS, BATCH = 40, 10, 2500, 4, 8


class Times:
    """The seconds of the loop from the end of a step to that of the next one, by the number of the first."""

    def __init__(self):
        self.steps, self.last = {}, None

    @kdkit.hookimpl
    def step_ended(self, event):
        """Note the time since the last step."""
        now = time.perf_counter()
        if self.last is not None:
            self.steps[event.batch - 1] = now - self.last
        self.last = now


def train(folder, checkpoint_every):
    """Train for an epoch, and return the times of its steps, and those of checkpoints: all, copies, and writes."""
    net = kdkit.Net("net", nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)], nn.Linear(WIDTH, 4)))
    inputs, labels = torch.randn(BATCH * STEPS, WIDTH), torch.randint(0, 4, (BATCH * STEPS,))
    data = kdkit.TorchData(TensorDataset(inputs, labels), TensorDataset(inputs[:64], labels[:64]))
    optimizer = kdkit.Optimizer(torch.optim.Adam, lr=1e-4)
    stage = kdkit.Stage(
        {net: kdkit.Truth(nn.CrossEntropyLoss())}, kdkit.Training(epochs=1, batch_size=BATCH, optimizer=optimizer)
    )
    times, stops, copies, writes = Times(), [], [], []
    save, flatten, write = stage_checkpoints.StageCheckpoints.save, stage_folder.flatten, run_files.write
    stage_checkpoints.StageCheckpoints.save = timed(save, stops)
    stage_folder.flatten, run_files.write = timed(flatten, copies), timed(write, writes)
    try:
        kdkit.run(
            kdkit.Recipe(data=data, schedule=[stage]),
            out=folder,
            device="cpu",
            checkpoint_every=checkpoint_every,
            callbacks=[times],
            progress=False,
        )
    finally:
        stage_checkpoints.StageCheckpoints.save = save
        stage_folder.flatten, run_files.write = flatten, write
    # Without the end of the epoch, and without small files.
    return times.steps, stops, copies[:-1], [seconds for seconds in writes if seconds > 0.01]


def timed(function, seconds):
    """Return a function that appends its seconds to a list."""

    def call(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    return call


def main():
    """Train alternately with and without checkpoints, and print the times of their steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with_checkpoint, others, quiet, stops, copies, writes = [], [], [], [], [], []
    for number in range(rounds):
        for every in (EVERY, "10min") if number % 2 else ("10min", EVERY):
            with tempfile.TemporaryDirectory() as folder:
                steps, stopped, copied, written = train(Path(folder) / "run", every)
            if every != EVERY:
                quiet += [*steps.values()][2:]
                continue
            stops, copies, writes = stops + stopped, copies + copied, writes + written
            for step, seconds in steps.items():
                if (step + 1) % EVERY == 0:
                    with_checkpoint.append(seconds)
                elif step > EVERY:
                    others.append(seconds)
    for name, seconds in (
        ("steps of a run without checkpoints", quiet),
        ("steps of a run with checkpoints, at one", with_checkpoint),
        ("other steps of that run", others),
        ("the loop is stopped by a checkpoint", stops),
        ("of which the copy of the state", copies),
        ("writing the file", writes),
    ):
        print(f"{name}: median {1e3 * statistics.median(seconds):.0f} ms, longest {1e3 * max(seconds):.0f} ms")
    load = ", ".join(f"{load:.2f}" for load in os.getloadavg())
    print(f"torch {torch.__version__}, {usable_cores()} usable cores, {platform.machine()}, load {load}")


if __name__ == "__main__":
    main()
