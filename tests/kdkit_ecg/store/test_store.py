"""A store holds prepared signals, detects damage, and never changes a sample."""

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset

from kdkit import DataError, RecipeError
from kdkit_ecg import Challenge2020
from kdkit_ecg.datasets import base
from kdkit_ecg.records import preparation
from kdkit_ecg.records.preparation import Preparation
from kdkit_ecg.records.wfdb_record import Header
from kdkit_ecg.store import build, store, stores_folder
from kdkit_ecg.store.index import INDEX, LOCK, ROW, SIGNALS, read_rows
from kdkit_ecg.store.location import METADATA, StoreFolder
from tests.helpers.command_line import environment
from tests.helpers.wfdb_files import write_record

RHYTHMS = ("426783006", "164889003", "427084000")
NUMBER = 12


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    for number in range(NUMBER):
        noise = number % 11  # the last record has the signal of the first
        write_record(folder / "a", f"A{number:02}", codes=RHYTHMS[number % 3], noise=noise, time=300 + noise % 2)
    write_record(folder / "b", "B1", noise=50, rate=80)
    write_record(folder / "b", "B2", noise=51)
    (folder / "b" / "B2.dat").write_bytes(b"short")
    (folder / "b" / "B3.hea").write_text("<html>")
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """Twelve records of two lengths, the last with the signal of the first, and three that cannot be used."""
    return shutil.copytree(written, tmp_path / "records")


def data(folder, **options):
    return Challenge2020(folder, length=128, shares=(1.0, 0.0, 0.0), **options)


def signals(dataset):
    return [signal.tobytes() for signal in dataset.train.signals]


def path_of(dataset):
    return dataset._store.folder.path


def record_processes(monkeypatch):
    """Prepare records in this process, and return a list that gets the number of processes that would prepare them."""
    requested = []

    def run_in_this_process(function, chunks, jobs):
        requested.append(jobs)
        return ((chunk, function(chunk)) for chunk in chunks)

    monkeypatch.setattr(build, "run_in_processes", run_in_this_process)
    return requested


def forbid_preparation(monkeypatch):
    def prepare(self, header):
        raise AssertionError(f"{header.name} was prepared again")

    monkeypatch.setattr(Preparation, "prepare", prepare)


def record_preparations(monkeypatch):
    """Return a list to which the name of every prepared record is appended."""
    prepared, original = [], Preparation.prepare

    def prepare(self, header):
        prepared.append(header.name)
        return original(self, header)

    monkeypatch.setattr(Preparation, "prepare", prepare)
    return prepared


@pytest.mark.parametrize("options", [{}, {"scaling": "raw", "band": None}, {"resampling": "linear", "rate": 100}])
def test_samples_summary_and_fingerprint_are_the_same_with_a_store_and_without(folder, options):
    ours, theirs = data(folder, **options), data(folder, store=None, **options)
    assert signals(ours) == signals(theirs)
    our_batch, their_batch = (dataset.train.batch(range(len(dataset.train)), 3) for dataset in (ours, theirs))
    assert our_batch.inputs.signal.equal(their_batch.inputs.signal)
    assert our_batch.ids.equal(their_batch.ids)
    assert (ours.summary, ours.fingerprint) == (theirs.summary, theirs.fingerprint)


def test_a_second_run_reads_no_signal_and_has_the_same_summary(folder, monkeypatch):
    first = data(folder)
    summary, samples = first.summary, signals(first)
    for excluded in (
        "a rate that the band-pass or the resampling cannot handle: b/B1",
        "unreadable signal: b/B2",
        "the signal of another record: a/A11",
    ):
        assert f"1 excluded, {excluded}" in summary
    forbid_preparation(monkeypatch)
    assert data(folder).summary == summary
    assert signals(data(folder)) == samples
    with pytest.raises(DataError, match="strict=True"):
        _ = data(folder, strict=True).train


def test_worker_processes_prepare_the_same_bits(folder):
    single, double = data(folder, store=folder.parent / "single"), data(folder, store=folder.parent / "double")
    single.prepare(processes=1)
    assert double.prepare(processes=2) == (path_of(double), NUMBER + 2)
    assert signals(single) == signals(double)


