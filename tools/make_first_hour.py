"""Execute docs/first-hour.md: write its files, run its commands, and replace their outputs, in a minute or two.

    python tools/make_first_hour.py

The page is a log. Blocks are executed in order, in an empty folder:

- ```python title="FILE" or ```text title="FILE" writes a file;
- ```diff title="FILE" changes one: lines that begin with "-" or a space are found, and replaced by those with "+" or a
  space;
- ```console has commands after "$ ", each with its output, exactly as it is without a terminal but for what a terminal
  does not keep: the lines "reading FILE ...". In an output, the line "..." stands for any lines. At the line "^C" the
  command is interrupted, once the start of the line before was printed.

An output that is not that of the page is written with all of its lines: leave some out by hand. The test of the page
allows other times and versions, and slightly other metrics and losses, which depend on the processor.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PAGE = Path(__file__).parents[1] / "docs" / "first-hour.md"
ANY, CTRL_C = "...", "^C"
_BLOCK = re.compile(r'^```(python|text|diff|console)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_TRANSIENT = re.compile(r"(reading|preparing|checking|writing|recipe file:?) .*(\.\.\.|\.py)$")
# Times and versions, which no two machines have in common, the batch that Ctrl-C reached, and the best option.
_MASKED = re.compile(r"resumed .*|(?<=\w)=[\d.]+|\d[\d.,]* (?:s|ms|min|[kMG]?B|MB/s)\b|\b\d+(?:\.\w+){2,}\b")
_NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?")
_SECONDS = 120


class Program(Protocol):
    """A running Python program, with its output so far and the means to interrupt it."""

    def output(self, stream: int) -> str:
        """Return what it has written so far; stream 1 is stdout and stderr."""

    def send_signal(self, number: signal.Signals) -> None:
        """Interrupt it."""

    def wait(self, timeout: float) -> int:
        """Return the exit code at its end."""


class Process:
    """A Python program in a new process. arguments: those of `python`."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self._file = tempfile.NamedTemporaryFile("r+", suffix=".txt")  # noqa: SIM115  # read while the process writes
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # the page is of a machine without a GPU
        )

    def output(self, stream: int) -> str:
        """Return what the program has written to stdout and stderr, which are one file."""
        return Path(self._file.name).read_text(encoding="utf-8")

    def send_signal(self, number: signal.Signals) -> None:
        """Interrupt the program."""
        self._process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """Return the exit code at its end."""
        return self._process.wait(timeout)


Start = Callable[[Sequence[str], Path], Program]


@dataclass(frozen=True)
class Step:
    """A command of the page. start, end: where its output is in the text of the page."""

    command: str
    expected: str
    actual: str
    start: int
    end: int


def execute(page: str, folder: Path, start: Start = Process) -> Iterator[Step]:
    """Execute the blocks of a page in an empty folder, and yield its commands with their outputs."""
    for block in _BLOCK.finditer(page):
        kind, name, text = block.groups()
        if kind == "console":
            yield from _commands(text, block.start(3), folder, start)
        elif kind == "diff":
            (folder / name).write_text(changed((folder / name).read_text(encoding="utf-8"), text), encoding="utf-8")
        elif name is not None:
            (folder / name).write_text(text, encoding="utf-8")


def changed(source: str, diff: str) -> str:
    """Return a source with a diff applied. Raises ValueError unless its lines are in the source exactly once.

    An empty line of the diff stands for an empty line of the source.
    """
    lines = [line or " " for line in diff.splitlines()]
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] in "- ")
    new = "".join(f"{line[1:]}\n" for line in lines if line[0] in "+ ")
    if source.count(old) != 1:
        raise ValueError(f"the old lines of a diff must be in its file once; they are there {source.count(old)} times")
    return source.replace(old, new)


