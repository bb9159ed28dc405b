"""`kdkit ecg prepare` and `store`: killed, interrupted, two at the same time, listed and deleted."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kdkit_ecg import Challenge2020
from kdkit_ecg.leads import LEADS
from kdkit_ecg.store.index import INDEX, LOCK, ROW, read_rows
from tests.helpers.command_line import environment
from tests.helpers.processes import ForkedPython, wait_until

NUMBER = 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 6 s at 500 Hz, enough of them to interrupt their preparation."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(NUMBER):
        name = f"R{number:03}"
        samples = np.random.default_rng(number).integers(-1000, 1000, (3000, 12)).astype("<i2")
        lines = [f"{name}.dat 16 1000/mV 16 0 {samples[0, column]} 0 0 {lead}" for column, lead in enumerate(LEADS)]
        header = [f"{name} 12 500 3000", *lines, "#Age: 50", "#Sex: Male", "#Dx: 426783006", ""]
        (folder / f"{name}.hea").write_text("\n".join(header))
        (folder / f"{name}.dat").write_bytes(samples.tobytes())
    return folder


def data(folder, store):
    return Challenge2020(folder, shares=(1.0, 0.0, 0.0), store=store)


def samples(dataset):
    return [signal.tobytes() for signal in dataset.train.signals]


@pytest.fixture(scope="module")
def clean(folder):
    return samples(data(folder, None))


def start_preparation(folder, store, *more):
    command = ["-m", "kdkit", "ecg", "prepare", str(folder), "--store", str(store), *more]
    return ForkedPython(command, store)


def wait_for_rows(path, least=8):
    """Wait until the index has some rows."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (path / INDEX).is_file() and (path / INDEX).stat().st_size >= least * ROW.itemsize:
            return
        time.sleep(0.005)
    raise AssertionError("no record was prepared")


def prepared_count(output):
    return int(re.search(r"^(\d+) records prepared now", output, flags=re.MULTILINE)[1])


def workers_of(session):
    """Return the running processes that a command started, which have its session."""
    workers = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == session:
                workers.append(int(entry.name))
        except ProcessLookupError:
            continue
    return workers


@pytest.mark.parametrize(
    ("ending", "jobs"), [pytest.param(signal.SIGKILL, 2, marks=pytest.mark.slow), (signal.SIGINT, 1)]
)
def test_prepared_records_are_kept_when_the_command_is_ended_and_it_can_resume(folder, clean, tmp_path, ending, jobs):
    path = data(folder, tmp_path)._store.folder.path
    process = start_preparation(folder, tmp_path, "--jobs", str(jobs))
    wait_for_rows(path)
    process.send_signal(ending)  # between two chunks or inside one
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert ("all prepared records are kept" in err) is (ending == signal.SIGINT)
    assert "Traceback" not in err
    deadline = time.monotonic() + 20
    # A killed command closes the pipes of its workers, which then end.
    while workers_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers_of(process.pid) == []
    stored = len(read_rows(path)[0])
    assert 8 <= stored < NUMBER
    assert data(folder, tmp_path).prepare(processes=1) == (path, NUMBER - stored)
    assert samples(data(folder, tmp_path)) == clean


def test_of_two_commands_at_the_same_time_one_prepares_and_the_other_waits(folder, clean, tmp_path):
    path = data(folder, tmp_path)._store.folder.path
    first = start_preparation(folder, tmp_path, "--jobs", "1")
    wait_for_rows(path, least=1)
    second = start_preparation(folder, tmp_path, "--jobs", "1")
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert sorted(map(prepared_count, outputs)) == [0, NUMBER]
    assert len(read_rows(path)[0]) == NUMBER
    assert (path / INDEX).stat().st_size == NUMBER * ROW.itemsize
    assert samples(data(folder, tmp_path)) == clean


SCRIPT = """
from kdkit_ecg import Challenge2020
print(Challenge2020({folder!r}, shares=(1.0, 0.0, 0.0), store={store!r}).prepare(processes=2)[1])
"""


@pytest.mark.slow
def test_a_script_without_main_guard_from_stdin_prepares_in_processes(folder, tmp_path):
    script = SCRIPT.format(folder=str(folder), store=str(tmp_path))
    process = subprocess.run(
        [sys.executable, "-"], input=script, env=environment(), capture_output=True, text=True, timeout=120, check=True
    )
    assert (process.stdout, process.stderr) == (f"{NUMBER}\n", "")


