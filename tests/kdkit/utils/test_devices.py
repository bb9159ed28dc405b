"""Tests of counting the CPU cores of this process; `find_device` is tested with the run options."""

import os

from kdkit.utils.devices import usable_cores


def test_the_affinity_of_the_process_limits_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == 3


def test_all_cores_count_on_a_system_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)  # as the documentation of Python allows
    assert usable_cores() == 1