def aligned(expected: str, actual: str) -> str | None:
    """Return an output with the same lines left out as on the page, or None if it is not that of the page.

    It is if its words are equal and its numbers near.
    """
    *segments, last = [segment.splitlines() for segment in _split(expected)]
    lines = actual.splitlines()
    kept: list[str] = []
    for index, segment in enumerate(segments):
        # the first segment is where the output begins, the others anywhere after what was matched
        starts = range(len(lines) - len(segment) + 1) if index else range(1)
        first = next((row for row in starts if _all_near(segment, lines[row : row + len(segment)])), None)
        if first is None:
            return None
        kept += [*lines[first : first + len(segment)], ANY]
        lines = lines[first + len(segment) :]
    if segments:  # the last one is at the end
        lines = lines[len(lines) - len(last) :]
    return "".join(f"{line}\n" for line in [*kept, *lines]) if _all_near(last, lines) else None


def updated(page: str, folder: Path, start: Start = Process) -> str:
    """Return the page with the outputs of its commands as they are now."""
    # From the end, so that the positions of the others stay.
    for step in reversed(list(execute(page, folder, start))):
        output = aligned(step.expected, step.actual)
        page = page[: step.start] + (step.actual if output is None else output) + page[step.end :]
    return page


def _commands(text: str, offset: int, folder: Path, start: Start) -> Iterator[Step]:
    for part in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
        command, expected = part.groups()
        actual = _run(command, expected, folder, start)
        yield Step(command, expected, actual, offset + part.start(2), offset + part.end(2))


def _run(command: str, expected: str, folder: Path, start: Start) -> str:
    """Run `kdkit ...` or `python FILE`, and return its output."""
    name, *arguments = shlex.split(command)
    program = start(["-m", "kdkit", *arguments] if name == "kdkit" else arguments, folder)
    head, interrupt, _ = expected.partition(f"{CTRL_C}\n")
    if interrupt:
        *_, last = head.splitlines()
        _wait_for(program, last[:15])  # such as "   epoch   3  tr"
        before = program.output(1)
        program.send_signal(signal.SIGINT)
        program.wait(_SECONDS)
        after = program.output(1)[len(before) :]
        return _kept(before) + f"{CTRL_C}\n" + _kept(after)
    program.wait(_SECONDS)
    return _kept(program.output(1))


def _wait_for(program: Program, text: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while text not in program.output(1):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{text!r} was not printed in {_SECONDS} s: {program.output(1)}")
        time.sleep(0.005)


def _kept(output: str) -> str:
    """Return the lines that stay on a terminal."""
    lines = (line.rstrip() for line in output.splitlines())
    return "".join(f"{line}\n" for line in lines if not _TRANSIENT.match(line))


def _split(expected: str) -> list[str]:
    return re.split(rf"^{re.escape(ANY)}\n", expected, flags=re.MULTILINE)


def _all_near(expected: list[str], actual: list[str]) -> bool:
    return len(expected) == len(actual) and all(map(_near, expected, actual))


def _near(expected: str, actual: str) -> bool:
    """Compare two lines: their words, and their numbers within a tolerance."""
    # Without the stars of the best epochs, which widen tables; with one sign for minus, and one for branches of a tree,
    # whose last one may be an estimate, which is not there if the machine is busy.
    plain = (
        re.sub("[━─]+", "-", line.replace(" *", "").replace("\N{MINUS SIGN}", "-").replace("└", "├"))
        for line in (expected, actual)
    )
    expected, actual = (" ".join(_MASKED.sub("<>", line).split()) for line in plain)
    if _NUMBER.sub("#", expected) != _NUMBER.sub("#", actual):
        return False
    pairs = zip(*(_NUMBER.findall(line) for line in (expected, actual)), strict=True)
    return all(_near_number(*pair) for pair in pairs)


def _near_number(expected: str, actual: str) -> bool:
    first, second = (float(number.replace(",", "")) for number in (expected, actual))
    if expected[0] in "-+":  # differences in points, or of a metric
        return abs(first - second) <= 6
    if "." not in expected and "." not in actual:
        return first == second
    return abs(first - second) <= 0.1 + 0.3 * abs(first)


def main() -> None:
    """Rewrite the page."""
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(updated(page, Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
