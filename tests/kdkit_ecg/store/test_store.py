"""A store holds what was prepared, finds what is damaged, and changes no sample."""

import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pytest
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset

from kdkit import DataError, RecipeError
from kdkit_ecg import Challenge2020
from kdkit_ecg.datasets import base
from kdkit_ecg.records import preparation
from kdkit_ecg.records.preparation import Preparation
from kdkit_ecg.store import build, store, stores_folder
from kdkit_ecg.store.index import INDEX, LOCK, ROW, SIGNALS, read_rows
from kdkit_ecg.store.location import ABOUT
from tests.helpers.wfdb_files import write_record

RHYTHMS = ("426783006", "164889003", "427084000")
NUMBER = 12


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    for number in range(NUMBER):
        noise = number % 11
        write_record(folder / "a", f"A{number:02}", codes=RHYTHMS[number % 3], noise=noise, time=300 + noise % 2)
    write_record(folder / "b", "B1", noise=50, rate=80)
    write_record(folder / "b", "B2", noise=51)
    (folder / "b" / "B2.dat").write_bytes(b"short")
    (folder / "b" / "B3.hea").write_text("<html>")
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """Twelve records of two lengths, the last of them the signal of the first, and three bad ones."""
    return shutil.copytree(written, tmp_path / "records")


def data(folder, **options):
    return Challenge2020(folder, length=128, shares=(1.0, 0.0, 0.0), **options)


def signals(of):
    return [signal.tobytes() for signal in of.train.signals]


def path_of(of):
    return of._store.place.path


def never(monkeypatch):
    def prepare(self, header):
        raise AssertionError(f"{header.name} was prepared again")

    monkeypatch.setattr(Preparation, "prepare", prepare)


def counted(monkeypatch):
    prepared, really = [], Preparation.prepare

    def prepare(self, header):
        prepared.append(header.name)
        return really(self, header)

    monkeypatch.setattr(Preparation, "prepare", prepare)
    return prepared


@pytest.mark.parametrize("options", [{}, {"scaling": "raw", "band": None}, {"resampling": "linear", "rate": 100}])
def test_samples_summary_and_fingerprint_are_the_same_with_a_store_and_without(folder, options):
    ours, theirs = data(folder, **options), data(folder, store=None, **options)
    assert signals(ours) == signals(theirs)
    one, other = (each.train.batch(range(len(each.train)), 3) for each in (ours, theirs))
    assert one.inputs.signal.equal(other.inputs.signal)
    assert one.ids.equal(other.ids)
    assert (ours.summary, ours.fingerprint) == (theirs.summary, theirs.fingerprint)


def test_a_second_run_reads_no_signal_and_says_the_same_of_bad_records(folder, monkeypatch):
    first = data(folder)
    told, samples = first.summary, signals(first)
    for bad in (
        "a rate that the band-pass or the resampling cannot take: b/B1",
        "unreadable signal: b/B2",
        "the signal of another record: a/A11",
    ):
        assert f"1 left out, {bad}" in told
    never(monkeypatch)
    assert data(folder).summary == told
    assert signals(data(folder)) == samples
    with pytest.raises(DataError, match="strict=True"):
        _ = data(folder, strict=True).train


def test_processes_prepare_the_same_bits(folder):
    one, two = data(folder, store=folder.parent / "one"), data(folder, store=folder.parent / "two")
    one.prepare(processes=1)
    assert two.prepare(processes=2) == (path_of(two), NUMBER + 2)
    assert signals(one) == signals(two)


