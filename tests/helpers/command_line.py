"""Run the command line in a process of its own, and read its result."""

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [more.pop("PYTHONPATH", ""), str(ROOT)]))
    return {**os.environ, "COLUMNS": "200", "PYTHONPATH": path, **more}
