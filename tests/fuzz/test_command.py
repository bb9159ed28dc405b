"""The command that runs all fuzzers reports each kind of inputs, and fails if anything but a KdkitError came out."""

import json
import subprocess
import sys
from subprocess import CompletedProcess

import pytest

from tests.fuzz import __main__ as command
from tests.helpers.command_line import environment


def test_the_shares_of_the_kinds_are_those_of_all_inputs():
    assert sum(kind.share for kind in command.KINDS.values()) == 100


def test_the_table_adds_the_portions_of_each_kind(monkeypatch, capsys):
    monkeypatch.setattr(command, "PORTION", 4)
    portions = []

    def run(name, first_seed, inputs):
        portions.append((name, first_seed, inputs))
        return name, {"outcomes": {"read": 1, "no header": inputs - 1}, "seconds": inputs / 2, "memory": inputs << 20}

    monkeypatch.setattr(command, "run_portion", run)
    assert command.run_all(["headers"], 10, 2, jobs=1) == 0
    assert portions == [("headers", 2000, 4), ("headers", 2001, 4), ("headers", 2002, 2)]
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("headers"))
    assert row == ["headers", "10", "3", "7", "2.00", "s", "4", "MiB"]


@pytest.mark.parametrize(("code", "out"), [(1, ""), (-9, ""), (0, "no JSON"), (0, "")])
def test_a_process_that_ends_without_a_result_is_a_portion_that_fails(code, out, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda arguments, **_: CompletedProcess(arguments, code, out, "MemoryError"))
    assert command.run_all(["headers"], 5, 0, jobs=1) == 1
    printed = capsys.readouterr().out
    assert f"ended with {code}\nMemoryError" in printed
    assert "1 of 1 portions failed" in printed


@pytest.mark.slow  # each portion imports kdkit in two processes
@pytest.mark.parametrize("error", ["ValueError('an input')", "MemoryError()", "SystemExit(3)"])
def test_a_portion_in_which_anything_else_came_out_fails(error, tmp_path, monkeypatch, capsys):
    (tmp_path / "sitecustomize.py").write_text(
        f"import kdkit.utils.read_json as module\n\ndef fail(path):\n    raise {error}\n\nmodule.read_json = fail\n"
    )
    monkeypatch.setattr(command, "ROOT", f"{tmp_path}:{command.ROOT}")
    expected = 0 if "ValueError" in error else 1  # which is what JSON that is not valid raises
    assert command.run_all(["JSON and history lines"], 5, 0, jobs=1) == expected
    assert ("1 of 1 portions failed" in capsys.readouterr().out) == bool(expected)


def test_guided_fuzzing_names_what_it_needs():
    arguments = [sys.executable, "-c", "import sys; sys.modules['atheris'] = None; import tests.fuzz.with_atheris"]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, "pip install atheris" in done.stderr) == (1, True)


@pytest.mark.slow
def test_a_portion_prints_what_it_measured():
    arguments = [sys.executable, "-m", "tests.fuzz", "--portion", "JSON and history lines", "0", "20"]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)
    assert sum(measured["outcomes"].values()) == 20
    assert measured["memory"] < 512 << 20
