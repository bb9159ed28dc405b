"""Seed random number generators, derive seeds, and preserve the random state."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*numbers: int) -> int:
    """Return a 63-bit seed made of several numbers, so that (1, 2) and (2, 1) differ."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:  # splitmix64, one round per number
        mixed = (mixed ^ (number & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Leave the random states of Python, numpy and torch as they were, whatever is seeded inside."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def seed_everything(seed: int) -> None:
    """Set the random states of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # the global state that users' own code reads
    torch.manual_seed(seed)
