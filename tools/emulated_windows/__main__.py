"""Run a command under the rules of Windows that differ from those of Linux.

    python -m tools.emulated_windows pytest -n0 tests/integration/reliability

`rules/sitecustomize.py` has the rules, which apply to all Python processes of the command: which files can be deleted
or replaced, what a file may be called, the default encoding, how processes start, and the resolution of clocks.

What is missing: paths with backslashes and drives, signals, consoles, read-only files, and the libraries of Windows.
`mypy --platform win32` finds functions that Python does not have there. So this finds errors, and cannot show that a
program runs on Windows. It needs Linux, for /proc.
"""

import os
import sys
import uuid
from pathlib import Path

RULES = Path(__file__).parent / "rules"


def main() -> None:
    """Run the command of the arguments."""
    if len(sys.argv) < 2:
        sys.exit("name the command that gets the rules of Windows: python -m tools.emulated_windows pytest tests")
    os.execvpe(sys.argv[1], sys.argv[1:], {**os.environ, **variables()})


def variables() -> dict[str, str]:
    """Return the environment variables with which a Python process follows the rules, together with its children."""
    path = os.pathsep.join(filter(None, [str(RULES), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "EMULATED_WINDOWS": uuid.uuid4().hex, "PYTHONIOENCODING": "cp1252"}


if __name__ == "__main__":
    main()