def test_stores_are_listed_and_deleted_by_name(folder, tmp_path, kdkit_here):
    few = tmp_path / "few"
    few.mkdir()
    for file in folder.glob("R00[0-3].*"):
        (few / file.name).symlink_to(file)
    location = ("--store", tmp_path / "stores")
    assert kdkit_here("ecg", "store", *location).out == f"0 in {tmp_path / 'stores'}\n"
    for options in ((), ("--paper",), ("--rate", 100, "--no-band", "--as", "challenge-2021")):
        result = kdkit_here("ecg", "prepare", few, *location, *options)
        assert (result.code, prepared_count(result.out)) == (0, 4), result
        assert result.out.startswith("4 of 4 records read")
    assert prepared_count(kdkit_here("ecg", "prepare", few, *location, "--verify").out) == 0
    listed = kdkit_here("ecg", "store", *location).out
    assert listed.count(f"of {few}") == 3
    assert "4 records, " in listed
    assert "rate 100.0, band None, resampling polyphase, scaling zscore" in listed
    name = data(few, tmp_path / "stores")._store.folder.path.name
    assert "did you mean" in kdkit_here("ecg", "store", *location, "--delete", name[:-1]).err
    assert kdkit_here("ecg", "store", *location, name).code == 2
    assert kdkit_here("ecg", "store", *location, "--delete").code == 2
    assert kdkit_here("ecg", "store", *location, "--delete", name).out == f"deleted {name}\n"
    assert name not in kdkit_here("ecg", "store", *location).out
    assert kdkit_here("ecg", "store", *location, "--delete", "--all").code == 0
    assert {path.name for path in (tmp_path / "stores").glob("*/*")} == {LOCK}
    assert kdkit_here("ecg", "store", *location).out == f"0 in {tmp_path / 'stores'}\n"


def test_a_run_uses_the_records_prepared_for_it(folder, tmp_path, kdkit_here, monkeypatch):
    monkeypatch.setenv("KDKIT_CACHE", str(tmp_path / "cache"))
    assert kdkit_here("ecg", "prepare", folder).code == 0
    assert Challenge2020(folder, fold=1).prepare()[1] == 0
    assert kdkit_here("ecg", "prepare", folder, "--rate", 500, "--band", 1, 40).code == 0
    assert Challenge2020(folder, fold=1, rate=500, band=(1, 40)).prepare()[1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rate", "inf"), "rate must be a finite number above 0; got inf"),
        (("--no-band", "--band", 1, 40), "--band and --no-band exclude each other"),
    ],
)
def test_impossible_options_are_refused_and_create_no_store(folder, tmp_path, kdkit_here, options, message):
    result = kdkit_here("ecg", "prepare", folder, "--store", tmp_path / "stores", *options)
    assert (result.code, message in result.err) == (2, True), result
    assert not (tmp_path / "stores").exists()


RECIPE = """
import time
from pathlib import Path

from torch import nn

import kdkit
from kdkit import Net, Recipe, Stage, Training, Truth
from kdkit_ecg import Challenge2020


@kdkit.hookimpl
def step_ended(event):
    if (event.epoch, event.batch) == (1, 1):
        Path("waiting").touch()
        while not Path("go").exists():
            time.sleep(0.02)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 24)

    def forward(self, signal, person):
        return self.head(signal.mean(2))


def recipe():
    data = Challenge2020("records", length={length}, store="stores", shares=(0.6, 0.2, 0.2))
    student = Net("student", Small())
    stage = Stage({{student: Truth(nn.BCEWithLogitsLoss())}}, Training(epochs=3, batch_size=4))
    return Recipe(data=data, schedule=[stage])
"""


# Records have 1,542 samples: of the first length, whole records are read, and of the second one their windows.
@pytest.mark.parametrize("length", [pytest.param(1000, marks=pytest.mark.slow), 100])
def test_a_store_that_is_truncated_under_a_run_ends_it_with_a_message_and_by_no_signal(folder, tmp_path, length):
    (tmp_path / "records").symlink_to(folder)
    (tmp_path / "mine.py").write_text(RECIPE.format(length=length))
    command = ["-m", "kdkit", "run", "mine.py", "--device", "cpu", "--out", "runs/run"]
    process = ForkedPython(command, tmp_path)
    wait_until((tmp_path / "waiting").exists, process)
    (signals,) = (tmp_path / "stores").glob("*/signals.f32")
    os.truncate(signals, 1000)
    (tmp_path / "go").touch()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert re.search(r"record 'R\d+' in .*signals\.f32 is damaged, .* or the file was truncated", err), err
    assert "Traceback" not in err
