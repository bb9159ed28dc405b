"""User code has no type errors. `mypy` checks it too, by its settings in pyproject.toml."""

import importlib.util
import subprocess
import sys

import pytest

from tests.helpers.command_line import ROOT


@pytest.mark.slow  # 10 s
@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="needs pyright")
def test_pyright_finds_no_errors_in_user_code():
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "tests/contract/user_code.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
