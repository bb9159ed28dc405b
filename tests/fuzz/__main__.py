"""Run all fuzzers: `python -m tests.fuzz --inputs 100000`, or `--atheris 300` for seconds of guided fuzzing.

Each portion of inputs is read in a process of its own, with a limit of 512 MiB above the idle process, and of 5 s of
CPU for each input. The exit code is 1, and the smallest failing input is printed, if anything but a KdkitError came
out. The same inputs again come from the same numbers; `--first-seed` gives others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PORTION = 2500  # inputs of one process
WARMUP = 10  # inputs, after which everything is imported and the process is idle
TARGETS = ("header", "json", "safetensors")  # of atheris


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of inputs. share: of all inputs, in per cent. load: import and return its fuzzer."""

    share: float
    load: Callable[[], Callable[..., None]]
    setup: Callable[[Path], None] = lambda _folder: None


def _headers() -> Callable[..., None]:
    from tests.fuzz.fuzz_headers import fuzz

    return fuzz


def _record_files() -> Callable[..., None]:
    from tests.fuzz.fuzz_record_files import fuzz

    return fuzz


def _of_run_folders(name: str) -> Callable[[], Callable[..., None]]:
    def load() -> Callable[..., None]:
        from tests.fuzz import fuzz_run_folders

        return getattr(fuzz_run_folders, name)

    return load


def _write_runs(folder: Path) -> None:
    from tests.fuzz.fuzz_run_folders import write_runs

    write_runs(folder)


def _weights() -> Callable[..., None]:
    from tests.fuzz.fuzz_weights import fuzz

    return fuzz


def _of_options(name: str) -> Callable[[], Callable[..., None]]:
    def load() -> Callable[..., None]:
        from tests.fuzz import fuzz_options

        return getattr(fuzz_options, name)

    return load


def _of_cache(name: str) -> Callable[[], Callable[..., None]]:
    def load() -> Callable[..., None]:
        from tests.fuzz import fuzz_cache

        def fuzz(folder: Path, meter: Any, inputs: int, first_seed: int) -> None:
            getattr(fuzz_cache, name)(folder, meter, fuzz_cache.numbers(inputs, first_seed))

        return fuzz

    return load


KINDS = {
    "headers": Kind(6, _headers),
    "record files": Kind(4, _record_files),
    "weights": Kind(30, _weights),
    "options": Kind(8, _of_options("fuzz")),
    "records of commands": Kind(4, _of_options("fuzz_recorded")),
    "JSON and history lines": Kind(32, _of_run_folders("fuzz_json")),
    "stages": Kind(7, _of_run_folders("fuzz_stages"), _write_runs),
    "run records": Kind(2, _of_run_folders("fuzz_records"), _write_runs),
    "reports": Kind(2, _of_run_folders("fuzz_reports"), _write_runs),
    "studies": Kind(2, _of_run_folders("fuzz_study"), _write_runs),
    "cached outputs": Kind(2, _of_cache("fuzz_entries")),
    "signal stores": Kind(1, _of_cache("fuzz_store")),
}


def read_portion(name: str, first_seed: int, inputs: int) -> dict[str, Any]:
    """Read one portion of inputs in this process, and return what the meter has. Raises what a reader raised."""
    from tests.fuzz.meter import Meter

    kind = KINDS[name]
    fuzz = kind.load()
    with tempfile.TemporaryDirectory() as warm, tempfile.TemporaryDirectory() as folder:
        for path in (Path(warm), Path(folder)):
            kind.setup(path)
        # Other inputs than those that are counted.
        fuzz(Path(warm), Meter(), WARMUP, first_seed + 500_000)
        meter = Meter()
        meter.limit_memory()
        fuzz(Path(folder), meter, inputs, first_seed)
        return {"outcomes": meter.outcomes, "seconds": meter.seconds, "memory": meter.memory}


def run_portion(name: str, first_seed: int, inputs: int) -> tuple[str, dict[str, Any] | None]:
    """Read one portion of inputs in a child process; return None for its result, and print its errors, if it fails."""
    arguments = [sys.executable, "-m", "tests.fuzz", "--portion", name, str(first_seed), str(inputs)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=variables, capture_output=True, text=True, check=False)
    try:
        result = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    except (ValueError, IndexError):
        result = None
    if result is None:  # also if a signal ended it, whose number is negative
        print(f"{name}: {' '.join(arguments[3:])} ended with {done.returncode}\n{done.stderr[-8000:]}", flush=True)
    else:
        print(f"{name}: {sum(result['outcomes'].values())} inputs from seed {first_seed}", flush=True)
    return name, result


def run_all(names: list[str], inputs: int, first_seed: int, jobs: int) -> int:
    """Run fuzzers in child processes, print a table, and return the exit code."""
    whole = sum(KINDS[name].share for name in names)
    portions = []
    for name in names:
        left, number = max(1, round(inputs * KINDS[name].share / whole)), first_seed * 1000
        while left > 0:
            portions.append((name, number, min(left, PORTION)))
            left, number = left - PORTION, number + 1
    began = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda portion: run_portion(*portion), portions))
    failed = sum(result is None for _, result in results)
    print(f"\n{'kind':24} {'inputs':>8} {'read':>8} {'refused':>8} {'worst CPU':>10} {'worst memory':>13}")
    total: Counter[str] = Counter()
    for name in names:
        kept = [result for kind, result in results if kind == name and result is not None]
        outcomes = sum((Counter(result["outcomes"]) for result in kept), Counter[str]())
        count, read = sum(outcomes.values()), outcomes["read"] + outcomes["computed again"]
        seconds = max((result["seconds"] for result in kept), default=0.0)
        memory = max((result["memory"] for result in kept), default=0) / 2**20
        print(f"{name:24} {count:8} {read:8} {count - read:8} {seconds:8.2f} s {memory:9.0f} MiB")
        total.update(inputs=count, read=read)
    count, read = total["inputs"], total["read"]
    print(f"{'all':24} {count:8} {read:8} {count - read:8}    in {time.monotonic() - began:.0f} s")
    if failed:
        print(f"{failed} of {len(results)} portions failed: see above")
    return 1 if failed else 0


def run_atheris(seconds: int) -> int:
    """Run the guided fuzzers for this many seconds each, and return the exit code."""
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            arguments = [sys.executable, "-m", "tests.fuzz.with_atheris", target, folder]
            limits = [f"-max_total_time={seconds}", "-timeout=5", "-rss_limit_mb=2048", "-max_len=65536"]
            done = subprocess.run([*arguments, *limits], cwd=ROOT, check=False)
        print(f"{target}: ended with {done.returncode}", flush=True)
        if done.returncode:
            return 1
    return 0


def main() -> int:
    """Parse the arguments, run fuzzers, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000, help="of all kinds together")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--first-seed", type=int, default=0, help="another number gives other inputs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--atheris", type=int, metavar="SECONDS", help="of guided fuzzing of each reader, instead")
    parser.add_argument("--portion", nargs=3, metavar=("KIND", "SEED", "INPUTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.portion:
        name, first_seed, inputs = options.portion
        print(json.dumps(read_portion(name, int(first_seed), int(inputs))))
        return 0
    if options.atheris is not None:
        return run_atheris(options.atheris)
    return run_all(options.kinds, options.inputs, options.first_seed, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
