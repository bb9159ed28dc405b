"""The command `kdkit bench`."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from kdkit.errors import BenchmarkError, did_you_mean
from kdkit.utils.printable import echo

ROOT = Path(__file__).parents[2]


@click.command(
    short_help="List the benchmarks of a checkout, or run one.",
    context_settings={"ignore_unknown_options": True},  # they belong to the benchmark
)
@click.argument("name", required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def bench(name: str | None, args: tuple[str, ...]) -> int:
    """List the benchmarks of this checkout, or run one with its own options.

        kdkit bench
        kdkit bench step_overhead -- --help

    Each benchmark compares two or more programs side by side and prints ratios and the load of the machine.
    """
    if name is not None:
        return run_benchmark(name, args)
    descriptions = benchmarks()
    width = max(map(len, descriptions))
    for benchmark, description in descriptions.items():
        echo(f"{benchmark:{width}}  {description}")
    return 0


def benchmarks(root: Path = ROOT) -> dict[str, str]:
    """Return the description of each benchmark by name. Raises BenchmarkError outside a checkout."""
    folder = root / "benchmarks"
    # If kdkit is installed in site-packages, a folder "benchmarks" there belongs to another package.
    if not (root / "pyproject.toml").is_file() or not folder.is_dir():
        raise BenchmarkError(
            f"benchmarks are part of a checkout, but kdkit is installed in {root} without them; clone the repository "
            "and install it with `pip install -e .`"
        )
    descriptions = {}
    for path in sorted(folder.glob("*.py")):
        # Parsed instead of imported: an import would run the benchmark, and may need packages of the extra `bench`.
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        descriptions[path.stem] = docstring.partition("\n\n")[0].replace("\n", " ")
    return descriptions


def run_benchmark(name: str, args: Sequence[str], root: Path = ROOT) -> int:
    """Run a benchmark with these arguments and return its exit code. Raises BenchmarkError if it does not exist.

    It runs as a script in a new process, so that the modules and settings of this process do not affect its timings.
    """
    names = benchmarks(root)
    if name not in names:
        raise BenchmarkError(f"there is no benchmark {name!r}; {did_you_mean(name, names)}")
    return subprocess.run([sys.executable, str(root / "benchmarks" / f"{name}.py"), *args], check=False).returncode
