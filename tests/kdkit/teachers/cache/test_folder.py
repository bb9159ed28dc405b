"""The files of recorded answers: what is read is what was written, and a killed or second process spoils nothing."""

import os
import shutil
import time

import pytest
import torch

from kdkit.errors import CacheError
from kdkit.teachers.cache import CacheFolder, EntrySpec, Key, NewOutputs, Part
from kdkit.teachers.cache.store import KNOWN

IDS = torch.tensor([30, 10, 20, 50, 40])


OUTPUT = (Part("output", (3,), torch.float32),)


def place(net="teacher", *, parts=OUTPUT, draws=2, ids=IDS, **facts):
    facts = {"view": {"key": "inputs"}, "data": {"fingerprint": "abc"}, "net": net, **facts}
    return EntrySpec(net=net, key=Key(facts), parts=parts, ids=ids, draws=draws, asked=draws * len(ids))


def folder(tmp_path, limit=10**9):
    return CacheFolder(tmp_path / "teacher_cache", limit)


def record(store, ids, draw=0, seed=0):
    """Write made-up rows for these ids, and return them."""
    torch.manual_seed(seed)
    found = store.find(torch.tensor(ids), draw)
    parts = [torch.randn(len(ids), *part.shape).to(part.dtype) for part in store.parts]
    store.write(draw, found.rows, parts)
    return parts


def filled(answers, where, seed=0):
    store = answers.open(where)
    parts = record(store, IDS.tolist(), seed=seed)
    store.close()
    return parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_what_is_read_is_what_was_written_to_the_bit(dtype, tmp_path):
    where = place(parts=(Part("output", (3,), dtype), Part("feature-0", (2, 4), dtype), Part("feature-1", (), dtype)))
    store = folder(tmp_path).open(where)
    written = record(store, [40, 10], draw=1)
    for open_teacher in (store, folder(tmp_path).open(where)):
        if open_teacher is not store:
            assert (
                open_teacher.find(torch.tensor([40, 10]), 1).known is not None
            )  # not before the other one has flushed
            store.flush()
            open_teacher.look_again()
        found = open_teacher.find(torch.tensor([40, 10]), 1)
        assert found.known is None
        assert all(torch.equal(one, other) for one, other in zip(open_teacher.read(found), written, strict=True))
        open_teacher.close()


def test_only_the_draw_that_was_recorded_is_known(tmp_path):
    store = folder(tmp_path).open(place())
    record(store, [10, 20], draw=1)
    assert store.find(torch.tensor([20, 30, 10]), 1).known.tolist() == [True, False, True]
    assert not store.find(torch.tensor([10]), 0).known.any()
    assert store.find(torch.tensor([10, 11]), 1) is None
    assert store.find(torch.tensor([99]), 1) is None
    assert store.find(torch.tensor([10]), 2) is None
    store.close()


def test_what_other_processes_were_told_is_taken_where_it_is_not_known_yet(tmp_path):
    store, reader = (folder(tmp_path).open(place()) for _ in range(2))
    (known,) = record(store, [40, 10], draw=1)
    other = torch.full((2, *known.shape[1:]), 7.0, dtype=known.dtype)
    heard = NewOutputs(1, torch.tensor([10, 20]), (other,))
    store.take(heard)
    (read,) = store.read(store.find(torch.tensor([40, 10, 20]), 1))
    assert torch.equal(read, torch.cat([known, other[1:]]))  # the first answer stays
    reader.take(heard)  # it holds no lock, so it leaves the writing to the one that does
    reader.look_again()
    assert reader.find(torch.tensor([20]), 1).known is not None
    store.flush()
    reader.look_again()
    assert reader.find(torch.tensor([20, 10]), 1).known is None
    store.close()
    reader.close()


def test_rows_are_known_on_the_disk_after_their_data_are(tmp_path, monkeypatch):
    store = folder(tmp_path).open(place())
    record(store, [10, 20])
    assert (store.path / KNOWN).read_bytes().count(1) == 0
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append((store.path / KNOWN).read_bytes().count(1)))
    store.flush()
    assert synced == [0, 2]
    monkeypatch.undo()
    store.close()


def test_flushes_come_by_the_clock_too(tmp_path):
    store = folder(tmp_path).open(place())
    store._flushed -= 6  # seconds ago
    record(store, [10, 20])
    assert (store.path / KNOWN).read_bytes().count(1) == 2
    store.close()


def test_a_second_one_reads_and_takes_over_the_writing_when_the_first_has_ended(tmp_path):
    one, two = folder(tmp_path).open(place()), folder(tmp_path).open(place())
    assert (one.writes, two.writes) == (True, False)
    record(one, [10])
    one.flush()
    two.look_again()
    assert (two.writes, two.find(torch.tensor([10]), 0).known) == (False, None)
    one.close()
    two.look_again()
    assert two.writes
    record(two, [20])
    two.close()
    (kept,) = folder(tmp_path).kept()
    assert (kept.known, kept.rows, kept.open, kept.net) == (2, 10, False, "teacher")


