"""Worker processes return the result of every item, and end whether they succeed, fail or are abandoned."""

import os
import time

import pytest

from kdkit import DataError
from kdkit_ecg.utils import processes
from kdkit_ecg.utils.processes import run_in_processes


def test_each_item_is_returned_once_with_its_result():
    items = ["a" * number for number in range(20)]
    assert sorted(run_in_processes(len, items, 2)) == sorted((item, len(item)) for item in items)


def test_printed_text_does_not_mix_with_the_results(capfd):
    assert list(run_in_processes(print, ["hello"], 1)) == [("hello", None)]
    assert capfd.readouterr().out == ""


def test_an_exception_of_the_function_is_raised_in_the_caller():
    with pytest.raises(ValueError, match="invalid literal"):
        list(run_in_processes(int, ["1", "x"], 1))


def test_a_killed_process_is_an_error():
    with pytest.raises(DataError, match="killed from outside"):
        list(run_in_processes(os._exit, [0], 1))


def test_a_file_in_the_current_folder_does_not_shadow_a_module_of_python(tmp_path, monkeypatch):
    (tmp_path / "struct.py").write_text("raise SystemExit('not the real one')")
    monkeypatch.chdir(tmp_path)
    assert list(run_in_processes(len, ["a"], 1)) == [("a", 1)]


def test_each_process_has_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert list(run_in_processes(os.getenv, ["OMP_NUM_THREADS"], 1)) == [("OMP_NUM_THREADS", "1")]


def test_no_more_processes_are_started_than_there_are_items(monkeypatch):
    started, original = [], processes._Worker

    def counting_worker(function):
        started.append(function)
        return original(function)

    monkeypatch.setattr(processes, "_Worker", counting_worker)
    assert list(run_in_processes(len, ["a"], 256)) == [("a", 1)]  # starts one process
    assert list(run_in_processes(len, [], 256)) == []
    assert len(started) == 1


def test_closing_the_generator_early_ends_the_processes():
    # Items of 60 s are queued when the generator is closed.
    results = run_in_processes(time.sleep, [0.0] * 3 + [60.0] * 3, 1)
    start = time.monotonic()
    next(results)
    results.close()
    assert time.monotonic() - start < 30
