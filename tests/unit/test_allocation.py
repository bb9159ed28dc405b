"""Freed memory is kept for the next step, by a process of kdkit's own and unless somebody chose otherwise."""

import os
import subprocess
import sys

import pytest

from kdkit.allocation import keep_freed_memory

GLIBC = sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names
STEPS = """
import resource
import torch
from kdkit.allocation import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

kept = keep_freed_memory() if {keep} else None
for step in range(6):
    before = faults()
    held = [torch.ones(2**24) for _ in range(4)]  # 64 MiB each: of less, glibc may keep some by itself
    del held
print(kept, faults() - before)
"""


def last_step(*, keep, **environment):
    """Return what keeping said, and how many pages the system gave anew in the last of a few steps."""
    chosen = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    code = STEPS.format(keep=keep)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**chosen, **environment}, capture_output=True, text=True, check=True
    )
    said, faults = done.stdout.split()
    return said, int(faults)


@pytest.mark.skipif(not GLIBC, reason="it is glibc's malloc that gives memory back")
def test_a_step_finds_the_memory_of_the_one_before_where_it_is_kept():
    plain, kept = last_step(keep=False)[1], last_step(keep=True)
    assert kept[0] == "True"
    assert plain > 10_000, "glibc keeps freed memory by itself now: allocation.py may go"
    assert kept[1] < plain / 10


def test_what_somebody_chose_by_an_environment_variable_stands(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert keep_freed_memory() is False


def test_nothing_is_done_on_another_system(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
