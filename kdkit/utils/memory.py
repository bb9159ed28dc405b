"""How much memory is available, and how it is kept between steps."""

import ctypes
import os
import sys
from pathlib import Path

import torch

from kdkit.errors import RecipeError

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


_MEGABYTE = 2**20
_CONTAINER = Path("/sys/fs/cgroup")  # what a container may use, where it runs in one (cgroup v2)
_MEMORY = Path("/proc/meminfo")


def require(
    needed: int,
    what: str,
    device: torch.device | str = "cpu",
    *,
    limit: int | None = None,
    remedy: str = "make it smaller, or free memory",
) -> None:
    """Raise RecipeError where so many bytes are above the limit, or above what the device has left where it is None.

    what, remedy: the subject of the message, as "the memories of CRD", and what to do. Where the system does not say
    how much is left, nothing is refused.
    """
    left = available(device) if limit is None else limit
    if left is not None and needed > left:
        bound = f"{torch.device(device)} has {_said(left)} left" if limit is None else f"the limit is {_said(limit)}"
        raise RecipeError(f"{what} would take {_said(needed)}, but {bound}; {remedy}")


def available(device: torch.device | str = "cpu") -> int | None:
    """Return how many bytes are left on a device, those included that torch or the system only keeps for later.

    A device that is neither a CPU nor a CUDA one is taken to share the machine's memory. None where the system does
    not say.
    """
    device = torch.device(device)
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    left = [each for each in (_machine(), _container()) if each is not None]
    return min(left) if left else None


def _machine() -> int | None:
    """Return what the system could give out; its page cache counts where it says so, which sysconf does not."""
    try:
        told = _figures(_MEMORY)["MemAvailable:"]
    except (OSError, KeyError, ValueError):
        names = getattr(os, "sysconf_names", {})  # Windows has none
        pages = next((name for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES") if name in names), None)
        return None if pages is None else os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    return told * 1024


def _container() -> int | None:
    try:
        limit = int((_CONTAINER / "memory.max").read_text())  # "max" where there is none
        used = int((_CONTAINER / "memory.current").read_text())
        return max(limit - used + _figures(_CONTAINER / "memory.stat")["inactive_file"], 0)
    except (OSError, KeyError, ValueError):
        return None


def _figures(path: Path) -> dict[str, int]:
    """Return the numbers of a file with a name and a number on each line."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {name: int(number) for name, number, *_unit in lines}


def _said(amount: int) -> str:
    megabytes = amount / _MEGABYTE
    return f"{megabytes:.0f} MB" if megabytes >= 1 or not amount else f"{megabytes:.2g} MB"
