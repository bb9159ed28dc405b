"""Damaged, truncated and impossible cached outputs are misses: no value is read that was not written."""

import os

import numpy as np
import pytest
import torch

from kdkit.teachers.cache import CacheFolder, EntrySpec, Key, Part, row_files
from kdkit.teachers.cache.folder import UnusableFolderError
from kdkit.teachers.cache.key import FORMAT
from kdkit.teachers.cache.store import CHECKSUMS

ROWS, DRAWS = 16, 2
PARTS = (Part("output", (3,), torch.float32), Part("feature-0", (2, 4), torch.float16))


@pytest.fixture(params=["held in memory", "read by row"])
def reading(request, monkeypatch):
    """How rows are read: a draw at once, as of a small entry, or each by itself, as of a large one."""
    if request.param == "read by row":
        monkeypatch.setattr(row_files, "_MEMORY_BYTES", 0)
    return request.param


def make_spec(parts=PARTS):
    facts = {"format": FORMAT, "view": {"key": "inputs"}, "data": {"fingerprint": "abc"}}
    ids = torch.arange(ROWS)
    return EntrySpec(net="teacher", key=Key(facts), parts=parts, ids=ids, draws=DRAWS, new_rows=DRAWS * ROWS)


def open_store(tmp_path, parts=PARTS):
    return CacheFolder(tmp_path / "teacher_cache").open(make_spec(parts))


def values(draw, parts=PARTS):
    generator = torch.Generator().manual_seed(draw)
    return [torch.randn(ROWS, *part.shape, generator=generator).to(part.dtype) for part in parts]


@pytest.fixture
def entry(tmp_path):
    """The folder of an entry with an output for every row."""
    opened = open_store(tmp_path)
    for draw in range(DRAWS):
        opened.write(draw, torch.arange(ROWS), values(draw))
    opened.close()
    return opened.path


def read(opened, draw, rows=None):
    """Return which rows hit, after a check that their values are those that were written."""
    rows = torch.arange(ROWS) if rows is None else rows
    cached = opened.read(rows, draw)
    hits = torch.ones(len(rows), dtype=torch.bool) if cached.hits is None else cached.hits
    if hits.any():
        for part, written in zip(cached.parts, values(draw), strict=True):
            assert torch.equal(part[hits], written[rows][hits])
    return hits


def flip_bit(file, offset, bit=0):
    content = bytearray(file.read_bytes())
    content[offset] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.parametrize("part", PARTS, ids=[part.name for part in PARTS])
def test_a_flipped_bit_in_an_output_is_a_miss_and_its_row_is_written_again(part, reading, entry, tmp_path):
    row = 5
    flip_bit(entry / part.name, (ROWS + row) * part.bytes + 2, bit=6)  # in draw 1
    opened = open_store(tmp_path)
    assert read(opened, 0).all()
    hits = read(opened, 1)
    assert hits.logical_not().nonzero().tolist() == [[row]]
    assert opened.damaged == 1
    assert opened.read(torch.arange(ROWS), 1).damaged
    opened.write(1, torch.tensor([row]), [part[row : row + 1] for part in values(1)])
    assert read(opened, 1).all()
    opened.close()
    opened = open_store(tmp_path)
    assert read(opened, 1).all()
    assert opened.damaged == 0
    opened.close()


def test_a_damaged_row_that_is_not_written_again_has_no_checksum_afterwards(reading, entry, tmp_path):
    flip_bit(entry / "output", 3)
    opened = open_store(tmp_path)
    read(opened, 0)
    opened.close()
    assert np.count_nonzero(np.fromfile(entry / CHECKSUMS, "<u4") == 0) == 1


@pytest.mark.parametrize("value", [1, 2**31])
def test_a_checksum_that_appears_or_changes_is_a_miss(value, reading, entry, tmp_path):
    checksums = np.fromfile(entry / CHECKSUMS, "<u4")
    checksums[3] ^= np.uint32(value)
    checksums[7] = 0  # as if it had not been written
    checksums.tofile(entry / CHECKSUMS)
    opened = open_store(tmp_path)
    assert read(opened, 0).logical_not().nonzero().flatten().tolist() == [3, 7]
    assert opened.damaged == 1
    opened.close()


def test_a_row_of_zeros_that_was_never_written_does_not_match_any_checksum(reading, tmp_path):
    opened = open_store(tmp_path)
    opened.close()
    checksums = np.arange(DRAWS * ROWS, dtype="<u4")  # the start of the checksum of each row
    checksums.tofile(opened.path / CHECKSUMS)
    opened = open_store(tmp_path)
    assert not read(opened, 0).any()
    assert not read(opened, 1).any()
    opened.close()


def test_a_row_at_the_position_of_another_one_is_a_miss(reading, entry, tmp_path):
    for part in PARTS:
        content = bytearray((entry / part.name).read_bytes())
        content[: part.bytes] = content[part.bytes : 2 * part.bytes]
        (entry / part.name).write_bytes(content)
    checksums = np.fromfile(entry / CHECKSUMS, "<u4")
    checksums[0] = checksums[1]
    checksums.tofile(entry / CHECKSUMS)
    opened = open_store(tmp_path)
    assert read(opened, 0).logical_not().nonzero().tolist() == [[0]]
    opened.close()


