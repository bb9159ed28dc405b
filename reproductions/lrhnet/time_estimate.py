"""How long a study takes, from a step of each kind of cell timed on this machine."""

import math
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from kdkit import Trial
from reproductions.lrhnet.recipe import SIZES, network

OVERHEAD = 6.0  # s for checking, scoring and writing a cell
VALIDATION = 1.3  # epochs also ask about the selection split


def seconds(trials: Sequence[Trial], records: int) -> float:
    """Return about how many seconds these cells take, each learning from so many records."""
    return sum(OVERHEAD + _training(trial.options, records) for trial in trials)


def _training(options: Any, records: int) -> float:
    size = SIZES[options["size"]]
    updates = math.ceil(records / size.batch) * (options["epochs"] or size.epochs)
    own = _step(options["row"], options["leads"], options["size"], learning=True)
    asked = sum(_step("teacher", leads, options["size"], learning=False) for leads in options["rungs"])
    return VALIDATION * updates * (own + asked)


@lru_cache
def _step(row: Any, leads: int, size: str, *, learning: bool) -> float:
    """Return the time of a batch, in s: forward, and backward where it is learned from."""
    sizes = SIZES[size]
    net = network(row, leads, sizes, "corrected").network
    given = torch.randn(sizes.batch, leads, sizes.length), torch.zeros(sizes.batch, 5)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        with torch.set_grad_enabled(learning):
            outputs = net(*given)
        if learning:
            outputs.sum().backward()
        times.append(time.perf_counter() - began)
    return min(times)
