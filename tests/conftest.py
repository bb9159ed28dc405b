"""Fixtures of every test: the shared folder, a cache of its own, fresh plugins, and the command line."""

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdkit.cli.main import call
from kdkit.plugins.manager import installed
from tests.helpers.command_line import Said, environment
from tests.helpers.processes import run_python

# Before torch is imported, here or in a process that a test starts: on nets this small threads cost more than they do.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a shell's `&` starts is deaf to Ctrl-C, and so would be the processes that tests stop by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real records and golden numbers that KDKIT_SHARED names; tests that need it skip without."""
    named = os.environ.get("KDKIT_SHARED")
    if not named:
        pytest.skip("KDKIT_SHARED does not name the folder of real records and golden numbers")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"KDKIT_SHARED names {folder}, which is not there")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no process that one starts, reads or writes what the user keeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _fresh_plugins() -> Iterator[None]:
    """A recipe file is a plugin from when it is read, which the next test should not notice."""
    installed.cache_clear()
    yield
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
        torch.manual_seed(torch.Generator().initial_seed())


@pytest.fixture
def kdkit_here(capsys, tmp_path, monkeypatch) -> Callable[..., Said]:
    """Run the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: object) -> Said:
        code = call([str(each) for each in args])
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run


@pytest.fixture
def kdkit_process(tmp_path) -> Callable[..., Said]:
    """Run the command line in a process of its own, in a folder of its own."""

    def run(*args: object, **env: str) -> Said:
        done = run_python(["-m", "kdkit", *map(str, args)], tmp_path, environment(**env))
        return Said(done.returncode, done.stdout, done.stderr)

    return run
