"""Measure how long a checkpoint stops the training loop, and whether its interval costs time in other steps.

    python benchmarks/checkpoint_stall.py [--rounds N] [--parameters MILLIONS]

A network of 25 million parameters is trained with Adam, whose state has two tensors for each parameter, so that a
checkpoint has 300 MB, or 400 MB with the best weights. Printed are the time of a step (median), that of the loop
between two steps at a checkpoint, of copying the state, and of writing the file, which a thread does meanwhile. One
step in ten is followed by a checkpoint; steps without one are measured in a run with `checkpoint_every="10min"`.
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
from kdkit.engine.storage.nested_state import flatten
from kdkit.engine.storage.stage_folder import StageFolder

STEPS, EVERY, WIDTH = 40, 10, 2500


class Times:
    """The seconds between the ends of two steps, and those of the parts of a checkpoint."""

    def __init__(self):
        self.steps, self.copies, self.waits = [], [], []
        self._last = None

    @kdkit.hookimpl
    def step_ended(self, event):
        """Note the time since the last step."""
        now = time.perf_counter()
        if self._last is not None:
            self.steps.append((event.batch, now - self._last))
        self._last = now


def train(folder, layers, checkpoint_every):
    """Train for an epoch, and return its times."""
    net = kdkit.Net("net", nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(layers)], nn.Linear(WIDTH, 4)))
    inputs, labels = torch.randn(8 * STEPS, WIDTH), torch.randint(0, 4, (8 * STEPS,))
    data = kdkit.TorchData(TensorDataset(inputs, labels), TensorDataset(inputs[:64], labels[:64]))
    optimizer = kdkit.Optimizer(torch.optim.Adam, lr=1e-4)
    training = kdkit.Training(epochs=1, batch_size=8, optimizer=optimizer)
    stage = kdkit.Stage({net: kdkit.Truth(nn.CrossEntropyLoss())}, training)
    times = Times()
    save, wait = StageFolder.save_checkpoint, StageFolder.wait

    def timed_wait(self):
        start = time.perf_counter()
        wait(self)
        times.waits.append(time.perf_counter() - start)

    def timed_save(self, step, state, ended=None):
        start = time.perf_counter()
        flatten(state)  # once more than the run does, to measure it
        times.copies.append(time.perf_counter() - start)
        save(self, step, state, ended)

    if checkpoint_every:
        StageFolder.wait = timed_wait
    try:
        kdkit.run(
            kdkit.Recipe(data=data, schedule=[stage]),
            out=folder,
            device="cpu",
            checkpoint_every=checkpoint_every or "10min",
            callbacks=[times],
            progress=False,
        )
    finally:
        StageFolder.wait, StageFolder.save_checkpoint = wait, save
    return times