def test_no_flipped_bit_in_any_file_of_an_entry_changes_a_value(reading, entry, tmp_path):
    generator = np.random.default_rng(0)
    files = {file: file.read_bytes() for file in entry.iterdir() if file.is_file() and not file.name.startswith(".")}
    for _ in range(60):
        file = list(files)[generator.integers(len(files))]
        if not files[file]:
            continue
        flip_bit(file, int(generator.integers(len(files[file]))), int(generator.integers(8)))
        opened = open_store(tmp_path)
        misses = sum(int(read(opened, draw).logical_not().sum()) for draw in range(DRAWS))
        assert misses in (0, 1, DRAWS * ROWS)  # DRAWS * ROWS: the entry was created again
        opened.abandon()
        entry.mkdir(exist_ok=True)
        for path, content in files.items():
            path.write_bytes(content)


def test_a_file_that_is_truncated_while_it_is_open_raises_an_error_and_sends_no_signal(reading, entry, tmp_path):
    opened = open_store(tmp_path)
    assert read(opened, 0).all()
    os.truncate(entry / "output", 5)
    os.truncate(entry / CHECKSUMS, 3)
    if reading == "held in memory":
        assert read(opened, 0).all()
    for draw in range(DRAWS) if reading == "read by row" else [1]:
        with pytest.raises(OSError, match="output was truncated by another process"):
            opened.read(torch.arange(ROWS), draw)
    opened.close()


def test_draws_that_do_not_fit_the_memory_together_are_read_again(entry, tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "_MEMORY_BYTES", ROWS * sum(part.bytes for part in PARTS))  # of one draw
    opened = open_store(tmp_path)
    for draw in (0, 1, 0, 1):
        assert read(opened, draw, torch.tensor([4, 2])).all()
    flip_bit(entry / "output", 0)
    assert read(opened, 1).all()
    assert read(opened, 0).logical_not().nonzero().tolist() == [[0]]
    opened.close()


def test_a_draw_that_makes_room_for_another_one_keeps_its_new_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "_MEMORY_BYTES", ROWS * sum(part.bytes for part in PARTS))  # of one draw
    opened = open_store(tmp_path)
    for draw in range(DRAWS):
        opened.write(draw, torch.arange(ROWS), values(draw))
    assert all(read(opened, draw).all() for draw in range(DRAWS))
    opened.close()


def test_rows_that_were_not_read_yet_keep_their_values_if_rows_around_them_are_written(reading, tmp_path):
    opened = open_store(tmp_path)
    missing = torch.tensor([3, 10])
    others = torch.tensor([row for row in range(ROWS) if row not in missing.tolist()])
    for draw in range(DRAWS):
        opened.write(draw, others, [part[others] for part in values(draw)])
    opened.close()
    opened = open_store(tmp_path)
    for draw in range(DRAWS):
        assert not read(opened, draw, missing).any()
        opened.write(draw, missing, [part[missing] for part in values(draw)])
    opened.close()
    opened = open_store(tmp_path)
    assert all(read(opened, draw).all() for draw in range(DRAWS))
    opened.close()


def test_rows_that_are_held_in_memory_are_written_in_few_calls(tmp_path, monkeypatch):
    opened, calls = open_store(tmp_path), []
    monkeypatch.setattr(row_files, "write_at", lambda *arguments: calls.append(arguments))
    for rows in torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).split(4):
        opened.write(0, rows, [part[rows] for part in values(0)])
    assert calls == []
    opened.flush()
    assert len(calls) == len(PARTS)
    opened.close()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", range(len(PARTS)), ids=[part.name for part in PARTS])
def test_outputs_that_are_nan_or_infinite_are_not_cached(part, value, reading, tmp_path):
    opened = open_store(tmp_path)
    written = values(0)
    written[part][3].view(-1)[1] = value
    opened.write(0, torch.arange(ROWS), written)
    assert opened.read(torch.arange(ROWS), 0).hits.logical_not().nonzero().tolist() == [[3]]
    assert opened.not_finite == 1
    opened.close()


def test_logits_of_masked_classes_are_cached_and_infinite_features_are_not(reading, tmp_path):
    opened = open_store(tmp_path)
    output, feature = values(0)
    output[2, 1] = feature[6, 0, 0] = -torch.inf
    opened.write(0, torch.arange(ROWS), [output, feature])
    cached = opened.read(torch.arange(ROWS), 0)
    assert cached.hits.logical_not().nonzero().tolist() == [[6]]
    assert torch.equal(cached.parts[0][cached.hits], output[cached.hits])
    opened.close()


def test_a_reader_uses_a_damaged_row_once_the_writer_has_written_it_again(reading, entry, tmp_path):
    flip_bit(entry / "output", 1)
    writer, reader = open_store(tmp_path), open_store(tmp_path)
    assert not read(reader, 0)[0]
    assert reader.damaged == 1
    assert not read(writer, 0)[0]
    writer.write(0, torch.tensor([0]), [part[:1] for part in values(0)])
    writer.flush()
    reader.refresh()
    assert read(reader, 0).all()
    assert reader.damaged == 1
    writer.close()
    reader.close()


def test_a_folder_in_the_place_of_a_lock_leaves_no_entry_in_use(entry, tmp_path):
    (entry / ".writing").unlink()
    (entry / ".writing").mkdir()
    with pytest.raises(UnusableFolderError, match=r"cannot be written: .*\.writing"):
        open_store(tmp_path)
    assert list((entry / "uses").iterdir()) == []
