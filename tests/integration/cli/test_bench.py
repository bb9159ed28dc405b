"""Tests of `kdkit bench`: it lists the benchmarks of a checkout with their descriptions, and runs one by name."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from kdkit.cli import bench
from kdkit.errors import BenchmarkError
from tests.helpers.command_line import ROOT, environment
from tests.helpers.modules import load_module

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with one benchmark, which prints its arguments and exits with 3."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    script = (
        '"""A description\nin two lines.\n\n    python it\n"""\nimport sys\nprint("ran", *sys.argv[1:])\nsys.exit(3)\n'
    )
    (tmp_path / "benchmarks" / "small.py").write_text(script)
    return tmp_path


def test_benchmarks_are_listed_with_their_descriptions(kdkit_here):
    result = kdkit_here("bench")
    assert result.code == 0
    assert {line.split()[0] for line in result.out.splitlines()} == {path.stem for path in SCRIPTS}
    assert all(len(line.split()) > 5 for line in result.out.splitlines())  # a name and a sentence


def test_a_benchmark_is_run_with_its_arguments_and_its_exit_code_is_returned(checkout, capfd):
    assert bench.benchmarks(checkout) == {"small": "A description in two lines."}
    assert bench.run_benchmark("small", ["--rounds", "2"], checkout) == 3
    assert capfd.readouterr().out == "ran --rounds 2\n"


def test_options_are_passed_to_the_benchmark(kdkit_here, monkeypatch):
    calls = []
    monkeypatch.setattr(bench, "run_benchmark", lambda name, args: calls.append((name, args)) or 0)
    assert kdkit_here("bench", "small", "--", "--help", "-q").code == 0
    assert kdkit_here("bench", "small", "--rounds", "2").code == 0
    assert calls == [("small", ("--help", "-q")), ("small", ("--rounds", "2"))]


def test_the_error_for_an_unknown_benchmark_suggests_the_nearest(kdkit_here):
    result = kdkit_here("bench", "step_overhed")
    assert result.code == 2
    assert "did you mean 'step_overhead'?" in result.err


def test_the_error_outside_a_checkout_explains_how_to_get_the_benchmarks(tmp_path):
    (tmp_path / "benchmarks").mkdir()  # another package's, next to an installed kdkit
    with pytest.raises(BenchmarkError, match="clone the repository"):
        bench.benchmarks(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_documents_its_command(script):
    assert f"python benchmarks/{script.name}" in ast.get_docstring(ast.parse(script.read_text()))


def test_the_interval_of_a_median_is_symmetric_in_the_ranks():
    median_and_interval = load_module("benchmarks/step_overhead.py").median_and_interval
    assert median_and_interval([3.0, 1.0]) == (2.0, 1.0, 3.0)
    assert median_and_interval(range(41)) == (20, 14, 26)
    assert median_and_interval(range(38)) == (18.5, 12, 25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("chunked --tokens 64 --words 100 --rows 16 --rounds 1", "chunks of 16"),
        ("data_loading --seconds 0.01", "100,000"),
        ("export --seconds 1 --length 512", "target 110,000 bytes: met"),
        ("gpu one_layer --device cpu --quick", "one layer: kdkit eager"),
        ("gpu_convolutions --device cpu --quick --rounds 1", "SE-ResNet, 12 leads, width 64, bf16  blocks if they fit"),
        ("many_samples --quick", "20,000 rows: first epoch"),
        ("soak --epochs 10", "ms per epoch"),
        ("teacher_cache --quick", "x a cached one"),
        ("vs_lrhnet_authors --records 80 --width 4 --length 256 --epochs 2 --rounds 1", "x faster"),
    ],
)
def test_a_benchmark_runs_with_small_settings(tmp_path, command, expected):
    name, *options = command.split()
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *options],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
