"""No byte of a store that changed is used: not at the first access to a record, and not at a later one."""

import contextlib
import os
import pickle

import numpy as np
import pytest
import torch

from kdkit import DataError
from kdkit_ecg import Challenge2020
from kdkit_ecg.datasets.signal_split import SignalSplit
from kdkit_ecg.store import SignalFile, StoredSignals
from kdkit_ecg.store.index import INDEX, LOCK, ROW, SIGNALS, make_row, read_rows
from tests.helpers.wfdb_files import write_record

resource = pytest.importorskip("resource", reason="Windows cannot limit the size of a file")
TIMES = (155, 2570, 40_000, 1, 9001)  # samples of a lead; the third is read by windows


@pytest.fixture
def signals():
    generator = np.random.default_rng(0)
    return [generator.standard_normal((12, time)).astype(np.float32) for time in TIMES]


@pytest.fixture
def stored(signals, tmp_path):
    """Return a function that opens these signals in a store."""
    with (tmp_path / SIGNALS).open("wb") as file, (tmp_path / INDEX).open("wb") as index:
        for number, signal in enumerate(signals):
            offset = file.tell() + -file.tell() % 64
            file.write(bytes(offset - file.tell()) + signal.tobytes())
            index.write(make_row(number.to_bytes(16, "big"), b"", offset, signal, ""))
    return lambda: StoredSignals(SignalFile(tmp_path, read_rows(tmp_path)[0], [f"A{number}" for number in range(5)]))


def flip_bit(file, offset, bit=0):
    with file.open("r+b") as opened:
        opened.seek(offset)
        (byte,) = opened.read(1)
        opened.seek(offset)
        opened.write(bytes([byte ^ 1 << bit]))


def split_of(signals, length):
    count = len(signals)
    rows = {"person": torch.zeros(count, 5), "labels": torch.zeros(count, 3), "ids": torch.arange(count)}
    return SignalSplit(signals=signals, length=length, rate=257, window="random", **rows)


@pytest.mark.parametrize("length", [1, 100, 700, 4096])
def test_windows_have_the_samples_of_signals_in_memory(length, signals, stored):
    ours, theirs = split_of(stored(), length), split_of(signals, length)
    for draw in range(4):  # the first one reads whole records
        rows = torch.randperm(len(signals))
        assert torch.equal(ours.batch(rows, draw).inputs.signal, theirs.batch(rows, draw).inputs.signal)


def test_the_shape_of_a_signal_is_known_without_reading_it(signals, stored, tmp_path):
    opened = stored()
    os.truncate(tmp_path / SIGNALS, 0)
    assert [opened.shape(record) for record in range(5)] == [signal.shape for signal in signals]


