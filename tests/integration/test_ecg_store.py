"""`kdkit ecg prepare` and `kdkit ecg store`: killed, interrupted, twice at once, listed and deleted."""

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
from kdkit_ecg.store.index import INDEX, ROW, read_rows
from tests.helpers.command_line import environment
from tests.helpers.processes import ForkedPython

NUMBER = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 6 s at 500 Hz, enough of them to be interrupted in."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(NUMBER):
        name = f"R{number:03}"
        samples = np.random.default_rng(number).integers(-1000, 1000, (3000, 12)).astype("<i2")
        lines = [f"{name}.dat 16 1000/mV 16 0 {samples[0, at]} 0 0 {lead}" for at, lead in enumerate(LEADS)]
        header = [f"{name} 12 500 3000", *lines, "#Age: 50", "#Sex: Male", "#Dx: 426783006", ""]
        (folder / f"{name}.hea").write_text("\n".join(header))
        (folder / f"{name}.dat").write_bytes(samples.tobytes())
    return folder


def data(folder, where):
    return Challenge2020(folder, shares=(1.0, 0.0, 0.0), store=where)


def samples(of):
    return [signal.tobytes() for signal in of.train.signals]


@pytest.fixture(scope="module")
def clean(folder):
    return samples(data(folder, None))


def begin(folder, where, *more):
    command = ["-m", "kdkit", "ecg", "prepare", str(folder), "--store", str(where), *more]
    return ForkedPython(command, where)


def some_rows(path, least=8):
    """Wait until there are some rows."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if (path / INDEX).is_file() and (path / INDEX).stat().st_size >= least * ROW.itemsize:
            return
        time.sleep(0.005)
    raise AssertionError("nothing was prepared")


def came(said):
    return int(re.search(r"^(\d+) prepared now", said, flags=re.MULTILINE)[1])


def workers_of(session):
    """Return the processes that are still there of those that a command started: they have its session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
        except ProcessLookupError:
            continue
    return found


@pytest.mark.parametrize(("how", "jobs"), [(signal.SIGKILL, 2), (signal.SIGINT, 1)])
def test_what_is_prepared_is_kept_when_the_pass_is_ended_and_it_goes_on(folder, clean, tmp_path, how, jobs):
    path = data(folder, tmp_path)._store.place.path
    process = begin(folder, tmp_path, "--jobs", str(jobs))
    some_rows(path)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert ("what is prepared is kept" in err) is (how == signal.SIGINT)
    assert "Traceback" not in err
    until = time.monotonic() + 20
    while workers_of(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert workers_of(process.pid) == []
    kept = len(read_rows(path)[0])
    assert 8 <= kept < NUMBER
    assert data(folder, tmp_path).prepare(processes=1) == (path, NUMBER - kept)
    assert samples(data(folder, tmp_path)) == clean


def test_of_two_at_once_one_prepares_and_the_other_waits(folder, clean, tmp_path):
    path = data(folder, tmp_path)._store.place.path
    first = begin(folder, tmp_path, "--jobs", "1")
    some_rows(path, least=1)
    second = begin(folder, tmp_path, "--jobs", "1")
    said = [each.communicate(timeout=120) for each in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert sorted(came(out) for out, _ in said) == [0, NUMBER]
    assert len(read_rows(path)[0]) == NUMBER
    assert (path / INDEX).stat().st_size == NUMBER * ROW.itemsize
    assert samples(data(folder, tmp_path)) == clean


SCRIPT = """
from kdkit_ecg import Challenge2020
print(Challenge2020({folder!r}, shares=(1.0, 0.0, 0.0), store={where!r}).prepare(processes=2)[1])
"""


def test_a_script_that_guards_nothing_and_has_no_file_prepares_in_processes(folder, tmp_path):
    script = SCRIPT.format(folder=str(folder), where=str(tmp_path))
    said = subprocess.run(
        [sys.executable, "-"], input=script, env=environment(), capture_output=True, text=True, timeout=120, check=True
    )
    assert (said.stdout, said.stderr) == (f"{NUMBER}\n", "")


def test_stores_are_listed_and_deleted_by_name(folder, tmp_path, kdkit_here):
    few = tmp_path / "few"
    few.mkdir()
    for file in folder.glob("R00[0-3].*"):
        (few / file.name).symlink_to(file)
    where = ("--store", tmp_path / "stores")
    assert kdkit_here("ecg", "store", *where).out == f"0 in {tmp_path / 'stores'}\n"
    for options in ((), ("--paper",), ("--rate", 100, "--no-band", "--as", "challenge-2021")):
        said = kdkit_here("ecg", "prepare", few, *where, *options)
        assert (said.code, came(said.out)) == (0, 4), said
        assert said.out.startswith("4 of 4 records read")
    assert came(kdkit_here("ecg", "prepare", few, *where, "--verify").out) == 0
    listed = kdkit_here("ecg", "store", *where).out
    assert listed.count(f"of {few}") == 3
    assert "4 records, " in listed
    assert "rate 100.0, band None, resampling polyphase, scaling zscore" in listed
    name = data(few, tmp_path / "stores")._store.place.path.name
    assert "did you mean" in kdkit_here("ecg", "store", *where, "--delete", name[:-1]).err
    assert kdkit_here("ecg", "store", *where, name).code == 2
    assert kdkit_here("ecg", "store", *where, "--delete").code == 2
    assert kdkit_here("ecg", "store", *where, "--delete", name).out == f"deleted {name}\n"
    assert name not in kdkit_here("ecg", "store", *where).out
    assert kdkit_here("ecg", "store", *where, "--delete", "--all").code == 0
    assert list((tmp_path / "stores").iterdir()) == []


def test_a_run_finds_what_was_prepared_for_it(folder, tmp_path, kdkit_here, monkeypatch):
    monkeypatch.setenv("KDKIT_CACHE", str(tmp_path / "cache"))
    assert kdkit_here("ecg", "prepare", folder).code == 0
    assert Challenge2020(folder, fold=1).prepare()[1] == 0
    assert kdkit_here("ecg", "prepare", folder, "--rate", 500, "--band", 1, 40).code == 0
    assert Challenge2020(folder, fold=1, rate=500, band=(1, 40)).prepare()[1] == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--rate", "inf"), "rate, length and draws are finite and above 0, not inf"),
        (("--no-band", "--band", 1, 40), "--band and --no-band exclude each other"),
    ],
)
def test_options_that_cannot_be_are_refused_and_leave_no_store(folder, tmp_path, kdkit_here, options, told):
    said = kdkit_here("ecg", "prepare", folder, "--store", tmp_path / "stores", *options)
    assert (said.code, told in said.err) == (2, True), said
    assert not (tmp_path / "stores").exists()
