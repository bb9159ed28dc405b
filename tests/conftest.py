"""Where the shared records and golden numbers are, and what every test starts from."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

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
