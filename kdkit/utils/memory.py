"""Check how much memory is available and in use, and let malloc keep freed memory between training steps."""

import ctypes
import errno
import os
import sys
from pathlib import Path

import torch

from kdkit.errors import RecipeError
from kdkit.utils.reprs import format_bytes

# Texts of allocators, drivers and libraries whose errors are neither a MemoryError nor a torch.OutOfMemoryError.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # on Windows
    "std::bad_alloc",
    "Caught MemoryError in DataLoader worker process",
    "Caught OutOfMemoryError in DataLoader worker process",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_KEPT_BYTES = 2**30  # more than the features of most layers
_KEPT_BYTES_OLD_GLIBC = 2**25  # the largest M_MMAP_THRESHOLD that older versions of glibc accept
_MALLOC_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
_CGROUP = Path("/sys/fs/cgroup")  # the limits of a container (cgroup v2)
_MEMINFO = Path("/proc/meminfo")
_STATM = Path("/proc/self/statm")  # the size of this process in pages


def keep_freed_memory() -> bool:
    """Let malloc keep up to 1 GiB of the memory that this process frees, and return whether that was set.

    The features of a layer take megabytes. By default, the system maps, clears and reclaims every page of them in each
    step, which takes a tenth of a training step on a CPU. The setting lasts until the process ends, so kdkit calls this
    only in processes that it starts itself. Returns False without glibc, or if malloc's environment variables are set.
    """
    if sys.platform != "linux" or any(os.environ.get(name) for name in _MALLOC_VARIABLES):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # In this order: setting only the trim threshold turns glibc's dynamic mmap threshold off, and then every large
    # tensor would be mapped again.
    mapped = any(libc.mallopt(_MMAP_THRESHOLD, size) for size in (_KEPT_BYTES, _KEPT_BYTES_OLD_GLIBC))
    return mapped and bool(libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))


def require(
    needed: int,
    subject: str,
    device: torch.device | str = "cpu",
    *,
    limit: int | None = None,
    remedy: str = "make it smaller, or free memory",
) -> None:
    """Raise RecipeError if `needed` bytes exceed the limit, or the available memory of the device if limit is None.

    subject, remedy: the start of the message, such as "the memories of CRD", and how to fix it. Does nothing if the
    system does not report its available memory.
    """
    bound = available(device) if limit is None else limit
    if bound is not None and needed > bound:
        shown = format_bytes(bound, base=1024)
        reason = f"{torch.device(device)} has {shown} left" if limit is None else f"the limit is {shown}"
        raise RecipeError(f"{subject} would take {format_bytes(needed, base=1024)}, but {reason}; {remedy}")


def available(device: torch.device | str = "cpu") -> int | None:
    """Return the available bytes of a device, including memory that torch or the system only caches; None if unknown.

    A device other than CPU and CUDA is assumed to share the memory of the machine.
    """
    device = torch.device(device)
    if device.type == "cuda":
        # torch's caching allocator holds these bytes, but reuses them before it asks the driver for more
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    sizes = (_available_on_machine(), _available_in_container(), _available_to_process())
    bounds = [size for size in sizes if size is not None]
    return min(bounds) if bounds else None


def describe_use(device: torch.device | str) -> str:
    """Return how much memory a device has and how much of it is in use, or how much is left, as text."""
    device = torch.device(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        sizes = (total, total - free, torch.cuda.memory_allocated(device))
        capacity, used, by_tensors = (format_bytes(size, base=1024) for size in sizes)
        return f"{device} has {capacity}, of which {used} are in use, {by_tensors} by tensors of this process"
    left = available(device)
    return f"{device} has {'an unknown amount' if left is None else format_bytes(left, base=1024)} left"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator raised this error because memory ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of `peak`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int | None:
    """Return the peak bytes of tensors of this process since `reset_peak`; None for devices other than CUDA."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _available_on_machine() -> int | None:
    # MemAvailable includes the page cache, which the system gives up on demand. sysconf counts free pages only, so it
    # is the fallback for systems without /proc.
    try:
        return _read_numbers(_MEMINFO)["MemAvailable:"] * 1024  # the file has units of 1024 bytes
    except (OSError, KeyError, ValueError):
        if sys.platform == "win32":
            return None
        pages = next((name for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES") if name in os.sysconf_names), None)
        return None if pages is None else os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _available_in_container() -> int | None:
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max", a ValueError, if there is no limit
        used = int((_CGROUP / "memory.current").read_text())
        # memory.current includes the page cache; its inactive part can be reclaimed
        return max(limit - used + _read_numbers(_CGROUP / "memory.stat")["inactive_file"], 0)
    except (OSError, KeyError, ValueError):
        return None


def _available_to_process() -> int | None:
    """Return the bytes of address space left by a limit such as `ulimit -v`; None if there is no limit."""
    if sys.platform == "win32":
        return None
    import resource  # late: Windows has none

    try:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return None
        pages = int(_STATM.read_text().split()[0])
        return max(limit - pages * resource.getpagesize(), 0)
    except (OSError, ValueError):
        return None


def _read_numbers(path: Path) -> dict[str, int]:
    """Return the numbers of a file that has a name, a number and perhaps a unit on each line."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {name: int(number) for name, number, *_unit in lines}
