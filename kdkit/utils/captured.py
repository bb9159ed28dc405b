"""Whether code runs in a step that is captured as a CUDA graph, for code that has other fast kernels then.

An eager step of a small network takes as long as its kernels are launched, and a captured step as long as they compute.
"""

from collections.abc import Iterator
from contextlib import contextmanager

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
    """Return whether the current code runs in a captured step, or in an eager step before its capture.

    Graphs of user code are not included: their warm-up has run other kernels, which a capture should not load.
    """
    return _in_captured_step
