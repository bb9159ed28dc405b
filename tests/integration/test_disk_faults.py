"""A disk that fails at any call of a run: exit code 2, one message, nothing older lost, and the same bits later."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdkit.utils.sealed import read_json, read_tensors
from tests.helpers.command_line import environment
from tests.helpers.crash import is_same, results
from tests.helpers.processes import ForkedPython, run_python

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


def checkpoints(name):
    return sorted(path.name for path in Path(name).rglob("checkpoint-*"))


code, err = run("whole")
assert code == 0, err
total = faults.count
print(json.dumps({"total": total}), flush=True)
for number in range(1, total + 1):
    for kind in KINDS[number % len(KINDS) :][:1] if "cycle" in sys.argv else KINDS:
        name = f"fault-{number}-{kind}"
        faults.at, faults.error = number, kind
        code, err = run(name)
        faults.at = None
        left = checkpoints(name)
        again = run(name, *["--resume"] * Path(name, "run", ".lock").exists())
        print(json.dumps({"name": name, "code": code, "err": err, "left": left, "again": again, "at": faults.log[-1]}), flush=True)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe_file.py").write_text(RECIPE)
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


@pytest.mark.parametrize(
    "kinds", [["ENOSPC,EIO,EDQUOT", "cycle"], pytest.param(["ENOSPC,EIO"], marks=pytest.mark.slow)]
)
def test_a_disk_that_fails_at_any_call_loses_nothing_older(folder, kinds):
    done = run_python(["program.py", *kinds], folder, environment(), timeout=1200)
    assert done.returncode == 0, done.stderr
    total, *runs = map(json.loads, done.stdout.splitlines())
    assert total["total"] > 100
    assert len(runs) >= total["total"]
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
        end = results(folder / run["name"] / "run")
        assert end.keys() == whole.keys(), run
        assert all(is_same(value, whole[key]) for key, value in end.items()), run
