"""The benchmarks of a checkout are listed by what they measure, and run by name."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from kdkit.cli import bench
from kdkit.errors import BenchmarkError
from tests.helpers.command_line import ROOT, environment

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with one benchmark."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    script = (
        '"""What is said\nin two lines.\n\n    python it\n"""\nimport sys\nprint("ran", *sys.argv[1:])\nsys.exit(3)\n'
    )
    (tmp_path / "benchmarks" / "small.py").write_text(script)
    return tmp_path


def test_benchmarks_are_listed_with_what_they_measure(kdkit_here):
    said = kdkit_here("bench")
    assert said.code == 0
    assert {line.split()[0] for line in said.out.splitlines()} == {path.stem for path in SCRIPTS}
    assert all(len(line.split()) > 5 for line in said.out.splitlines())


def test_a_benchmark_is_run_with_its_arguments_and_its_exit_code_is_returned(checkout, capfd):
    assert bench.benchmarks(checkout) == {"small": "What is said in two lines."}
    assert bench.bench("small", ["--rounds", "2"], checkout) == 3
    assert capfd.readouterr().out == "ran --rounds 2\n"


def test_arguments_after_two_dashes_are_the_benchmarks_own(kdkit_here, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "bench", lambda name, args: asked.append((name, args)) or 0)
    assert kdkit_here("bench", "small", "--", "--help", "-q").code == 0
    assert kdkit_here("bench", "small", "--rounds", "2").code == 0
    assert asked == [("small", ("--help", "-q")), ("small", ("--rounds", "2"))]


def test_a_benchmark_that_does_not_exist_is_told_with_the_nearest(kdkit_here):
    said = kdkit_here("bench", "step_overhed")
    assert said.code == 2
    assert "did you mean 'step_overhead'?" in said.err


def test_outside_a_checkout_it_is_said_where_benchmarks_are(tmp_path):
    (tmp_path / "benchmarks").mkdir()  # somebody else's, beside an installed kdkit
    with pytest.raises(BenchmarkError, match="clone the repository"):
        bench.benchmarks(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_says_how_it_is_run(script):
    assert f"python benchmarks/{script.name}" in ast.get_docstring(ast.parse(script.read_text()))


def test_the_authors_procedure_runs_beside_kdkit(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "vs_lrhnet_authors.py"), "--records", "80", "--width", "4"]
    done = subprocess.run(
        [*command, "--length", "256", "--epochs", "2", "--rounds", "1"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "x faster" in done.stdout
    assert "load" in done.stdout
