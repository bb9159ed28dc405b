"""Keep freed memory for the next step, where the C library would give it back to the system after each."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as glibc's malloc.h numbers them
_KEPT = 2**30  # bytes: more than the features of most layers
_OLDER = 2**25  # the most that older versions of glibc take
_CHOSEN = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Have malloc keep up to 1 GiB of what this process frees, and return whether it does from now on.

    The features of a layer are megabytes, and in each step the system would map, clear and take back every page of
    them: a tenth of a training step on a CPU. It holds for the rest of the process, so only a process of kdkit's own
    asks for it. Nothing is done without glibc, or where somebody chose by malloc's environment variables.
    """
    if sys.platform != "linux" or any(os.environ.get(name) for name in _CHOSEN):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # In this order: to set the other alone ends glibc's own adapting, and every large tensor would be mapped anew.
    mapped = any(libc.mallopt(_MMAP_THRESHOLD, size) for size in (_KEPT, _OLDER))
    return mapped and bool(libc.mallopt(_TRIM_THRESHOLD, _KEPT))
