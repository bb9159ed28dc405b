"""Count and run the lines that a user writes with kdkit and with torchdistill, for the same tasks on their own data.

    python benchmarks/conciseness.py [own_data] [custom_loss] [two_stages] [own_loop]

The programs are `benchmarks/conciseness/<library>_<task>.py`. They import what the user has already from `given.py`:
data sets, trained teachers and an untrained student. A line counts unless it is blank, a comment, part of a docstring
or part of the import from `given`. Lines are those of `ruff format` at 120 columns without magic trailing commas, so
that what fits on a line is on one line, for both libraries. Of a custom loss only the lines that the program does not
share with that of `own_data` count: those that define the loss and those that use it.

Both programs of a task minimise the same terms with the same weights, optimizer, batch size and epochs, keep the epoch
that is best on the validation data, and print the student's accuracy on the test data. Each runs in a new process. The
benchmark fails if a program fails, if an accuracy is near chance, or if kdkit needs more lines than the task's limit.
Without torchdistill (the extra `bench`) its columns are empty.
"""

import argparse
import ast
import difflib
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("kdkit", "torchdistill")
PROGRAMS = Path(__file__).parent / "conciseness"
LEAST_ACCURACY = 0.4  # four times chance: ten classes


@dataclass(frozen=True)
class Task:
    """A task of a user. limit: the most lines for kdkit. base: the task whose program the user has already."""

    description: str
    limit: int
    base: str | None = None


TASKS = {
    "own_data": Task("distillation on the user's own data", limit=10),
    "custom_loss": Task("a custom loss, written and used", limit=6, base="own_data"),
    "two_stages": Task("two stages with two teachers", limit=15),
    "own_loop": Task("a feature loss in the user's own loop", limit=12),
}


def program(library, task):
    """Return the path of a program, or None if this library has none for the task."""
    path = PROGRAMS / f"{library}_{task}.py"
    return path if path.is_file() else None


def counted_lines(source):
    """Return the lines of a program that count."""
    skipped = set()
    for node in ast.walk(ast.parse(source)):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_docstring or (isinstance(node, ast.ImportFrom) and node.module == "given"):
            skipped.update(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(source.splitlines(), start=1)
    return [line for number, line in lines if number not in skipped and line.strip() and line.strip()[0] != "#"]


def count(library, task):
    """Return the number of lines that a user writes for a task, or adds to and changes in the program of its base."""
    lines = counted_lines(program(library, task).read_text(encoding="utf-8"))
    base = TASKS[task].base
    if base is None:
        return len(lines)
    base_lines = counted_lines(program(library, base).read_text(encoding="utf-8"))
    return sum(line.startswith("+ ") for line in difflib.ndiff(base_lines, lines))


def accuracy(output):
    """Return the accuracy that a program printed. Raises SystemExit if there is none, or if it is near chance."""
    match = re.search(r"^accuracy (\d\.\d+)$", output, re.MULTILINE)
    if match is None or float(match[1]) < LEAST_ACCURACY:
        raise SystemExit(f"expected 'accuracy' and a number of at least {LEAST_ACCURACY}; got {output.strip()!r}")
    return float(match[1])


def run(path):
    """Run a program in a new process, and return the accuracy that it prints. Raises SystemExit if it fails."""
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{path.name} failed with exit code {done.returncode}:\n{done.stderr}")
    return accuracy(done.stdout)


def torchdistill_version():
    """Return the version of torchdistill, or None if it is not installed."""
    try:
        return version("torchdistill")
    except PackageNotFoundError:
        return None


def row(task, libraries):
    """Return the cells of a task: description, lines of kdkit and torchdistill, their ratio, accuracies."""
    available = [library for library in libraries if program(library, task)]
    lines = {library: count(library, task) for library in available}
    accuracies = {library: f"{run(program(library, task)):.3f}" for library in available}
    ratio = f"{lines['torchdistill'] / lines['kdkit']:.1f}x" if "torchdistill" in lines else "-"
    kdkit, torchdistill = ([str(cells.get(library, "-")) for cells in (lines, accuracies)] for library in LIBRARIES)
    return [TASKS[task].description, kdkit[0], torchdistill[0], ratio, kdkit[1], torchdistill[1]]


def main():
    """Run the programs, and print a row for each task."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"{', '.join(TASKS)}; all if none is named")
    tasks = parser.parse_args().tasks or list(TASKS)
    if not TASKS.keys() >= set(tasks):
        parser.error(f"expected tasks among {', '.join(TASKS)}; got {' '.join(tasks)}")
    installed = torchdistill_version()
    layout = "{:38}{:>14}{:>14}{:>8}{:>18}{:>14}"
    print(layout.format("task", "lines: kdkit", "torchdistill", "ratio", "accuracy: kdkit", "torchdistill"))
    for task in tasks:
        print(layout.format(*row(task, LIBRARIES if installed else LIBRARIES[:1])), flush=True)
    print(f"torchdistill {installed}" if installed else "torchdistill is not installed: pip install -e '.[bench]'")
    for task in tasks:
        if count("kdkit", task) > TASKS[task].limit:
            raise SystemExit(f"{task}: expected at most {TASKS[task].limit} lines of kdkit; got {count('kdkit', task)}")


if __name__ == "__main__":
    main()
