"""The files of cached outputs: reading returns the bits that were written, and a killed process leaves no damage."""

import io
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from kdkit.cli.cache_table import show_cache
from kdkit.errors import CacheError
from kdkit.teachers.cache import CacheFolder, EntrySpec, Key, NewOutputs, Part
from kdkit.teachers.cache.key import FORMAT
from kdkit.teachers.cache.store import CHECKSUMS

IDS = torch.tensor([30, 10, 20, 50, 40])
OUTPUT = (Part("output", (3,), torch.float32),)
LARGE_ROW = (Part("output", (50_000,), torch.float32),)  # 5 rows take 1 MB


def make_spec(net="teacher", *, parts=OUTPUT, draws=2, ids=IDS, **facts):
    facts = {"format": FORMAT, "view": {"key": "inputs"}, "data": {"fingerprint": "abc"}, "net": net, **facts}
    return EntrySpec(net=net, key=Key(facts), parts=parts, ids=ids, draws=draws, new_rows=draws * len(ids))


def make_folder(tmp_path, limit=10**9):
    return CacheFolder(tmp_path / "teacher_cache", limit)


def write_rows(store, ids, draw=0, seed=0):
    """Write random rows for these ids, and return them."""
    torch.manual_seed(seed)
    parts = [torch.randn(len(ids), *part.shape).to(part.dtype) for part in store.parts]
    store.write(draw, store.read(torch.tensor(ids), draw).rows, parts)
    return parts


def fill_entry(folder, spec, seed=0):
    store = folder.open(spec)
    parts = write_rows(store, IDS.tolist(), seed=seed)
    store.close()
    return parts


def checksums_on_disk(store):
    """Return how many rows have a checksum in the file."""
    return int(np.count_nonzero(np.fromfile(store.path / CHECKSUMS, "<u4")))


def hits(store, ids, draw=0):
    return store.read(torch.tensor(ids), draw).hits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_rows_are_read_as_they_were_written_to_the_bit(dtype, tmp_path):
    spec = make_spec(
        parts=(Part("output", (3,), dtype), Part("feature-0", (2, 4), dtype), Part("feature-1", (), dtype))
    )
    writer = make_folder(tmp_path).open(spec)
    written = write_rows(writer, [40, 10], draw=1)
    reader = make_folder(tmp_path).open(spec)
    assert hits(reader, [40, 10], draw=1) is not None  # no hits before the writer has flushed
    writer.flush()
    reader.refresh()
    for store in (writer, reader):
        cached = store.read(torch.tensor([40, 10]), 1)
        assert cached.hits is None
        assert all(torch.equal(read, expected) for read, expected in zip(cached.parts, written, strict=True))
        store.close()


def test_only_the_draw_that_was_written_hits(tmp_path):
    store = make_folder(tmp_path).open(make_spec())
    write_rows(store, [10, 20], draw=1)
    assert hits(store, [20, 30, 10], draw=1).tolist() == [True, False, True]
    assert not hits(store, [10], draw=0).any()
    assert store.read(torch.tensor([10, 11]), 1) is None
    assert store.read(torch.tensor([99]), 1) is None
    assert store.read(torch.tensor([10]), 2) is None
    store.close()


def test_outputs_of_other_ranks_are_merged_if_they_are_missing(tmp_path):
    store, reader = (make_folder(tmp_path).open(make_spec()) for _ in range(2))
    (written,) = write_rows(store, [40, 10], draw=1)
    theirs = torch.full((2, *written.shape[1:]), 7.0, dtype=written.dtype)
    new_outputs = NewOutputs(1, torch.tensor([10, 20]), (theirs,))
    store.merge(new_outputs)
    (read,) = store.read(torch.tensor([40, 10, 20]), 1).parts
    assert torch.equal(read, torch.cat([written, theirs[1:]]))  # the first output for sample 10 stays
    reader.merge(new_outputs)  # it does not hold the lock, so it writes nothing
    reader.refresh()
    assert hits(reader, [20], draw=1) is not None
    store.flush()
    reader.refresh()
    assert hits(reader, [20, 10], draw=1) is None
    store.close()
    reader.close()


