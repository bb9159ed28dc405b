"""Mutated files and tables of records are read, or refused by a KdkitError, within bounds of time and memory."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.command_line import environment

EXAMPLES = int(os.environ.get("KDKIT_FUZZ_EXAMPLES", "300"))


@pytest.mark.slow
def test_mutated_files_of_records_give_nothing_but_errors_of_kdkit():
    arguments = [sys.executable, "-m", "tests.fuzz", "--portion", "record files", "0", str(EXAMPLES)]
    done = subprocess.run(
        arguments,
        env=environment(PYTHONPATH=os.environ.get("PYTHONPATH", "")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    outcomes = json.loads(done.stdout)["outcomes"]
    assert outcomes.keys() >= {"read", "refused", "no signal"}
    assert sum(outcomes.values()) == EXAMPLES
