"""Whether code runs in a step that is captured as a CUDA graph, for code that has other fast kernels then.

An eager step of a small network takes as long as its kernels are launched, and a captured step as long as they compute.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_in_captured_step = False  # a plain value, which the key of a cached teacher can include


@contextmanager
def captured_step() -> Iterator[None]:
    """Mark code of a captured step, also in the eager steps before its capture, which must run the same kernels."""
    global _in_captured_step
    before, _in_captured_step = _in_captured_step, True
    try:
        yield
    finally:
        _in_captured_step = before


def in_captured_step() -> bool:
    """Return whether the current code is captured, by kdkit or by `torch.cuda.graph`, or will be."""
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return _in_captured_step or (initialized and torch.cuda.is_current_stream_capturing())
