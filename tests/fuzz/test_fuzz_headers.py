"""Mutated headers and signal files are read, or refused by a KdkitError, within bounds of time and memory.

KDKIT_FUZZ_EXAMPLES sets the number of records, which are otherwise as many as take about a second.
"""

import json
import os
import subprocess
import sys

from tests.helpers.command_line import environment

EXAMPLES = int(os.environ.get("KDKIT_FUZZ_EXAMPLES", "30"))


def test_mutated_headers_and_signals_give_nothing_but_errors_of_kdkit():
    # A process of its own, whose memory is limited, and without the records of the machine, to be the same everywhere.
    variables = {**environment(), "KDKIT_SHARED": ""}
    arguments = [sys.executable, "-m", "tests.fuzz", "--portion", "headers", "0", str(EXAMPLES)]
    done = subprocess.run(arguments, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    outcomes = json.loads(done.stdout)["outcomes"]
    assert outcomes.keys() >= {"read", "no signal", "no header"}
    assert sum(outcomes.values()) == EXAMPLES
