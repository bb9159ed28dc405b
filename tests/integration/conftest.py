"""Fresh plugins for every test, and the command line in this process or in one of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdkit.cli import call
from kdkit.plugins import installed

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _fresh_plugins() -> Iterator[None]:
    """A recipe file is a plugin from when it is read, which the next test should not notice."""
    installed.cache_clear()
    yield
    installed.cache_clear()


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


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [more.pop("PYTHONPATH", ""), str(ROOT)]))
    return {**os.environ, "COLUMNS": "200", "PYTHONPATH": path, **more}


@pytest.fixture
def kdkit_process(tmp_path) -> Callable[..., Said]:
    """Run the command line in a process of its own, in a folder of its own."""

    def run(*args: object, **env: str) -> Said:
        command = [sys.executable, "-m", "kdkit", *(str(each) for each in args)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(**env), capture_output=True, text=True, timeout=120, check=False
        )
        return Said(done.returncode, done.stdout, done.stderr)

    return run
