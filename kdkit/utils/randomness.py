"""Seed random number generators, and preserve the random state."""

import os
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

_turn = threading.RLock()  # reentrant: a run checks its recipe, and user code may evaluate another one


@contextmanager
def exclusive_rng_state(*, cuda: bool | None = None) -> Iterator[None]:
    """Preserve the random states, and let other threads wait at this context, because they share these states."""
    with _turn, preserve_rng_state(cuda=cuda):
        yield


def _renew_turn() -> None:
    """In a forked process, no other thread will release the lock."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_turn)


@contextmanager
def preserve_rng_state(*, cuda: bool | None = None) -> Iterator[None]:
    """Restore the random states of Python, numpy and torch at the end, whatever is seeded inside.

    cuda: whether to restore the states of GPUs too, which initializes CUDA on each; if None, only if it is initialized.
    """
    cuda = torch.cuda.is_initialized() if cuda is None else cuda  # type: ignore[no-untyped-call]  # torch leaves it untyped
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count() if cuda else 0)):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def seeded_on_cpu(seed: int) -> Iterator[None]:
    """Seed the random states of the CPU, as `seed_everything` does, and restore them at the end.

    It takes a tenth of the time of `preserve_rng_state`, and does not change the states of GPUs. It must not be nested.
    """
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    bit_generator = np.random.mtrand.get_bit_generator()
    # numpy's global generator is exchanged, because copying its state takes as long as everything else together.
    np.random.mtrand.set_bit_generator(_spare_generator())
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python_state)
        np.random.mtrand.set_bit_generator(bit_generator)
        torch.set_rng_state(torch_state)


@cache
def _spare_generator() -> Any:
    return np.random.MT19937(0)  # created once, because this takes longer than using it


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the global random states of Python, numpy and torch, and that of torch on a device."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the global random states. The state of a device is not set if it was saved on another kind of device."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def seed_everything(seed: int) -> None:
    """Seed the global random states of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # numpy takes 32 bits; user code may read this global state
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # torch.manual_seed would format a traceback for each kind of device that might be used later
        torch.default_generator.manual_seed(seed)
