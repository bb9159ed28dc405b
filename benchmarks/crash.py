"""Kill a three-stage run at random moments, resume it each time, and compare its end with that of an undisturbed run.

    python benchmarks/crash.py [--kills N] [--seed N] [--signal KILL|TERM|INT] [--folder DIR]

Runs are killed until there were so many kills: each is killed, resumed and killed again until it ends, and then the
next one begins. Printed are where the kills hit, the files that were being written, and the steps that were repeated.
The exit code is 1 if a run ended in other bits, left a file half-written, or repeated more than the steps between two
checkpoints. The run has what a checkpoint must hold: see `tests/helpers/crash.py`.
"""

import argparse
import os
import platform
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers.crash import CrashTest, Kill, report  # noqa: E402  # found in the checkout


def main() -> None:
    """Kill runs, and print where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--folder", type=Path, help="keeps the runs there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdkit-crash-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sys.exit(measure(folder, options.kills, options.seed, signal.Signals[f"SIG{options.signal}"]))


def measure(folder: Path, count: int, seed: int, number: signal.Signals) -> int:
    """Kill runs in a folder until there were `count` kills, and return the exit code."""
    test, draw, start = CrashTest(folder), random.Random(seed), time.perf_counter()
    test.finish("whole")
    kills: list[Kill] = []
    runs = 0
    different: list[str] = []
    while len(kills) < count:
        name, runs = f"killed-{runs}", runs + 1
        try:
            kills += test.disturb(name, draw, [number] * (count - len(kills)))
            test.require_same(name, "whole")
        except AssertionError as error:
            different.append(f"{name}: {error}")
            if len(different) > 3:
                break
    print("\n".join([report(kills), *different]))
    print(
        f"{len(kills)} times {number.name} in {runs} runs, {runs - len(different)} of which ended in the bits of an "
        f"undisturbed one; {time.perf_counter() - start:.0f} s"
    )
    load = ", ".join(f"{load:.2f}" for load in os.getloadavg())
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}, load {load}")
    return 1 if different else 0


if __name__ == "__main__":
    main()
