"""Freed memory is kept for the next step, by a process of kdkit's own and unless somebody chose otherwise."""

import os
import subprocess
import sys

import pytest
import torch

from kdkit import Match, RecipeError, check
from kdkit.losses import CRD
from kdkit.utils import memory
from kdkit.utils.memory import keep_freed_memory
from tests.helpers.tiny import one_stage, tiny_net

GLIBC = sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names
STEPS = """
import resource
import torch
from kdkit.utils.memory import keep_freed_memory

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


def written(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)
    return folder


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 3 MB left, in no container."""
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable: 3072 kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    return tmp_path


def test_what_the_machine_has_left_is_what_the_system_says(machine):
    assert memory.available() == 3 * 2**20


def test_a_container_leaves_what_it_may_use_and_its_page_cache_counts_as_left(machine):
    written(machine, memory_max=f"{2**21}\n", memory_current=f"{2**20}\n", memory_stat="anon 7\ninactive_file 4096\n")
    assert memory.available("cpu") == 2**20 + 4096


def test_a_container_without_a_limit_leaves_what_the_machine_has(machine):
    written(machine, memory_max="max\n", memory_current="5\n", memory_stat="inactive_file 0\n")
    assert memory.available() == 3 * 2**20


def test_without_such_a_file_the_pages_are_asked_for(machine, monkeypatch):
    monkeypatch.setattr(memory, "_MEMORY", machine / "none")
    monkeypatch.setattr(memory.os, "sysconf", {"SC_AVPHYS_PAGES": 5, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert memory.available() == 5 * 4096


def test_a_system_that_does_not_say_refuses_nothing(machine, monkeypatch):
    monkeypatch.setattr(memory, "_MEMORY", machine / "none")
    monkeypatch.delattr(memory.os, "sysconf_names")
    assert memory.available() is None
    memory.require(2**60, "it")


def test_a_cuda_device_counts_what_torch_keeps_for_later(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert memory.available("cuda:0") == 130


def test_what_does_not_fit_is_refused_with_both_figures_and_what_to_do(machine):
    memory.require(3 * 2**20, "the past")
    with pytest.raises(RecipeError) as caught:
        memory.require(5 * 2**20, "the past", remedy="keep fewer samples")
    assert str(caught.value) == ("the past would take 5 MB, but cpu has 3 MB left; keep fewer samples")


def test_a_limit_of_ones_own_stands_above_what_is_left(machine):
    memory.require(5 * 2**20, "the past", limit=6 * 2**20)
    with pytest.raises(RecipeError, match=r"would take 0.00098 MB, but the limit is 0.00049 MB"):
        memory.require(1024, "the past", limit=512)
    with pytest.raises(RecipeError, match="would take 2 MB, but the limit is 1 MB"):
        memory.require(2 * 2**20, "the past", limit=2**20)


def test_this_machine_has_some_memory_left():
    left = memory.available()
    assert left is None or left > 0


def test_a_loss_that_remembers_too_much_is_found_before_the_first_step(machine):
    objective = Match(tiny_net("teacher", trained=True), CRD(width=4, negatives=4, samples=10**5))
    (problem,) = check(one_stage(tiny_net("student"), objective)).problems
    assert "CRD(width=4) for 100000 samples" in problem
    assert "would take 6 MB, but cpu has 3 MB left; use a smaller width" in problem