def test_no_more_processes_are_started_than_there_are_chunks(folder, monkeypatch):
    requested = record_processes(monkeypatch)
    data(folder).prepare(processes=256)
    assert requested == [-(-(NUMBER + 2) // build.CHUNK)]
    write_record(folder / "a", "A12", noise=99)
    assert data(folder).prepare(processes=256)[1] == 1
    assert len(requested) == 1


def test_a_job_with_one_thread_prepares_with_all_cores_of_the_machine(folder, monkeypatch):
    # The other jobs of a study wait for these records, so that their cores are free.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(build, "usable_cores", lambda: 3)
    monkeypatch.setattr(build, "RECORDS_PER_PROCESS", 1)
    requested = record_processes(monkeypatch)
    assert data(folder).train is not None
    assert requested == [3]


def test_only_new_and_changed_records_are_prepared(folder, monkeypatch):
    before = dict(zip(data(folder).train.ids.tolist(), signals(data(folder)), strict=True))
    prepared = record_preparations(monkeypatch)
    write_record(folder / "a", "A12", noise=99)
    write_record(folder / "a", "A03", noise=98)
    os.utime(folder / "a" / "A05.dat", ns=(1, 1))  # same bytes, other time: prepared again to be safe
    after = dict(zip(data(folder).train.ids.tolist(), signals(data(folder)), strict=True))
    assert sorted(prepared) == ["A03", "A05", "A12"]
    assert len(after) == len(before) + 1
    assert sum(after[id] != before[id] for id in before) == 1


def test_another_preparation_is_another_store_and_other_options_share_it(folder):
    names = {
        path_of(data(folder, **options)).name
        for options in ({}, {"rate": 100}, {"band": None}, {"scaling": "raw"}, {"resampling": "linear"})
    }
    assert len(names) == 5
    assert path_of(data(folder, seed=3, draws=2, crop="random")) == path_of(data(folder))
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert path_of(data(link)) == path_of(data(folder))


def test_a_new_version_of_the_preparation_is_another_store(folder, monkeypatch):
    before = path_of(data(folder))
    monkeypatch.setattr("kdkit_ecg.store.location.VERSION", preparation.VERSION + 1)
    assert path_of(data(folder)) != before
    assert base.VERSION == preparation.VERSION


def flip_bit(file, offset):
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 16
    file.write_bytes(raw)


def test_a_damaged_signal_is_an_error_and_prepared_again_by_the_next_run(folder, monkeypatch):
    clean = signals(data(folder))
    path = path_of(data(folder))
    rows = read_rows(path)[0]
    flip_bit(path / SIGNALS, int(rows["offset"][4]) + 777)
    with pytest.raises(
        DataError, match=r"record 'A04' in .*signals\.f32 is damaged, .* checksum .*; .* run the same command again"
    ):
        signals(data(folder))
    prepared = record_preparations(monkeypatch)
    assert signals(data(folder)) == clean
    assert len(prepared) == 1


def test_verify_prepares_damaged_records_again(folder, monkeypatch):
    clean = signals(data(folder))
    rows = read_rows(path_of(data(folder)))[0]
    for row in (1, 6):
        flip_bit(path_of(data(folder)) / SIGNALS, int(rows["offset"][row]))
    prepared = record_preparations(monkeypatch)
    assert data(folder).prepare(verify=True)[1] == len(prepared) == 2
    assert data(folder).prepare(verify=True)[1] == 0
    assert signals(data(folder)) == clean


@pytest.mark.parametrize("size", [0, 1, 100, 20_000])
def test_a_truncated_file_of_signals_is_completed(folder, size):
    clean = signals(data(folder))
    file = path_of(data(folder)) / SIGNALS
    os.truncate(file, size)
    assert signals(data(folder)) == clean  # prepared again
    assert signals(data(folder)) == clean


@pytest.mark.parametrize("size", [0, 5, ROW.itemsize, 3 * ROW.itemsize + 7])
def test_a_truncated_index_is_completed(folder, size):
    clean = signals(data(folder))
    os.truncate(path_of(data(folder)) / INDEX, size)
    assert signals(data(folder)) == clean
    assert read_rows(path_of(data(folder)))[1] == 0


def test_a_flipped_bit_in_the_index_changes_no_sample(folder, monkeypatch):
    clean = signals(data(folder))
    index = path_of(data(folder)) / INDEX
    complete = index.read_bytes()
    generator = np.random.default_rng(0)
    for offset in generator.choice(len(complete), 12, replace=False):
        flip_bit(index, int(offset))
        assert signals(data(folder)) == clean
        index.write_bytes(complete)


@pytest.mark.parametrize("deleted", [INDEX, SIGNALS, METADATA, None])
def test_deleted_files_are_created_again(folder, deleted):
    clean, path = signals(data(folder)), path_of(data(folder))
    if deleted is None:  # the whole folder
        shutil.rmtree(path)
    else:
        (path / deleted).unlink()
    assert signals(data(folder)) == clean
    assert read_rows(path)[1] == 0
    data(folder).prepare(verify=True)
    assert (path / METADATA).is_file()


def test_a_transient_fault_is_not_stored(folder, monkeypatch):
    original = Header.read

    def read(header):
        if header.name == "A07":
            raise DataError("cannot be read") from PermissionError("busy")
        return original(header)

    monkeypatch.setattr(Header, "read", read)
    assert "2 excluded, unreadable signal: a/A07, b/B2" in data(folder).summary
    monkeypatch.setattr(Header, "read", original)
    assert "1 excluded, unreadable signal: b/B2" in data(folder).summary


def test_a_full_disk_is_an_error_before_any_record_is_prepared(folder, monkeypatch):
    monkeypatch.setattr(store, "free_space", lambda path: 50_000)  # bytes, about half of what is needed
    prepared = record_preparations(monkeypatch)
    with pytest.raises(
        DataError, match=r"14 prepared records need 9[\d.]+ kB, but .* has 50 kB free; free some space .*store=None"
    ):
        _ = data(folder).train
    assert not prepared
    assert len(data(folder, store=None).train) == NUMBER - 1


def test_headers_with_impossible_lengths_or_rates_need_no_disk_space(folder):
    for name, old, new in (("A04", " 500 300\n", " 500 999999999999\n"), ("B1", " 80 300\n", " 0.0001 300\n")):
        path = next(folder.rglob(f"{name}.hea"))
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
    assert "unreadable signal: a/A04, b/B2" in data(folder).summary
    assert "a rate that the band-pass or the resampling cannot handle: b/B1" in data(folder).summary


@pytest.mark.parametrize("band", [(0.5, 47.0), None])
@pytest.mark.parametrize("resampling", ["polyphase", "linear"])
def test_no_rate_in_a_header_interrupts_the_preparation(folder, band, resampling):
    for number, rate in enumerate(("5000000000", ".00000000000000000001", "9" * 400)):
        write_record(folder / "a", f"X{number}", noise=60 + number)
        path = folder / "a" / f"X{number}.hea"
        path.write_text(path.read_text().replace(" 500 ", f" {rate} ", 1))
    options = {"band": band, "resampling": resampling}
    summary = data(folder, **options).summary
    low = ["b/B1"] if band else []
    faults = ", ".join([*low, "a/X0", "a/X1"])
    assert f"{len(low) + 2} excluded, a rate that the band-pass or the resampling cannot handle: {faults}" in summary
    assert "1 excluded, unreadable signal: b/B2" in summary
    assert "2 excluded, unreadable header: a/X2, b/B3" in summary  # a number of 400 digits is infinite
    assert data(folder, **options).summary == summary == data(folder, store=None, **options).summary


WRITER = """
import sys, time
from pathlib import Path
from kdkit.utils.locks import FileLock
folder = Path(sys.argv[1])
while not (folder.parent / "end").exists():
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        (folder / "new").write_text("")
        time.sleep(0.002)
        assert (folder / "new").exists() and (folder / ".lock").exists(), "deleted by another process"
        (folder.parent / "started").touch()
    time.sleep(0.001)
"""


def test_a_process_that_starts_to_write_while_a_store_is_deleted_loses_nothing(tmp_path):
    store_folder = StoreFolder(path=tmp_path / "stores" / "a", sources=(), preparation={})
    with subprocess.Popen([sys.executable, "-c", WRITER, store_folder.path], env=environment()) as writer:
        while not (tmp_path / "stores" / "started").exists() and writer.poll() is None:
            time.sleep(0.005)
        deleted, end = 0, time.monotonic() + 0.5
        while time.monotonic() < end and writer.poll() is None:
            with suppress(DataError):  # while the other process writes
                store_folder.delete()
                deleted += 1
        (tmp_path / "stores" / "end").touch()
    assert (writer.returncode, deleted > 0) == (0, True)


def test_nothing_of_a_store_is_deleted_if_a_run_keeps_its_signals_open_on_windows(tmp_path, monkeypatch):
    for name in (INDEX, METADATA, SIGNALS, "another"):
        (tmp_path / name).touch()
    unlink = Path.unlink

    def refuse_signals(self, **options):
        if self.name == SIGNALS:
            raise PermissionError("it is used by a process")
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", refuse_signals)
    with pytest.raises(DataError, match="cannot be deleted: it is used by a process"):
        StoreFolder(path=tmp_path, sources=(), preparation={}).delete()
    assert {INDEX, METADATA, SIGNALS, "another"} <= {path.name for path in tmp_path.iterdir()}


def test_a_file_system_without_locks_is_an_error(folder, monkeypatch):
    def acquire(self, **options):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(DataError, match=r"its file system has no locks, .* \(flock\); choose another folder"):
        _ = data(folder).train


def test_records_prepared_before_the_disk_is_full_are_kept(folder, monkeypatch):
    original, rows = build.make_row, []

    def make_row(*args):
        if len(rows) == 6:
            raise OSError(28, "No space left on device")
        rows.append(original(*args))
        return rows[-1]

    monkeypatch.setattr(build, "make_row", make_row)
    with pytest.raises(DataError, match=r"cannot be stored in .*: No space left on device; choose another folder"):
        _ = data(folder).train
    monkeypatch.setattr(build, "make_row", original)
    prepared = record_preparations(monkeypatch)
    assert signals(data(folder)) == signals(data(folder, store=None))
    # store=None prepares all records; the store prepared some of them before the disk was full.
    assert 0 < len(prepared) - (NUMBER + 2) < NUMBER + 2


def test_a_folder_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be stored in .*file/records-.*KDKIT_CACHE or store=, or"):
        _ = data(folder, store=tmp_path / "file").train


def test_a_complete_store_is_read_while_another_process_writes(folder):
    clean = signals(data(folder))
    with FileLock(path_of(data(folder)) / LOCK):  # would block a run that takes the lock
        assert signals(data(folder)) == clean


def test_a_complete_store_is_not_written(folder):
    clean, path = signals(data(folder)), path_of(data(folder))
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    assert signals(data(folder)) == clean
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


def test_a_pickled_split_opens_the_file_and_contains_no_signal(folder):
    split = data(folder).train
    copied = pickle.dumps(split.signals)
    assert len(copied) < 0.1 * sum(signal.nbytes for signal in split.signals)
    assert [signal.tobytes() for signal in pickle.loads(copied)] == signals(data(folder))
    assert [signal.tobytes() for signal in split.signals[2:4]] == signals(data(folder))[2:4]


class SampleBytes(Dataset):
    """The samples of a split in draw 2, as bytes."""

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return len(self.split)

    def __getitem__(self, row):
        return self.split.batch([row], 2).inputs.signal.numpy().tobytes()


def test_worker_processes_give_the_same_samples_and_share_the_verified_records(folder):
    split = data(folder).train
    loader = DataLoader(SampleBytes(split), batch_size=None, num_workers=1, multiprocessing_context="fork")
    theirs = list(loader)
    assert split.signals.file._verified[split.signals.rows].all()
    assert theirs == [SampleBytes(split)[row] for row in range(len(split))]
    assert multiprocessing.active_children() == []


def test_signals_of_a_store_are_read_only(folder):
    with pytest.raises(ValueError, match="read-only"):
        data(folder).train.signals[0][:] = 0


def test_without_a_store_prepare_is_an_error(folder):
    with pytest.raises(RecipeError, match="with store=None, prepared records cannot be stored"):
        data(folder, store=None).prepare()
    with pytest.raises(RecipeError, match=r"store must be a folder, 'auto' .* got True"):
        data(folder, store=True)


def test_records_in_a_folder_with_the_longest_name_have_a_store(tmp_path):
    write_record(tmp_path / ("b" * 255), "A1")
    path, prepared = data(tmp_path / ("b" * 255)).prepare()
    assert (path.name[:60], prepared) == ("b" * 60, 1)


def test_the_folder_of_the_stores_depends_on_the_environment(monkeypatch, tmp_path):
    assert str(stores_folder()).startswith(os.environ["KDKIT_CACHE"])
    monkeypatch.delenv("KDKIT_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stores_folder() == tmp_path / "kdkit" / "signals"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("KDKIT_CACHE", "~/large")
    assert str(stores_folder()) == "/home/someone/large/signals"
    monkeypatch.delenv("KDKIT_CACHE")
    assert str(stores_folder()) == "/home/someone/.cache/kdkit/signals"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without a home folder
    with pytest.raises(DataError, match="choose another folder with KDKIT_CACHE"):
        stores_folder()
