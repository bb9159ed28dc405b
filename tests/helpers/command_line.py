"""The result of a command in a test, and the environment of the processes that tests start."""

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class CommandResult:
    """The exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """Return the environment for a process that imports this checkout of kdkit.

    more: further variables; a PYTHONPATH among them comes before the checkout.
    """
    paths = more.pop("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH")
    path = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    # A fixed width, since rich and click wrap their output to that of the terminal.
    return {**os.environ, "COLUMNS": "200", "PYTHONPATH": path, **more}