def test_checksums_reach_the_disk_after_their_rows(tmp_path, monkeypatch):
    store = make_folder(tmp_path).open(make_spec())
    write_rows(store, [10, 20])
    assert checksums_on_disk(store) == 0
    checksums_at_sync = []
    monkeypatch.setattr(os, "fsync", lambda _: checksums_at_sync.append(checksums_on_disk(store)))
    store.flush()
    assert checksums_at_sync == [0, 2]
    monkeypatch.undo()
    store.close()


def test_a_write_flushes_if_the_last_flush_was_long_ago(tmp_path):
    store = make_folder(tmp_path).open(make_spec())
    store._flushed -= 6  # seconds ago
    write_rows(store, [10, 20])
    assert checksums_on_disk(store) == 2
    store.close()


def test_a_second_process_reads_and_takes_over_the_writing_when_the_first_has_ended(tmp_path):
    first, second = make_folder(tmp_path).open(make_spec()), make_folder(tmp_path).open(make_spec())
    assert (first.writes, second.writes) == (True, False)
    write_rows(first, [10])
    first.flush()
    second.refresh()
    assert (second.writes, hits(second, [10])) == (False, None)
    first.close()
    second.refresh()
    assert second.writes
    write_rows(second, [20])
    second.close()
    (entry,) = make_folder(tmp_path).kept()
    assert (entry.written, entry.rows, entry.open, entry.net) == (2, 10, False, "teacher")


def test_files_take_no_room_before_rows_are_written(tmp_path):
    part = Part("output", (100_000,), torch.float32)
    store = make_folder(tmp_path).open(make_spec(parts=(part,), draws=50))
    assert (store.path / "output").stat().st_size == 5 * 50 * part.bytes
    store.close()
    (entry,) = make_folder(tmp_path).kept()
    assert entry.bytes < 10**6


def test_the_entry_that_was_not_used_for_longest_is_evicted_for_a_new_one(tmp_path):
    folder = make_folder(tmp_path)
    for number, net in enumerate(("old", "new")):
        spec = make_spec(net, parts=LARGE_ROW, draws=1)
        fill_entry(folder, spec)
        os.utime(folder.path / spec.key.digest / "used", (time.time() - 100 + number,) * 2)
    make_folder(tmp_path, limit=2_600_000).open(make_spec("third", parts=LARGE_ROW, draws=1)).close()
    assert sorted(entry.net for entry in folder.kept()) == ["new", "third"]


def test_no_entry_in_use_is_evicted(tmp_path):
    store = make_folder(tmp_path).open(make_spec("first", parts=LARGE_ROW, draws=1))
    with pytest.raises(CacheError, match="entries that other runs use fill"):
        make_folder(tmp_path, limit=1_500_000).open(make_spec("second", parts=LARGE_ROW, draws=1))
    with pytest.raises(CacheError, match="are in use"):
        make_folder(tmp_path).delete("all")
    assert make_folder(tmp_path).shrink(0) == []
    write_rows(store, [10])
    store.close()
    assert [entry.net for entry in make_folder(tmp_path).shrink(0)] == ["first"]
    assert make_folder(tmp_path).kept() == []


def test_an_entry_of_a_killed_process_is_not_in_use_on_windows_which_deletes_no_open_file(tmp_path, monkeypatch):
    store = make_folder(tmp_path).open(make_spec("first"))
    store.close()
    (store.path / "uses" / "of-a-killed-process").touch()
    unlink = Path.unlink

    def refuse_locked(self, **options):
        if self.name == "of-a-killed-process":
            raise PermissionError
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", refuse_locked)
    assert [entry.open for entry in make_folder(tmp_path).kept()] == [False]


def test_an_entry_that_never_fits_is_refused_and_nothing_is_evicted_for_it(tmp_path, monkeypatch):
    fill_entry(make_folder(tmp_path), make_spec("first"))
    large = make_spec("large", parts=(Part("output", (10**6,), torch.float32),))
    with pytest.raises(CacheError, match=r"take 40 MB, but .* is limited to 20 MB \(--teacher-cache-size\)"):
        make_folder(tmp_path, limit=20 * 10**6).open(large)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 2**28 + 10))
    with pytest.raises(CacheError, match=r"the disk of .* has only 10 B left"):
        make_folder(tmp_path).open(large)
    assert [entry.net for entry in make_folder(tmp_path).kept()] == ["first"]


