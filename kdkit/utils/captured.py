"""Whether code runs in a step that is captured as a CUDA graph, for code that has other fast kernels then.

An eager step of a small network takes as long as its kernels are launched, and a captured step as long as they compute.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_in_captured_step: ContextVar[bool] = ContextVar("in_captured_step", default=False)


@contextmanager
def captured_step() -> Iterator[None]:
    """Mark code of a captured step, also in the eager steps before its capture, which must run the same kernels."""
    token = _in_captured_step.set(True)
    try:
        yield
    finally:
        _in_captured_step.reset(token)


def in_captured_step() -> bool:
    """Return whether the current code is captured, by kdkit or by `torch.cuda.graph`, or will be."""
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return _in_captured_step.get() or (initialized and torch.cuda.is_current_stream_capturing())
