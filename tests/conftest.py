"""Fixtures of all tests: the shared folder, a separate cache, new plugins for each test, and the command line."""

import gc
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdkit.cli.main import call
from kdkit.plugins.manager import installed
from tests.helpers.command_line import CommandResult, environment
from tests.helpers.processes import TIMED_PASSES, run_python

# Before torch is imported, here and in child processes: on nets this small, threads cost more than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A run waits until each of its files is on the disk, often longer than it trains a small net. In memory nothing waits.
_MEMORY = Path("/dev/shm")
if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 4 * 1024**3:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

# A shell starts background jobs (`&`) with SIGINT ignored, which child processes inherit. Some tests interrupt theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import all tests without garbage collections, and leave what they imported out of later ones.

    The tests import some million objects that live to the end: to visit them takes a third of the time of the imports,
    and a second each time that a test collects.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real records and golden numbers that KDKIT_SHARED names; tests that need it are skipped without."""
    value = os.environ.get("KDKIT_SHARED")
    if not value:
        pytest.skip("KDKIT_SHARED does not name the folder of real records and golden numbers")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"KDKIT_SHARED names {folder}, which does not exist")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _separate_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests, and the processes that they start, away from the cache of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _plain_environment() -> Iterator[None]:
    """Print the same in CI, and whatever the user's terminal asks for."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_timed_passes() -> Iterator[None]:
    """Time two passes of each network at the end of a run, not 20, and three of an export, not 200.

    They take longer than to train it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdkit.engine.measurement.nets._MOST_PASSES", TIMED_PASSES)
        patch.setattr("kdkit.export.latency._MOST_ROUNDS", 3)
        yield


@pytest.fixture(scope="session")
def _installed_plugins() -> set[str]:
    return {name for name, _ in installed().manager.list_name_plugin()}


@pytest.fixture(autouse=True)
def _new_plugins(_installed_plugins) -> Iterator[None]:
    """Forget the plugins that a test added, such as recipe files, since each of them is one of the whole process.

    Those that are installed stay: to find them takes some milliseconds, for which thousands of tests would wait.
    """
    yield
    if {name for name, _ in installed().manager.list_name_plugin()} != _installed_plugins:
        installed.cache_clear()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start each test from the same random state, whichever tests ran before it in this process.

    Nets that a test makes before `kdkit.run` draw their weights from the global generator, which a run does not seed.
    """
    random.seed(0)
    # Not imported here: a test that needs neither would wait for them.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        # As in a new process, and not 0, which tests use themselves: two nets would have the same weights.
        seed = torch.Generator().initial_seed()
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # otherwise torch.manual_seed would format a traceback for each kind of device
            torch.cuda.manual_seed_all(seed)


@pytest.fixture(scope="session", autouse=True)
def _seeds_without_tracebacks() -> Iterator[None]:
    """Let torch.manual_seed format no traceback for each kind of device: three take longer than many tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torch.cuda", "torch.mtia", "torch.xpu"):
            if hasattr(sys.modules.get(name), "traceback"):  # not each of them, in some versions of torch
                patch.setattr(sys.modules[name], "traceback", SimpleNamespace(format_stack=list))
        yield


@pytest.fixture
def workers_end_quickly(monkeypatch) -> None:
    """Let the workers of a DataLoader look every 0.2 s, not every 5 s, whether they should end.

    An iterator that the traceback of an error refers to is deleted by the garbage collector, perhaps in a later test,
    and then waits for workers that it cannot notify any more.
    """
    from torch.utils.data import _utils

    for module in (_utils, _utils.worker):
        monkeypatch.setattr(module, "MP_STATUS_CHECK_INTERVAL", 0.2)


@pytest.fixture
def noise_instead_of_ecgs(monkeypatch) -> None:
    """Let simulated records be noise, for checks of recipes whose records take seconds to simulate."""
    from numpy.random import default_rng

    from kdkit_ecg.datasets import synthetic
    from kdkit_ecg.simulator.simulator import Chunk

    def noise(chunk: Chunk) -> list[tuple[Any, Any]]:
        simulator = chunk.simulator
        return [(default_rng(id).normal(size=(12, simulator.length)), simulator.patient(id)) for id in chunk.ids]

    monkeypatch.setattr(synthetic, "simulate", noise)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A chromium that finds no other host, if playwright and chromium are installed; CHROMIUM may name its program."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium is not installed")
    # No name is resolved, so that a request to any other host fails.
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    # A fixture of a module, since asyncio refuses to start in a thread with an open playwright.
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def kdkit_here(capsys, tmp_path, monkeypatch) -> Callable[..., CommandResult]:
    """Run the command line in this process, in a new folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: object) -> CommandResult:
        code = call([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return CommandResult(code, out, err)

    return run


@pytest.fixture
def kdkit_process(tmp_path) -> Callable[..., CommandResult]:
    """Run the command line in a child process, in a new folder. Keyword arguments are environment variables."""

    def run(*args: object, **env: str) -> CommandResult:
        done = run_python(["-m", "kdkit", *map(str, args)], tmp_path, environment(**env))
        return CommandResult(done.returncode, done.stdout, done.stderr)

    return run