def test_no_more_processes_are_started_than_have_something_to_do(folder, monkeypatch):
    asked = []

    def in_processes(work, chunks, jobs):
        asked.append(jobs)
        return ((chunk, work(chunk)) for chunk in chunks)

    monkeypatch.setattr(build, "in_processes", in_processes)
    data(folder).prepare(processes=256)
    assert asked == [-(-(NUMBER + 2) // build.CHUNK)]
    write_record(folder / "a", "A12", noise=99)
    assert data(folder).prepare(processes=256)[1] == 1
    assert len(asked) == 1


def test_only_what_is_new_or_changed_is_prepared(folder, monkeypatch):
    before = dict(zip(data(folder).train.ids.tolist(), signals(data(folder)), strict=True))
    prepared = counted(monkeypatch)
    write_record(folder / "a", "A12", noise=99)
    write_record(folder / "a", "A03", noise=98)
    os.utime(folder / "a" / "A05.dat", ns=(1, 1))
    after = dict(zip(data(folder).train.ids.tolist(), signals(data(folder)), strict=True))
    assert sorted(prepared) == ["A03", "A05", "A12"]
    assert len(after) == len(before) + 1
    assert sum(after[id] != before[id] for id in before) == 1


def test_another_way_to_prepare_is_another_store_and_another_view_of_the_same_is_not(folder):
    places = {
        path_of(data(folder, **options)).name
        for options in ({}, {"rate": 100}, {"band": None}, {"scaling": "raw"}, {"resampling": "linear"})
    }
    assert len(places) == 5
    assert path_of(data(folder, seed=3, draws=2, crop="random")) == path_of(data(folder))
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert path_of(data(link)) == path_of(data(folder))


def test_a_new_version_of_the_preparation_is_another_store(folder, monkeypatch):
    before = path_of(data(folder))
    monkeypatch.setattr("kdkit_ecg.store.location.VERSION", preparation.VERSION + 1)
    assert path_of(data(folder)) != before
    assert base.VERSION == preparation.VERSION


def flip(file, place):
    raw = bytearray(file.read_bytes())
    raw[place] ^= 16
    file.write_bytes(raw)


def test_a_damaged_signal_is_said_and_made_anew_the_next_time(folder, monkeypatch):
    clean = signals(data(folder))
    place = path_of(data(folder))
    rows = read_rows(place)[0]
    flip(place / SIGNALS, int(rows["offset"][4]) + 777)
    with pytest.raises(DataError, match=r"damaged, its bytes are not those .* run the same again"):
        signals(data(folder))
    prepared = counted(monkeypatch)
    assert signals(data(folder)) == clean
    assert len(prepared) == 1


def test_verify_makes_anew_whatever_is_damaged(folder, monkeypatch):
    clean = signals(data(folder))
    rows = read_rows(path_of(data(folder)))[0]
    for row in (1, 6):
        flip(path_of(data(folder)) / SIGNALS, int(rows["offset"][row]))
    prepared = counted(monkeypatch)
    assert data(folder).prepare(verify=True)[1] == len(prepared) == 2
    assert data(folder).prepare(verify=True)[1] == 0
    assert signals(data(folder)) == clean


@pytest.mark.parametrize("kept", [0, 1, 100, 20_000])
def test_a_file_of_signals_that_was_cut_is_filled_again(folder, kept):
    clean = signals(data(folder))
    file = path_of(data(folder)) / SIGNALS
    os.truncate(file, kept)
    assert signals(data(folder)) == clean
    assert signals(data(folder)) == clean


@pytest.mark.parametrize("kept", [0, 5, ROW.itemsize, 3 * ROW.itemsize + 7])
def test_an_index_that_was_cut_is_filled_again(folder, kept):
    clean = signals(data(folder))
    os.truncate(path_of(data(folder)) / INDEX, kept)
    assert signals(data(folder)) == clean
    assert read_rows(path_of(data(folder)))[1] == 0


def test_no_flipped_bit_of_the_index_is_believed(folder, monkeypatch):
    clean = signals(data(folder))
    index = path_of(data(folder)) / INDEX
    whole = index.read_bytes()
    dice = np.random.default_rng(0)
    for place in dice.choice(len(whole), 12, replace=False):
        flip(index, int(place))
        assert signals(data(folder)) == clean
        index.write_bytes(whole)


@pytest.mark.parametrize("lost", [INDEX, SIGNALS, ABOUT, None])
def test_files_that_are_gone_are_made_anew(folder, lost):
    clean, place = signals(data(folder)), path_of(data(folder))
    if lost is None:
        shutil.rmtree(place)
    else:
        (place / lost).unlink()
    assert signals(data(folder)) == clean
    assert read_rows(place)[1] == 0
    data(folder).prepare(verify=True)
    assert (place / ABOUT).is_file()


def test_a_fault_that_may_pass_is_not_kept(folder, monkeypatch):
    really = preparation.read_record

    def busy(header):
        try:
            raise PermissionError("busy")
        except PermissionError as error:
            raise DataError("cannot be read") from error

    monkeypatch.setattr(
        preparation, "read_record", lambda header: busy(header) if header.name == "A07" else really(header)
    )
    assert "2 left out, unreadable signal: a/A07, b/B2" in data(folder).summary
    monkeypatch.setattr(preparation, "read_record", really)
    assert "1 left out, unreadable signal: b/B2" in data(folder).summary


def test_a_disk_without_room_is_said_before_anything_is_prepared(folder, monkeypatch):
    monkeypatch.setattr(store, "free_space", lambda path: 50_000)
    prepared = counted(monkeypatch)
    with pytest.raises(
        DataError, match=r"14 prepared records need 9\d kB, but .* has 50 kB free; make room .*store=None"
    ):
        _ = data(folder).train
    assert not prepared
    assert len(data(folder, store=None).train) == NUMBER - 1


def test_a_header_that_promises_too_much_or_has_no_room_for_the_band_is_no_reason_to_ask_for_room(folder):
    for name, old, new in (("A04", " 500 300\n", " 500 999999999999\n"), ("B1", " 80 300\n", " 0.0001 300\n")):
        path = next(folder.rglob(f"{name}.hea"))
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
    assert "unreadable signal: a/A04, b/B2" in data(folder).summary
    assert "a rate that the band-pass or the resampling cannot take: b/B1" in data(folder).summary


@pytest.mark.parametrize("band", [(0.5, 47.0), None])
@pytest.mark.parametrize("resampling", ["polyphase", "linear"])
def test_no_rate_of_a_header_ends_the_pass(folder, band, resampling):
    for number, rate in enumerate(("5000000000", ".00000000000000000001", "9" * 400)):
        write_record(folder / "a", f"X{number}", noise=60 + number)
        path = folder / "a" / f"X{number}.hea"
        path.write_text(path.read_text().replace(" 500 ", f" {rate} ", 1))
    options = {"band": band, "resampling": resampling}
    told = data(folder, **options).summary
    low = ["b/B1"] if band else []
    faults = ", ".join([*low, "a/X0", "a/X1"])
    assert f"{len(low) + 2} left out, a rate that the band-pass or the resampling cannot take: {faults}" in told
    assert "2 left out, unreadable signal: b/B2, a/X2" in told  # wfdb takes no number of 400 digits
    assert data(folder, **options).summary == told == data(folder, store=None, **options).summary


def test_a_file_system_without_locks_is_said(folder, monkeypatch):
    def acquire(self, **options):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(DataError, match="does not appear to support flock; name another folder"):
        _ = data(folder).train


def test_a_disk_that_fills_up_keeps_what_is_prepared(folder, monkeypatch):
    really, rows = build._append, []

    def append(*args):
        if len(rows) == 6:
            raise OSError(28, "No space left on device")
        rows.append(really(*args))
        return rows[-1]

    monkeypatch.setattr(build, "_append", append)
    with pytest.raises(DataError, match=r"cannot be kept in .*: No space left on device; name another folder"):
        _ = data(folder).train
    monkeypatch.setattr(build, "_append", really)
    prepared = counted(monkeypatch)
    assert signals(data(folder)) == signals(data(folder, store=None))
    assert 0 < len(prepared) - (NUMBER + 2) < NUMBER + 2


def test_a_folder_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be kept in .*file/records-.*KDKIT_CACHE or store=, or"):
        _ = data(folder, store=tmp_path / "file").train


def test_a_store_that_is_complete_is_read_while_another_process_writes(folder):
    clean = signals(data(folder))
    with FileLock(path_of(data(folder)) / LOCK):
        assert signals(data(folder)) == clean


def test_a_store_that_is_complete_may_be_read_only(folder):
    clean, place = signals(data(folder)), path_of(data(folder))
    before = {file.name: file.stat().st_mtime_ns for file in place.iterdir()}
    assert signals(data(folder)) == clean
    assert {file.name: file.stat().st_mtime_ns for file in place.iterdir()} == before


def test_a_copy_by_pickle_maps_the_file_and_holds_no_signal(folder):
    split = data(folder).train
    copied = pickle.dumps(split.signals)
    assert len(copied) < 0.1 * sum(signal.nbytes for signal in split.signals)
    assert [signal.tobytes() for signal in pickle.loads(copied)] == signals(data(folder))
    assert [signal.tobytes() for signal in split.signals[2:4]] == signals(data(folder))[2:4]


class Rows(Dataset):
    def __init__(self, split):
        self.split = split

    def __len__(self):
        return len(self.split)

    def __getitem__(self, row):
        return self.split.batch([row], 2).inputs.signal.numpy().tobytes()


def test_worker_processes_show_the_same_and_look_at_each_record_once(folder):
    split = data(folder).train
    loader = DataLoader(Rows(split), batch_size=None, num_workers=1, multiprocessing_context="fork")
    theirs = list(loader)
    assert split.signals.mapped._sound[split.signals.places].all()
    assert theirs == [Rows(split)[row] for row in range(len(split))]
    assert multiprocessing.active_children() == []


def test_signals_of_a_store_cannot_be_written(folder):
    with pytest.raises(ValueError, match="read-only"):
        data(folder).train.signals[0][:] = 0


def test_without_a_store_there_is_nothing_to_prepare_ahead(folder):
    with pytest.raises(RecipeError, match="store=None there is nowhere"):
        data(folder, store=None).prepare()
    with pytest.raises(RecipeError, match=r"store is a folder, 'auto' .* not True"):
        data(folder, store=True)


def test_stores_are_where_the_environment_says(monkeypatch, tmp_path):
    assert str(stores_folder()).startswith(os.environ["KDKIT_CACHE"])
    monkeypatch.delenv("KDKIT_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stores_folder() == tmp_path / "kdkit" / "signals"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(stores_folder()) == "/home/someone/.cache/kdkit/signals"
