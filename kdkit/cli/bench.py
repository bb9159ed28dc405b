"""Find the benchmarks of a checkout, say what each measures, and run one."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kdkit.errors import BenchmarkError, did_you_mean

ROOT = Path(__file__).parents[2]


def benchmarks(root: Path = ROOT) -> dict[str, str]:
    """Return what each benchmark measures, by name. Raises BenchmarkError outside a checkout."""
    folder = root / "benchmarks"
    if not (root / "pyproject.toml").is_file() or not folder.is_dir():
        raise BenchmarkError(
            f"benchmarks are part of a checkout, and kdkit is installed in {root} without them; clone the repository "
            "and install it with `pip install -e .`"
        )
    return {path.stem: _first_line(path) for path in sorted(folder.glob("*.py"))}


def bench(name: str, args: Sequence[str], root: Path = ROOT) -> int:
    """Run a benchmark with these arguments and return its exit code. Raises BenchmarkError for one that is not there.

    It runs as a script of its own, as its docstring says, so that nothing that is imported here is in its way.
    """
    known = benchmarks(root)
    if name not in known:
        raise BenchmarkError(f"there is no benchmark {name!r}; {did_you_mean(name, known)}")
    return subprocess.run([sys.executable, str(root / "benchmarks" / f"{name}.py"), *args], check=False).returncode


def _first_line(path: Path) -> str:
    """Return the first sentence of a script, without running it."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return said.partition("\n\n")[0].replace("\n", " ")
