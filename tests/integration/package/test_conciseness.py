"""Tests of the benchmark of conciseness: its programs run, kdkit's are within their limits, and lines count once."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command_line import ROOT, environment
from tests.helpers.modules import load_module

SCRIPT = ROOT / "benchmarks" / "conciseness.py"
PROGRAMS = sorted((ROOT / "benchmarks" / "conciseness").glob("*_*.py"))
TASKS = ("own_data", "custom_loss", "two_stages", "own_loop")


@pytest.fixture(scope="module")
def conciseness():
    """The benchmark as a module."""
    return load_module("benchmarks/conciseness.py")


@pytest.fixture
def empty_programs(conciseness, monkeypatch, tmp_path) -> Path:
    """An empty folder in place of the programs."""
    monkeypatch.setattr(conciseness, "PROGRAMS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("task", TASKS)
def test_kdkit_takes_no_more_lines_than_the_limit_of_the_task(conciseness, task):
    limits = {"own_data": 10, "custom_loss": 6, "two_stages": 15, "own_loop": 12}
    assert conciseness.TASKS[task].limit == limits[task]
    assert 1 < conciseness.count("kdkit", task) <= limits[task]


@pytest.mark.parametrize("task", TASKS)
def test_a_kdkit_program_trains_a_student_far_above_chance(conciseness, task, monkeypatch, capsys):
    monkeypatch.syspath_prepend(conciseness.PROGRAMS)
    monkeypatch.delitem(sys.modules, "given", raising=False)  # every program starts with an untrained student
    runpy.run_path(str(conciseness.program("kdkit", task)))
    assert conciseness.accuracy(capsys.readouterr().out) > 0.4
    sys.modules.pop("given")


def test_every_program_belongs_to_a_task_and_has_the_lines_of_the_formatter(conciseness):
    names = {f"{library}_{task}" for library in conciseness.LIBRARIES for task in conciseness.TASKS}
    assert {path.stem for path in PROGRAMS} == names - {"torchdistill_own_loop"}
    options = ["format.skip-magic-trailing-comma=true", "lint.isort.split-on-trailing-comma=false"]
    command = [sys.executable, "-m", "ruff", "format", "--check", *(f"--config={option}" for option in options)]
    done = subprocess.run([*command, *map(str, PROGRAMS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_blank_lines_comments_docstrings_and_the_given_import_do_not_count(conciseness):
    source = '''"""A docstring
in two lines."""

# a comment
from given import (student)
import torch  # a comment on a line that counts


def double(value):
    """Return it twice."""
    return [
        value,  # a line of a statement
        value,
    ]
'''
    assert conciseness.counted_lines(source) == [
        "import torch  # a comment on a line that counts",
        "def double(value):",
        "    return [",
        "        value,  # a line of a statement",
        "        value,",
        "    ]",
    ]


def test_of_a_custom_loss_the_lines_that_are_added_or_changed_count(conciseness, empty_programs):
    (empty_programs / "kdkit_own_data.py").write_text("import kdkit\nrun(1)\nprint(2)\n")
    (empty_programs / "kdkit_custom_loss.py").write_text(
        "import kdkit\ndef loss():\n    return 3\nrun(1, loss)\nprint(2)\n"
    )
    assert conciseness.count("kdkit", "custom_loss") == 3


def test_without_torchdistill_its_columns_are_empty(conciseness, monkeypatch, capsys):
    monkeypatch.setattr(conciseness, "torchdistill_version", lambda: None)
    monkeypatch.setattr(
        conciseness, "run", lambda path: 0.9 if path.stem.startswith("kdkit") else pytest.fail(path.stem)
    )
    monkeypatch.setattr(sys, "argv", ["conciseness.py"])
    conciseness.main()
    header, *rows, last = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "task"
    assert [re.split(r"\s{2,}", row)[2:] for row in rows] == [["-", "-", "0.900", "-"]] * 4
    assert "not installed" in last


def test_more_lines_than_the_limit_fail(conciseness, empty_programs, monkeypatch):
    (empty_programs / "kdkit_own_data.py").write_text("a = 1\n" * 10 + 'print("accuracy 0.900")\n')
    monkeypatch.setattr(conciseness, "torchdistill_version", lambda: None)
    monkeypatch.setattr(sys, "argv", ["conciseness.py", "own_data"])
    with pytest.raises(SystemExit, match="expected at most 10 lines of kdkit; got 11"):
        conciseness.main()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('print("accuracy 0.100")', "a number of at least 0.4; got 'accuracy 0.100'"),
        ("pass", "expected 'accuracy'"),
        ("import sys; sys.exit('broken')", "kdkit_own_data.py failed with exit code 1:\nbroken"),
    ],
    ids=["near chance", "no accuracy", "an error"],
)
def test_a_program_that_does_not_do_its_task_fails(conciseness, empty_programs, source, message):
    (empty_programs / "kdkit_own_data.py").write_text(source)
    with pytest.raises(SystemExit, match=re.escape(message)):
        conciseness.row("own_data", ("kdkit",))


@pytest.mark.slow
def test_the_table_has_both_libraries():
    pytest.importorskip("torchdistill")
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, *rows, last = done.stdout.splitlines()
    assert [row.count(" -") for row in rows] == [0, 0, 0, 3]
    assert last.startswith("torchdistill ")