@pytest.mark.parametrize("damaged", ["output", "ids", "checksums", "meta.json"])
def test_a_damaged_entry_is_created_again(damaged, tmp_path):
    spec = make_spec()
    fill_entry(make_folder(tmp_path), spec)
    (make_folder(tmp_path).path / spec.key.digest / damaged).write_bytes(b"x")
    store = make_folder(tmp_path).open(spec)
    assert not store.written.any()
    store.close()
    fill_entry(make_folder(tmp_path), spec)
    assert make_folder(tmp_path).kept()[0].written == 5


def old_entry(folder, spec):
    """Turn an entry into one as of format 2, which had another file of flags."""
    path = folder.path / spec.key.digest
    meta = json.loads((path / "meta.json").read_text())
    meta["key"]["format"] = 2
    (path / "meta.json").write_text(json.dumps(meta))
    (path / "checksums").rename(path / "known")


def test_an_entry_of_an_older_format_is_listed_and_can_be_deleted(tmp_path):
    folder, spec = make_folder(tmp_path), make_spec()
    fill_entry(folder, spec)
    old_entry(folder, spec)
    fill_entry(folder, make_spec("new"))
    listed = {entry.net: (entry.format, entry.readable, entry.written) for entry in folder.kept()}
    assert listed == {"teacher": (2, False, 0), "new": (FORMAT, True, 5)}
    console = Console(file=io.StringIO(), width=150)
    show_cache(console, folder.path, folder.kept(), [])
    text = console.file.getvalue()
    assert "format 2" in text
    assert "5 of 10" in text
    assert "entries listed with a format are from another version of kdkit and never read" in text
    assert [entry.net for entry in folder.delete("teacher")] == ["teacher"]
    assert [entry.net for entry in folder.kept()] == ["new"]


def test_an_entry_whose_creation_was_interrupted_is_deleted(tmp_path):
    incomplete = tmp_path / "teacher_cache" / ("0" * 64)
    (incomplete / "uses").mkdir(parents=True)
    (incomplete / "ids").write_bytes(b"")
    assert make_folder(tmp_path).kept() == []
    assert not incomplete.exists()


def test_a_full_disk_raises_an_error_and_leaves_no_checksums(tmp_path):
    resource = pytest.importorskip("resource")  # Windows has none
    store = make_folder(tmp_path).open(make_spec())
    write_rows(store, [10])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, limits[1]))  # as if only 2 bytes of a row fitted the disk
    try:
        with pytest.raises(OSError, match=r"No space left on device: '.*output'"):
            store.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    store.abandon()
    assert make_folder(tmp_path).kept()[0].written == 0


def test_entries_are_deleted_by_net_and_by_the_beginning_of_their_name(tmp_path):
    for net in ("teacher", "assistant"):
        fill_entry(make_folder(tmp_path), make_spec(net))
    with pytest.raises(CacheError, match="has no entry called 'teachr'; did you mean 'teacher'"):
        make_folder(tmp_path).delete("teachr")
    assert [entry.net for entry in make_folder(tmp_path).delete("teacher")] == ["teacher"]
    (left,) = make_folder(tmp_path).kept()
    assert [entry.net for entry in make_folder(tmp_path).delete(left.path.name[:12])] == ["assistant"]
    assert make_folder(tmp_path).delete("all") == []
    with pytest.raises(CacheError, match=r"there is no folder .*; pass a teacher cache: next to .* or in the folder"):
        CacheFolder(tmp_path / "elsewhere").kept()


def test_a_folder_that_cannot_be_written_is_refused_with_the_reason(tmp_path):
    (tmp_path / "teacher_cache").write_text("a file")
    with pytest.raises(CacheError, match="cannot be written"):
        make_folder(tmp_path).open(make_spec())
