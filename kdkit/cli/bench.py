"""Find the benchmarks of a checkout, describe each, and run one."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kdkit.errors import BenchmarkError, did_you_mean

ROOT = Path(__file__).parents[2]


def benchmarks(root: Path = ROOT) -> dict[str, str]:
    """Return the description of each benchmark by name. Raises BenchmarkError outside a checkout."""
    folder = root / "benchmarks"
    # An installed kdkit lies in site-packages, where a folder "benchmarks" would be another package's.
    if not (root / "pyproject.toml").is_file() or not folder.is_dir():
        raise BenchmarkError(
            f"benchmarks are part of a checkout, and kdkit is installed in {root} without them; clone the repository "
            "and install it with `pip install -e .`"
        )
    descriptions = {}
    for path in sorted(folder.glob("*.py")):
        # Parsed and not imported, since a benchmark would run, and some need packages of the extra `bench`.
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        descriptions[path.stem] = docstring.partition("\n\n")[0].replace("\n", " ")
    return descriptions


def bench(name: str, args: Sequence[str], root: Path = ROOT) -> int:
    """Run a benchmark with these arguments and return its exit code. Raises BenchmarkError if there is none.

    It runs as a script in a new process, so that modules and settings of this one do not affect its times.
    """
    names = benchmarks(root)
    if name not in names:
        raise BenchmarkError(f"there is no benchmark {name!r}; {did_you_mean(name, names)}")
    return subprocess.run([sys.executable, str(root / "benchmarks" / f"{name}.py"), *args], check=False).returncode
