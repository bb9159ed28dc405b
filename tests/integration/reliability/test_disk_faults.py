"""A disk that fails at any call of a run: exit code 2, one message, nothing older lost, and the same bits later."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import environment
from tests.helpers.crash import require_same_results, results
from tests.helpers.processes import ForkedPython, run_python, wait_until

RECIPE = '''
"""A net that is trained for one epoch, with two checkpoints in it and one at its end."""

from kdkit import Net, Recipe, Stage
from tests.helpers.stages import Small, data, training, truth


def recipe():
    return Recipe(data=data(), schedule=[Stage({Net("net", Small(4)): truth()}, training(epochs=1))])
'''

# Runs the recipe again and again in one process. At run n, the n-th call that writes to the run folder fails.
PROGRAM = """
import contextlib
import io
import json
import os
import random
import sys
import tempfile
from pathlib import Path

from kdkit.cli.main import call
from kdkit.utils import files

KINDS = [getattr(__import__("errno"), name) for name in sys.argv[1].split(",")]
folder = Path.cwd().resolve()


class Faults:
    count, at, error, log = 0, None, None, []

    def call(self, name, path, function, *arguments, **options):
        self.count += 1
        if self.count == self.at:
            self.log.append(f"{name} {Path(path).name}")
            raise OSError(self.error, os.strerror(self.error), str(path))
        return function(*arguments, **options)


faults = Faults()


