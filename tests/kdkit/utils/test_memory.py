"""Tests of keeping freed memory between steps, and of checking how much memory is available."""

import os
import subprocess
import sys
from types import SimpleNamespace

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
    tensors = [torch.ones(2**24) for _ in range(4)]  # 64 MiB each: glibc may keep smaller ones by default
    del tensors
print(kept, faults() - before)
"""


def last_step(*, keep, **environment):
    """Return the result of keep_freed_memory as text, and the page faults of the last of a few steps."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    code = STEPS.format(keep=keep)
    process = subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, check=True
    )
    result, faults = process.stdout.split()
    return result, int(faults)


@pytest.mark.slow
@pytest.mark.skipif(not GLIBC, reason="keep_freed_memory sets options of glibc's malloc")
def test_a_step_reuses_the_memory_of_the_step_before_if_malloc_keeps_it():
    plain, kept = last_step(keep=False)[1], last_step(keep=True)
    assert kept[0] == "True"
    assert plain > 10_000, "glibc keeps freed memory by default now: keep_freed_memory can be deleted"
    assert kept[1] < plain / 10


def test_an_environment_variable_of_malloc_takes_precedence(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert keep_freed_memory() is False


def test_nothing_is_done_on_another_system(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


def write_files(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 3 MB of available memory, outside a container."""
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable: 3072 kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def test_available_memory_is_the_figure_of_the_system(machine):
    assert memory.available() == 3 * 2**20


def test_a_container_has_its_limit_and_its_inactive_page_cache_counts_as_available(machine):
    write_files(
        machine, memory_max=f"{2**21}\n", memory_current=f"{2**20}\n", memory_stat="anon 7\ninactive_file 4096\n"
    )
    assert memory.available("cpu") == 2**20 + 4096


def test_a_container_without_a_limit_has_the_memory_of_the_machine(machine):
    write_files(machine, memory_max="max\n", memory_current="5\n", memory_stat="inactive_file 0\n")
    assert memory.available() == 3 * 2**20


def test_without_meminfo_the_free_pages_are_counted(machine, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", machine / "none")
    monkeypatch.setattr(memory.os, "sysconf", {"SC_AVPHYS_PAGES": 5, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert memory.available() == 5 * 4096


def test_nothing_is_refused_if_the_available_memory_is_unknown(machine, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", machine / "none")
    monkeypatch.setattr(memory, "sys", SimpleNamespace(platform="win32"))
    assert memory.available() is None
    memory.require(2**60, "it")


def test_the_cache_of_torch_counts_as_available_on_a_cuda_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert memory.available("cuda:0") == 130


def test_the_error_shows_both_sizes_and_the_remedy(machine):
    memory.require(3 * 2**20, "the past")
    with pytest.raises(RecipeError) as caught:
        memory.require(5 * 2**20, "the past", remedy="keep fewer samples")
    assert str(caught.value) == "the past would take 5 MB, but cpu has 3 MB left; keep fewer samples"


def test_an_explicit_limit_replaces_the_available_memory(machine):
    memory.require(5 * 2**20, "the past", limit=6 * 2**20)
    with pytest.raises(RecipeError, match="would take 1 kB, but the limit is 512 B"):
        memory.require(1024, "the past", limit=512)
    with pytest.raises(RecipeError, match="would take 2 MB, but the limit is 1 MB"):
        memory.require(2 * 2**20, "the past", limit=2**20)


def test_this_machine_has_some_memory_left():
    left = memory.available()
    assert left is None or left > 0


def test_a_memory_bank_that_does_not_fit_is_reported_before_the_first_step(machine):
    objective = Match(tiny_net("teacher", trained=True), CRD(width=4, negatives=4, samples=10**5))
    (problem,) = check(one_stage(tiny_net("student"), objective)).problems
    assert "CRD(width=4) for 100000 samples" in problem
    assert "would take 6.1 MB, but cpu has 3 MB left; use a smaller width" in problem
