"""Time an export and its network on one thread, alternating, so that the load of the machine affects both equally."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.export.base import Model
from kdkit.export.gates import run_model
from kdkit.export.source import ExportSource
from kdkit.utils.modules import eval_mode

_WARM_UP = 3  # untimed passes of each, which choose kernels and allocate memory
_MOST_ROUNDS = 200


def latency(source: ExportSource, model: Model) -> dict[str, Any]:
    """Return the median and the 95th percentile of the time of one sample in milliseconds, and the ratio of medians.

    The network runs in torch eager, the export in its runtime, each on one CPU thread. The CPU time of this thread
    excludes waiting for other programs, which takes most of a pass on a busy machine.
    """
    inputs = single_sample(source)
    with eval_mode(source.module), torch.inference_mode():
        passes: dict[str, Callable[[], Any]] = {
            "torch": lambda: source.module(*inputs),
            "export": lambda: run_model(source, model, inputs),
        }
        seconds_by_name = time_in_turns(passes, seconds=source.options.timing_seconds)
    times = {name: 1e3 * np.array(seconds) for name, seconds in seconds_by_name.items()}  # (rounds, wall and CPU time)
    p50, cpu = ({name: float(np.median(values[:, kind])) for name, values in times.items()} for kind in (0, 1))
    return {
        "batch": 1,
        "threads": 1,
        "rounds": len(times["export"]),
        "p50_ms": p50,
        "p95_ms": {name: float(np.percentile(values[:, 0], 95)) for name, values in times.items()},
        "ratio": p50["export"] / p50["torch"],
        "cpu_p50_ms": cpu,
        "cpu_ratio": cpu["export"] / cpu["torch"] if cpu["torch"] > 0 else None,
        "machine": machine(),
    }


def time_in_turns(
    passes: dict[str, Callable[[], Any]], *, seconds: float, most_rounds: int | None = None
) -> dict[str, list[tuple[float, float]]]:
    """Call the passes one after another in rounds. Return the seconds of each pass by name, as wall time and CPU time.

    torch uses one thread meanwhile.
    """
    most_rounds = _MOST_ROUNDS if most_rounds is None else most_rounds
    threads = torch.get_num_threads()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
    try:
        torch.set_num_threads(1)
        for call in passes.values():
            for _ in range(_WARM_UP):  # not timed
                call()
        ends, rounds = time.perf_counter() + seconds, 0
        while rounds < 3 or (rounds < most_rounds and time.perf_counter() < ends):
            for name, call in passes.items():
                began, cpu_began = time.perf_counter(), time.thread_time()
                call()
                times[name].append((time.perf_counter() - began, time.thread_time() - cpu_began))
            rounds += 1  # complete rounds, so that all passes have equally many times
    finally:
        torch.set_num_threads(threads)
    return times


def single_sample(source: ExportSource) -> Sequence[Tensor]:
    """Return the inputs of one sample of the example."""
    return [tensor[:1] for tensor in source.example]


def machine() -> dict[str, Any]:
    """Return the conditions of the times: the processor, its number of cores, and the load of the last minute."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None  # Windows has none
    return {"processor": name, "architecture": platform.machine(), "cores": os.cpu_count(), "load": load}
