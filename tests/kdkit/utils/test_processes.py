"""The number of cores that a process may use."""

import os
import sys

import pytest
from joblib.externals.loky.backend import context

from kdkit.utils.processes import usable_cores


def test_the_affinity_of_the_process_limits_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == 3


def test_all_cores_count_on_a_system_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setitem(sys.modules, "psutil", None)  # which joblib asks then, if it is installed
    monkeypatch.setattr(sys, "platform", "darwin")  # on Linux, joblib warns that psutil is missing
    assert usable_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)  # as the documentation of Python allows
    assert usable_cores() == 1


@pytest.mark.parametrize(("cpu_max", "cores"), [("120000 100000", 2), ("50000 100000", 1), ("max 100000", 64)])
def test_the_quota_of_a_container_limits_the_cores(monkeypatch, tmp_path, cpu_max, cores):
    (tmp_path / "cpu.max").write_text(cpu_max)
    monkeypatch.setattr(context, "open", lambda name: (tmp_path / "cpu.max").open(), raising=False)
    monkeypatch.setattr(context.os.path, "exists", lambda name: name == "/sys/fs/cgroup/cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == cores
