"""Start Python programs as processes that need not import torch again: a server imports it once, and forks itself.

`import torch` takes about 2 seconds of a core, more than most programs of the tests need for their own work. A test
about the start or the end of an interpreter needs a fresh one instead: `subprocess` with `sys.executable`.
"""

import contextlib
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.helpers.command_line import environment

# What many programs of the tests import, up to a second late in each of them. A plugin of kdkit is loaded by the
# program itself.
PRELOADED = [
    *("torch", "torch.distributed", "torch.utils.flop_counter", "timm", "scipy.sparse", "scipy.stats"),
    *("kdkit.cli.main", "kdkit.cli.plan_svg", "kdkit.cli.repeat", "kdkit.data.torch_data", "kdkit.engine.run"),
    *("kdkit.export.onnx_exporter", "kdkit.losses", "kdkit.recipe.schedules", "kdkit.report"),
    *("kdkit.study.parallel_stages", "kdkit.study.sweep"),
    *("kdkit_ecg.datasets", "kdkit_ecg.metrics", "kdkit_ecg.models", "kdkit_ecg.report"),
]
# Of each network at the end of a run: the 40 of a user take longer than to train a small network.
TIMED_PASSES = 2


class ForkedPython:
    """A Python program in a process that is forked from a server, with the part of `subprocess.Popen` that tests use.

    arguments: those of `python`, a script or `-m` and a module, and then the program's own. folder: where it runs.
    variables: its whole environment. The variables that a library reads as it is imported must be those of the tests.
    terminal: the path of a terminal for its stdin, stdout and stderr, which it has opened when this returns.
    merged: write stderr to stdout, as `2>&1` does.
    """

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        variables: Mapping[str, str] | None = None,
        *,
        terminal: str | None = None,
        merged: bool = False,
    ) -> None:
        if not hasattr(os, "fork"):
            pytest.skip("Windows cannot fork processes")
        self._output = Path(tempfile.mkdtemp(prefix="kdkit-tests-"))
        variables = dict(environment() if variables is None else variables)
        out, err = (str(self._output / name) for name in ("1", "1" if merged else "2"))
        files = {1: out, 2: err} if terminal is None else dict.fromkeys((0, 1, 2), terminal)
        if terminal is None:
            for file in files.values():
                Path(file).touch()  # a test may read it before the process has started
        opened = self._output / "opened"
        start = (list(map(str, arguments)), str(folder), variables, files, opened)
        context = multiprocessing.get_context("forkserver")
        with _environment(environment()):  # the server imports kdkit from this checkout
            context.set_forkserver_preload(PRELOADED)
            forkserver.ensure_running()
        self._process = context.Process(target=_execute, args=start)
        self._process.start()
        self.pid = self._process.pid
        # No process outlives its test, and pytest would wait for it at its own end.
        weakref.finalize(self, _end, self._process, self._output)
        while terminal is not None and not opened.exists():
            self._process.join(0.01)

    @property
    def returncode(self) -> int | None:
        """The exit code, the negative number of a signal, or None while the process runs."""
        return self._process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float) -> int:
        """Wait until the process has ended, and return its exit code. Raises TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("forked python", timeout)
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait until the process has ended, and return what it wrote to stdout and stderr."""
        self.wait(timeout)
        return self.output(1), self.output(2)

    def output(self, stream: int) -> str:
        """Return what the process has written so far: 1 is stdout, 2 is stderr."""
        return (self._output / str(stream)).read_text(encoding="utf-8")

    def began(self, text: str) -> bool:
        """Whether the process has written a text to stderr."""
        file = self._output / "2"
        return file.exists() and text in file.read_text(encoding="utf-8")

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_python(arguments: list[str], folder: Path, variables: Mapping[str, str] | None = None, timeout: float = 120):
    """Run a program to its end, as `subprocess.run` does."""
    process = ForkedPython(arguments, folder, variables)
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def wait_until(condition: Callable[[], bool], process: ForkedPython | subprocess.Popen | None = None) -> None:
    """Wait until a condition holds, and fail if that takes longer than any test, or if the process ends before."""
    deadline = time.monotonic() + 90
    while not condition():
        assert process is None or process.poll() is None, process.communicate(timeout=30)[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _end(process: BaseProcess, output: Path) -> None:
    process.kill()
    shutil.rmtree(output, ignore_errors=True)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]):
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _execute(arguments: list[str], folder: str, variables: dict[str, str], files: dict[int, str], opened: Path) -> None:
    """Become the program: with its folder, environment, output files and arguments."""
    os.setsid()  # so that the processes that the program starts can be found by its session
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = folder  # in which the processes that the program starts look for its script
    os.environ.clear()
    os.environ.update(variables)
    sys.modules["kdkit.engine.measurement.nets"]._MOST_PASSES = TIMED_PASSES
    # A child inherits the start method that it was started by; the first method of the list is the usual one.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    forkserver._forkserver.__init__()  # the program starts its own server, which has its output files and environment
    for stream, path in files.items():
        # The first terminal that a session opens is the one whose Ctrl-C it gets.
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        if file != stream:
            os.close(file)
    opened.touch()
    # The server was started with a stdout and a stderr of the tests, which may be closed already.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.path[:0] = variables.get("PYTHONPATH", "").split(os.pathsep)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, folder)
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(folder, arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")
