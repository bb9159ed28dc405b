"""Processes that do one thing to many items: what comes back, and what happens where one fails."""

import os
import time

import pytest

from kdkit import DataError
from kdkit_ecg.utils import processes
from kdkit_ecg.utils.processes import in_processes


def test_each_item_comes_back_once_with_its_result():
    items = ["a" * number for number in range(20)]
    assert sorted(in_processes(len, items, 2)) == sorted((item, len(item)) for item in items)


def test_what_the_work_prints_does_not_mix_with_its_results(capfd):
    assert list(in_processes(print, ["hello"], 1)) == [("hello", None)]
    assert capfd.readouterr().out == ""


def test_what_the_work_raises_is_raised_here():
    with pytest.raises(ValueError, match="invalid literal"):
        list(in_processes(int, ["1", "x"], 1))


def test_a_process_that_is_ended_from_outside_is_said():
    with pytest.raises(DataError, match="ended from outside"):
        list(in_processes(os._exit, [0], 1))


def test_a_file_where_one_stands_does_not_pass_for_a_module_of_python(tmp_path, monkeypatch):
    (tmp_path / "struct.py").write_text("raise SystemExit('not the real one')")
    monkeypatch.chdir(tmp_path)
    assert list(in_processes(len, ["a"], 1)) == [("a", 1)]


def test_each_process_has_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert list(in_processes(os.getenv, ["OMP_NUM_THREADS"], 1)) == [("OMP_NUM_THREADS", "1")]


def test_no_more_processes_are_started_than_there_are_items(monkeypatch):
    started, really = [], processes._Worker

    def worker(work):
        started.append(work)
        return really(work)

    monkeypatch.setattr(processes, "_Worker", worker)
    assert list(in_processes(len, ["a"], 256)) == [("a", 1)]
    assert list(in_processes(len, [], 256)) == []
    assert len(started) == 1


def test_whoever_leaves_early_ends_the_processes():
    came = in_processes(time.sleep, [0.0] * 3 + [60.0] * 3, 1)
    began = time.monotonic()
    next(came)
    came.close()
    assert time.monotonic() - began < 30