@pytest.mark.parametrize("record", [0, 1, 2, 4])
@pytest.mark.parametrize("read_before", [False, True])
def test_a_record_that_changes_is_an_error_that_names_it(record, read_before, signals, stored, tmp_path):
    opened = stored()
    if read_before:
        assert all(np.array_equal(*pair) for pair in zip(opened, signals, strict=True))
    offset = int(read_rows(tmp_path)[0]["offset"][record])
    flip_bit(tmp_path / SIGNALS, offset + signals[record].nbytes // 2, bit=5)
    with pytest.raises(DataError, match=rf"record 'A{record}' in .*signals\.f32 is damaged, .* prepare it again"):
        opened[record]
    assert record.to_bytes(16, "big") not in [bytes(key) for key in read_rows(tmp_path)[0]["key"]]
    assert all(np.array_equal(opened[other], signals[other]) for other in range(5) if other != record)


def test_a_changed_block_of_a_long_record_is_an_error_in_the_windows_that_contain_it(signals, stored, tmp_path):
    opened = stored()
    assert np.array_equal(opened[2], signals[2])
    changed = 3 * TIMES[2] + 20_000  # lead 3, sample 20,000
    flip_bit(tmp_path / SIGNALS, int(opened.file.rows["offset"][2]) + 4 * changed)
    assert np.array_equal(opened.window(2, 100, 900), signals[2][:, 100:900])
    with pytest.raises(DataError, match="record 'A2'"):
        opened.window(2, 19_500, 20_500)


def test_no_flipped_bit_changes_a_sample(signals, stored, tmp_path):
    generator = np.random.default_rng(1)
    opened = stored()  # of which some records were read before
    content, index = (tmp_path / SIGNALS).read_bytes(), (tmp_path / INDEX).read_bytes()
    detected = 0
    for _ in range(100):
        flip_bit(tmp_path / SIGNALS, int(generator.integers(len(content))), int(generator.integers(8)))
        for reader in (opened, stored()):
            for record, expected in enumerate(signals):
                try:
                    assert np.array_equal(reader[record], expected)
                    assert np.array_equal(reader.window(record, 0, 1), expected[:, :1])
                except DataError:
                    detected += 1
        (tmp_path / SIGNALS).write_bytes(content)
        (tmp_path / INDEX).write_bytes(index)
    assert detected > 190  # of 200; the others were in the padding between records


@pytest.mark.parametrize("record", [1, 2])
def test_a_file_that_is_truncated_after_it_was_read_is_an_error_and_no_signal(record, signals, stored, tmp_path):
    opened = stored()
    assert np.array_equal(opened[record], signals[record])
    os.truncate(tmp_path / SIGNALS, 100)
    with pytest.raises(DataError, match=rf"record 'A{record}' in .* or the file was truncated"):
        opened.window(record, 0, 100)
    with pytest.raises(DataError, match=rf"record 'A{record}' in .* or the file was truncated"):
        opened[record]


def test_a_locked_store_keeps_its_damaged_record_and_the_error_gives_other_advice(stored, tmp_path):
    opened = stored()
    (tmp_path / LOCK).mkdir()
    flip_bit(tmp_path / SIGNALS, 0)
    with pytest.raises(
        DataError, match="delete that folder, so that its records are prepared again, or use store=None"
    ):
        opened[0]


def test_a_record_without_a_signal_is_intact(tmp_path):
    (tmp_path / INDEX).write_bytes(make_row(bytes(15) + b"a", b"", 0, None, "rate"))
    file = SignalFile(tmp_path, read_rows(tmp_path)[0])
    assert file.is_intact(0)
    assert file.signal(0).shape == (0, 0)


def test_a_pickled_file_keeps_the_names(stored, tmp_path):
    opened = pickle.loads(pickle.dumps(stored()))
    flip_bit(tmp_path / SIGNALS, 0)
    with pytest.raises(DataError, match="record 'A0'"):
        opened[0]


def test_an_opened_file_is_closed_with_the_last_reference_to_it(stored):
    opened = stored()
    descriptor = opened.file._descriptor
    del opened
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.fixture
def records(tmp_path):
    for number in range(12):
        write_record(tmp_path / "records", f"A{number:02}", noise=number, time=3000)
    return tmp_path / "records"


def data(records, store):
    return Challenge2020(records, shares=(1.0, 0.0, 0.0), store=store)


@contextlib.contextmanager
def largest_file(size):
    """Let this process write files of up to `size` bytes, as if the disk was full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# The whole of a store is 900 kB. The first limit is met in the first chunk, and the second in a later one.
@pytest.mark.parametrize("limit", [pytest.param(100_000, marks=pytest.mark.slow), 500_000])
def test_a_disk_that_fills_during_the_preparation_ends_it_with_a_message_and_a_store_that_can_be_used(
    limit, records, tmp_path, kdkit_here
):
    with largest_file(limit):
        done = kdkit_here("ecg", "prepare", records, "--store", tmp_path / "stores", "--jobs", "1")
    assert done.code == 2, done
    assert "prepared records cannot be stored in " in done.err
    assert "File too large" in done.err
    assert "Traceback" not in done.err
    (folder,) = (tmp_path / "stores").iterdir()
    rows, invalid = read_rows(folder)
    assert invalid == 0
    assert len(rows) == (0 if limit == 100_000 else 4)  # whole chunks
    size = int((rows["offset"] + 48 * rows["time"].astype(np.uint64)).max(initial=0))
    assert (folder / SIGNALS).stat().st_size == size
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]
    assert data(records, tmp_path / "stores").prepare()[1] == 12 - len(rows)
    ours, theirs = (data(records, store).train.signals for store in (tmp_path / "stores", None))
    assert all(np.array_equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_a_disk_without_room_for_the_description_of_a_store_leaves_no_unfinished_file(records, tmp_path):
    # Not by the command, which finds out before the work that nothing can be written.
    unprepared = data(records, tmp_path / "stores")
    with largest_file(10), pytest.raises(DataError, match="File too large"):
        unprepared.prepare()
    (folder,) = (tmp_path / "stores").iterdir()
    assert [path.name for path in folder.iterdir() if path.name != LOCK] == []


def test_unfinished_files_of_a_killed_process_are_removed_by_the_next_preparation(records, tmp_path):
    folder = data(records, tmp_path / "stores")._store.folder.path
    folder.mkdir(parents=True)
    for name in (".index.bin.abcd_123.tmp", ".store.json.01234567.tmp"):
        (folder / name).write_bytes(b"unfinished")
    (folder / INDEX).write_bytes(b"half of a row")
    assert data(records, tmp_path / "stores").prepare()[1] == 12
    assert sorted(path.name for path in folder.iterdir()) == [LOCK, INDEX, SIGNALS, "store.json"]
    assert (folder / INDEX).stat().st_size == 12 * ROW.itemsize


@pytest.mark.parametrize("name", [LOCK, INDEX, SIGNALS])
def test_a_folder_in_the_place_of_a_file_is_an_error_with_exit_code_2(name, records, tmp_path, kdkit_here):
    folder = data(records, tmp_path / "stores")._store.folder.path
    (folder / name).mkdir(parents=True)
    done = kdkit_here("ecg", "prepare", records, "--store", tmp_path / "stores")
    assert done.code == 2, done
    assert f"prepared records cannot be stored in {folder}: Is a directory; choose another folder" in done.err