def test_files_take_no_room_before_they_are_written_to(tmp_path):
    part = Part("output", (100_000,), torch.float32)
    store = folder(tmp_path).open(place(parts=(part,), draws=50))
    assert (store.path / "output").stat().st_size == 5 * 50 * part.bytes
    store.close()
    (kept,) = folder(tmp_path).kept()
    assert kept.bytes < 10**6


def test_the_longest_unused_is_given_up_for_what_comes(tmp_path):
    answers = folder(tmp_path)
    row = Part("output", (50_000,), torch.float32)
    for number, net in enumerate(("old", "new")):
        filled(answers, place(net, parts=(row,), draws=1))
        used = answers.path / place(net, parts=(row,), draws=1).key.digest / "used"
        os.utime(used, (time.time() - 100 + number,) * 2)
    folder(tmp_path, limit=2_600_000).open(place("third", parts=(row,), draws=1)).close()
    assert sorted(each.net for each in answers.kept()) == ["new", "third"]


def test_nothing_in_use_is_given_up(tmp_path):
    row = Part("output", (50_000,), torch.float32)
    store = folder(tmp_path).open(place("first", parts=(row,), draws=1))
    with pytest.raises(CacheError, match="other runs fill"):
        folder(tmp_path, limit=1_500_000).open(place("second", parts=(row,), draws=1))
    with pytest.raises(CacheError, match="are in use"):
        folder(tmp_path).delete("all")
    assert folder(tmp_path).shrink(0) == []
    record(store, [10])
    store.close()
    assert [each.net for each in folder(tmp_path).shrink(0)] == ["first"]
    assert folder(tmp_path).kept() == []


def test_what_would_never_fit_is_refused_and_nothing_is_given_up_for_it(tmp_path, monkeypatch):
    filled(folder(tmp_path), place("first"))
    large = place("large", parts=(Part("output", (10**6,), torch.float32),))
    with pytest.raises(CacheError, match=r"take 40 MB, and .* is held to 20 MB \(--teacher-cache-size\)"):
        folder(tmp_path, limit=20 * 10**6).open(large)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 2**28 + 10))
    with pytest.raises(CacheError, match=r"the disk of .* has 1e-05 MB left"):
        folder(tmp_path).open(large)
    assert [each.net for each in folder(tmp_path).kept()] == ["first"]


@pytest.mark.parametrize("damage", ["output", "ids", "known", "meta.json"])
def test_a_damaged_place_is_made_anew(damage, tmp_path):
    filled(folder(tmp_path), place())
    (folder(tmp_path).path / place().key.digest / damage).write_bytes(b"x")
    store = folder(tmp_path).open(place())
    assert not store.known.any()
    store.close()
    filled(folder(tmp_path), place())
    assert folder(tmp_path).kept()[0].known == 5


def test_what_a_process_left_that_was_stopped_while_it_made_a_place_is_cleared_away(tmp_path):
    left = tmp_path / "teacher_cache" / ("0" * 64)
    (left / "uses").mkdir(parents=True)
    (left / "ids").write_bytes(b"")
    assert folder(tmp_path).kept() == []
    assert not left.exists()


def test_a_full_disk_is_an_error_and_leaves_nothing_known(tmp_path):
    class Full:
        def seek(self, place): ...

        def write(self, content):
            return len(content) - 1

        def close(self): ...

    store = folder(tmp_path).open(place())
    store._files[0].close()
    store._files[0] = Full()
    with pytest.raises(OSError, match="no room"):
        record(store, [10])
    store.abandon()
    assert folder(tmp_path).kept()[0].known == 0


def test_places_are_deleted_by_net_and_by_the_beginning_of_their_name(tmp_path):
    for net in ("teacher", "assistant"):
        filled(folder(tmp_path), place(net))
    with pytest.raises(CacheError, match="did you mean 'teacher'"):
        folder(tmp_path).delete("teachr")
    assert [each.net for each in folder(tmp_path).delete("teacher")] == ["teacher"]
    (left,) = folder(tmp_path).kept()
    assert [each.net for each in folder(tmp_path).delete(left.path.name[:12])] == ["assistant"]
    assert folder(tmp_path).delete("all") == []
    with pytest.raises(CacheError, match="there is no folder"):
        CacheFolder(tmp_path / "elsewhere").kept()


def test_a_folder_that_cannot_be_written_is_refused_with_the_reason(tmp_path):
    (tmp_path / "teacher_cache").write_text("a file")
    with pytest.raises(CacheError, match="cannot be written"):
        folder(tmp_path).open(place())
