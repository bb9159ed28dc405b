"""Call the scripts of docs/demo by node; tests that do are marked with `needs_node`."""

import json
import shutil
import subprocess

import pytest

from tests.helpers.command_line import ROOT

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


def calls(*requests):
    """Call functions of the page, and return their results, {"value": ...} or {"refused": message}."""
    done = subprocess.run(
        [NODE, ROOT / "tests" / "helpers" / "demo_calls.mjs"],
        input=json.dumps(requests, allow_nan=False),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def values(*requests):
    results = calls(*requests)
    assert not [result for result in results if "refused" in result], results
    return [result["value"] for result in results]


def record_of(path):
    """Return the arguments of a call that reads a record."""
    folder = path.parent
    return {"header": str(path), "files": [str(file) for file in folder.glob(f"{path.stem}.*") if file != path]}
