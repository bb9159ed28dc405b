"""Estimate how long a study takes, from one step of each kind of trial on this machine."""

import math
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from kdkit import Trial
from reproductions.lrhnet.recipe import SIZES, network

OVERHEAD = 6.0  # s per trial, for checks, metrics and files
VALIDATION = 1.3  # factor for the forward passes on the validation split, one in each epoch


def seconds(trials: Sequence[Trial], records: int) -> float:
    """Return about how many seconds these trials take; records: of the training split."""
    total = 0.0
    for trial in trials:
        options, size = trial.options, SIZES[trial.options["size"]]
        updates = math.ceil(records / size.batch) * (options["epochs"] or size.epochs)
        step = step_seconds(options["row"], options["leads"], options["size"], training=True)
        # Teachers run forward only.
        for leads in options["teacher_leads"]:
            step += step_seconds("teacher", leads, options["size"], training=False)
        total += OVERHEAD + VALIDATION * updates * step
    return total


@lru_cache
def step_seconds(row: Any, leads: int, size: str, *, training: bool) -> float:
    """Return the time of a batch, in s: forward, and backward if it is a training step; the fastest of three."""
    sizes = SIZES[size]
    net = network(row, leads, sizes, "corrected").network
    inputs = torch.randn(sizes.batch, leads, sizes.length), torch.zeros(sizes.batch, 5)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.set_grad_enabled(training):
            outputs = net(*inputs)
        if training:
            outputs.sum().backward()
        times.append(time.perf_counter() - start)
    return min(times)