class File:
    "A file whose n-th write stops in its middle, as it does on a disk that fills."

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        if faults.count + 1 == faults.at:
            self.file.write(content[: len(content) // 2])
            self.file.flush()
        return faults.call("write", "", self.file.write, content)


class Replaced:
    def __init__(self, module, **functions):
        self.__dict__.update(functions)
        self.module = module

    def __getattr__(self, name):
        return getattr(self.module, name)


files.os = Replaced(
    os,
    fsync=lambda handle: faults.call("fsync", "", os.fsync, handle),
    open=lambda path, flags: faults.call("open", path, os.open, path, flags),
    fdopen=lambda handle, mode: File(os.fdopen(handle, mode)),
)
files.tempfile = Replaced(
    tempfile, mkstemp=lambda **options: faults.call("mkstemp", options["prefix"], tempfile.mkstemp, **options)
)
for name in ("replace", "chmod", "unlink", "mkdir", "open"):
    def wrap(name=name, original=getattr(Path, name)):
        def method(self, *arguments, **options):
            writes = name != "open" or "a" in (arguments or ("r",))[0]
            if not writes or folder not in self.absolute().parents or "run" not in self.absolute().parts:
                return original(self, *arguments, **options)
            result = faults.call(name, self, original, self, *arguments, **options)
            return File(result) if name == "open" else result
        setattr(Path, name, method)
    wrap()


def run(name, *arguments):
    Path(name).mkdir(exist_ok=True)
    command = ["run", "recipe_file.py", "--out", f"{name}/run", "--device", "cpu", "--checkpoint-every", "2"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        faults.count = 0
        code = call([*command, "--keep-checkpoints", "1", "--quiet", *arguments])
    return code, err.getvalue()


code, err = run("whole")
assert code == 0, err
total = faults.count
print(json.dumps({"total": total}), flush=True)
numbers = range(1, total + 1)
if "some" in sys.argv:
    numbers = sorted(random.Random(0).sample(numbers, total // 3))
for number in numbers:
    for kind in KINDS[number % len(KINDS) :][:1] if "cycle" in sys.argv else KINDS:
        name = f"fault-{number}-{kind}"
        faults.at, faults.error = number, kind
        code, err = run(name)
        faults.at = None
        again = run(name, *["--resume"] * Path(name, "run", ".lock").exists())
        print(json.dumps({"name": name, "code": code, "err": err, "again": again, "at": faults.log[-1]}), flush=True)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe_file.py").write_text(RECIPE)
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


# The suite has time for a third of the calls, in a random order of what they write.
@pytest.mark.parametrize(
    "options", [["ENOSPC,EIO,EDQUOT", "cycle", "some"], pytest.param(["ENOSPC,EIO,EDQUOT"], marks=pytest.mark.slow)]
)
def test_a_disk_that_fails_at_any_call_loses_nothing_older(folder, options):
    done = run_python(["program.py", *options], folder, environment(), timeout=1200)
    assert done.returncode == 0, done.stderr
    total, *runs = map(json.loads, done.stdout.splitlines())
    assert total["total"] > 100
    assert len(runs) >= total["total"] // 3
    whole = results(folder / "whole" / "run")
    for run in runs:
        if run["code"] == 0:  # the run has all files, though names may not outlive a power cut
            assert run["at"] == "fsync "
        else:
            assert run["code"] == 2, run
            assert len(run["err"].splitlines()) == 1, run
            assert run["err"].startswith("error: "), run
            assert any(word in run["err"] for word in ("cannot be written", "cannot be created")), run
        code, err = run["again"]
        assert code == 0, run
        assert "damaged" not in err
        require_same_results(results(folder / run["name"] / "run"), whole, run)


COMMAND = ["-m", "kdkit", "run", "recipe_file.py", "--device", "cpu", "--out", "run", "--checkpoint-every", "1"]
WAITING = """

import time
from pathlib import Path

import kdkit


@kdkit.hookimpl
def step_ended(event):
    if Path("wait").exists() and event.batch == 2:
        Path("waiting").touch()
        while Path("wait").exists():
            time.sleep(0.02)
"""


UNDISTURBED: dict[str, Any] = {}  # the results of a run, which are the same in each test


def start_and_wait(folder: Path, *arguments: str) -> ForkedPython:
    """Start a run, and return it when it waits in its third step, with two checkpoints on the disk."""
    (folder / "recipe_file.py").write_text(RECIPE + WAITING)
    (folder / "wait").touch()
    process = ForkedPython([*COMMAND, *arguments], folder)
    wait_until((folder / "waiting").exists, process)
    wait_until(lambda: len(list(folder.glob("run/1-net/checkpoint-*"))) == 2, process)
    return process


def require_refused(process, message):
    """Require that a program ends with exit code 2 and one message, and return its stderr."""
    code = process.wait(60)
    err = process.output(2)
    assert code == 2, err
    assert message in " ".join(err.split())
    assert err.count("error:") == 1
    assert "Traceback" not in err


def require_resumes(folder):
    """Resume a run to its end, and require the bits of an undisturbed one."""
    done = run_python([*COMMAND, "--resume"], folder)
    assert done.returncode == 0, done.stderr
    if not UNDISTURBED:
        whole = run_python([*COMMAND[:-3], "whole", *COMMAND[-2:]], folder)
        assert whole.returncode == 0, whole.stderr
        UNDISTURBED.update(results(folder / "whole"))
    require_same_results(results(folder / "run"), UNDISTURBED)
    return done.stdout


def test_a_run_whose_files_may_not_grow_further_stops_with_a_message_and_resumes(folder):
    """Every write beyond a size fails with EFBIG, as in a quota for files."""
    limited = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module('kdkit', run_name='__main__')\n"
    )
    (folder / "limited.py").write_text(limited)
    process = ForkedPython(["limited.py", "kdkit", *COMMAND[2:]], folder)
    require_refused(process, "the run folder run cannot be written: [Errno 27] File too large")
    require_resumes(folder)


@pytest.fixture
def disk(folder):
    """A file system of 200 kB, on which the run folder is."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not allow mounts")
    (disk / "run").mkdir()
    (folder / "run").symlink_to(disk / "run")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_run_on_a_full_disk_stops_with_a_message_and_resumes_when_there_is_room(folder, disk):
    (disk / "fill").write_bytes(bytes(136 * 1024))
    require_refused(ForkedPython(COMMAND, folder), "No space left on device")
    assert list(disk.glob("run/1-net/checkpoint-*"))  # for some, there was room
    (disk / "fill").unlink()
    require_resumes(folder)


def test_a_run_on_a_disk_that_is_read_only_is_not_resumed_and_can_be_later(folder, disk):
    first = start_and_wait(folder)
    first.kill()
    first.wait(30)
    (folder / "wait").unlink()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    require_refused(ForkedPython([*COMMAND, "--resume"], folder), "the run folder run cannot be written")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    require_resumes(folder)


not_on_windows = pytest.mark.skipif(
    os.name == "nt" or "EMULATED_WINDOWS" in os.environ, reason="Windows renames and deletes no folder with open files"
)


@not_on_windows
def test_a_run_folder_that_is_deleted_while_the_run_writes_is_not_created_again(folder):
    process = start_and_wait(folder)
    shutil.rmtree(folder / "run")
    (folder / "wait").unlink()
    require_refused(process, "the run folder run no longer exists: it was deleted or renamed")
    assert not (folder / "run").exists()


@not_on_windows
def test_a_run_folder_that_is_renamed_while_the_run_writes_can_be_resumed_in_its_new_place(folder):
    process = start_and_wait(folder)
    (folder / "run").rename(folder / "renamed")
    (folder / "wait").unlink()
    require_refused(process, "the run folder run no longer exists: it was deleted or renamed")
    assert not (folder / "run").exists()
    (folder / "renamed").rename(folder / "run")
    require_resumes(folder)


def test_a_second_process_that_resumes_a_run_is_refused_until_the_first_is_killed(folder):
    first = start_and_wait(folder)
    require_refused(ForkedPython([*COMMAND, "--resume"], folder), "another process is running in run")
    first.kill()
    first.wait(30)
    (folder / "wait").unlink()
    assert "resumed in epoch 1 after" in require_resumes(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder")
def test_a_run_folder_that_may_not_be_written_to_is_not_resumed(folder):
    first = start_and_wait(folder)
    first.kill()
    first.wait(30)
    (folder / "wait").unlink()
    (folder / "run").chmod(0o500)
    try:
        require_refused(ForkedPython([*COMMAND, "--resume"], folder), "the run folder run cannot be written")
    finally:
        (folder / "run").chmod(0o700)
    require_resumes(folder)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_resumed(folder):
    process = start_and_wait(folder)
    process.kill()
    process.wait(30)
    (folder / "wait").unlink()
    last = max(folder.glob("run/1-net/checkpoint-*"))
    last.write_bytes(last.read_bytes()[:-1])
    out = require_resumes(folder)
    assert f"note: {last.name} is damaged" in out
    assert "so the run resumes from checkpoint-1.safetensors" in out
    assert "resumed in epoch 1 after 1 of 4 batches" in out


@pytest.mark.parametrize("option", [[], ["--resume"]], ids=["as a new run", "with --resume"])
def test_a_folder_of_a_run_that_was_killed_before_its_record_can_be_used_again(folder, option):
    kill = (
        "import os, runpy, signal, sys\n"
        "from kdkit.utils import files\n"
        "files.os = type('Killing', (), {'__getattr__': lambda self, name: getattr(os, name),\n"
        "    'fsync': lambda self, handle: os.kill(os.getpid(), signal.SIGKILL)})()\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module('kdkit', run_name='__main__')\n"
    )
    (folder / "killing.py").write_text(kill)
    assert run_python(["killing.py", "kdkit", *COMMAND[2:]], folder).returncode == -signal.SIGKILL
    left = sorted(path.name for path in (folder / "run").iterdir())
    assert left[0] == ".lock"
    assert left[1].startswith(".run.json.")
    assert len(left) == 2
    done = run_python([*COMMAND, *option], folder)
    assert done.returncode == 0, done.stderr
    assert len(results(folder / "run")) == 9


@pytest.mark.parametrize(
    "progress", [pytest.param([], marks=pytest.mark.slow), ["2>&1"]], ids=["stdout", "stdout and stderr"]
)
def test_a_run_whose_output_is_no_longer_read_trains_to_its_end(folder, progress):
    command = f"{sys.executable} {' '.join(COMMAND)} {' '.join(progress)} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert (folder / "run" / "metrics.json").exists()
