"""Random damage to cached teacher outputs and to stores of signals: values are right, recomputed, or refused.

    KDKIT_FUZZ_SECONDS=600 pytest -n0 tests/fuzz/test_fuzz_cache.py

Each test repeats its mutations for some seconds. A failure shows the number of the mutation, which is its seed.
"""

import os
import shutil
import time
import warnings
import zlib

import numpy as np
import pytest
import torch

import kdkit
from kdkit import CacheSettings
from kdkit.errors import CacheError, DataError
from kdkit.teachers.cache import CacheFolder, EntrySpec, Key, Part, store
from kdkit.teachers.cache.key import FORMAT
from kdkit_ecg.store import SignalFile, StoredSignals
from kdkit_ecg.store.index import INDEX, ROW, SIGNALS, make_row, read_rows
from tests.helpers.stages import copied, epoch_terms, same
from tests.helpers.teacher_cache import make_recipe

SECONDS = float(os.environ.get("KDKIT_FUZZ_SECONDS", "12")) / 4  # of each test
LEAST = 10  # mutations, on a machine under load


def seeds():
    """Yield the seeds of mutations until the time is over."""
    end = time.monotonic() + SECONDS
    number = 0
    while number < LEAST or time.monotonic() < end:
        yield number
        number += 1


def mutate(file, generator, kinds=10):
    """Damage a file: flip a bit (kinds=4), overwrite, move, cut, extend, delete it, or put a folder in its place."""
    content = bytearray(file.read_bytes())
    kind = generator.integers(kinds)
    start = int(generator.integers(len(content) + 1))
    length = int(generator.integers(1, 200))
    if kind < 4 and content:
        content[min(start, len(content) - 1)] ^= 1 << generator.integers(8)
    elif kind == 4:
        content[start : start + length] = bytes(len(content[start : start + length]))
    elif kind == 5:
        content[start : start + length] = generator.bytes(len(content[start : start + length]))
    elif kind == 6:
        other = int(generator.integers(len(content) + 1))
        piece = content[other : other + length]
        content[start : start + len(piece)] = piece
    elif kind == 7:
        del content[start:]
    elif kind == 8:
        content[start:start] = generator.bytes(length)
    else:
        file.unlink()
        if generator.integers(2):
            file.mkdir()
        return
    file.write_bytes(content)


def restore(folder, original):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)


ROWS, DRAWS = 24, 2
PARTS = (Part("output", (5,), torch.float32), Part("feature-0", (3, 4), torch.float16))


@pytest.mark.parametrize("memory", [2**28, 0], ids=["held in memory", "read by row"])
def test_a_hit_in_a_mutated_entry_has_the_value_that_was_written(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_MEMORY_BYTES", memory)
    facts = {"format": FORMAT, "view": {"key": "inputs"}, "data": {"fingerprint": "abc"}}
    ids = torch.arange(ROWS)
    spec = EntrySpec(net="teacher", key=Key(facts), parts=PARTS, ids=ids, draws=DRAWS, new_rows=DRAWS * ROWS)
    written = [torch.randn(DRAWS, ROWS, *part.shape).to(part.dtype) for part in PARTS]
    folder = CacheFolder(tmp_path / "cache")
    opened = folder.open(spec)
    for draw in range(DRAWS):
        opened.write(draw, ids, [part[draw] for part in written])
    opened.close()
    entry, original = opened.path, tmp_path / "original"
    shutil.copytree(entry, original)
    misses = 0
    for seed in seeds():
        generator = np.random.default_rng(seed)
        for file in generator.choice(["output", "feature-0", "checksums", "ids", "meta.json", "used"], 2):
            if (entry / file).is_file():
                mutate(entry / file, generator)
        folder.kept()
        try:
            opened = folder.open(spec)
        except CacheError:
            restore(entry, original)
            continue
        for draw in range(DRAWS):
            lookup = opened.lookup(ids, draw)
            hits = torch.ones(ROWS, dtype=torch.bool) if lookup.hits is None else lookup.hits
            misses += int((~hits).sum())
            for part, expected in zip(opened.read(lookup), written, strict=True) if hits.any() else ():
                assert torch.equal(part[hits], expected[draw][hits]), seed
        opened.abandon()
        restore(entry, original)
    assert misses


def test_a_run_over_a_mutated_cache_ends_with_the_same_bits(tmp_path):
    def run(name):
        recipe = make_recipe(taps=True, epochs=2, teacher_cache=CacheSettings(audit=0))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* damaged and computed again")
            result = kdkit.run(recipe, out=tmp_path / name, device="cpu", progress=False)
        return copied(result.student.module), epoch_terms(result.history)

    weights, history = run("first")
    (meta,) = (tmp_path / "teacher_cache").glob("*/meta.json")
    shutil.copytree(meta.parent, tmp_path / "original")
    for seed in seeds():
        generator = np.random.default_rng(seed)
        for file in generator.choice(["output", "feature-0", "checksums", "ids", "meta.json", "used"], 2):
            if (meta.parent / file).is_file():
                # A range of zeros is a range of rows that were not written, and are computed in smaller batches.
                mutate(meta.parent / file, generator, kinds=4 if file == "checksums" else 10)
        repeated = run(f"run-{seed}")
        assert same(repeated[0], weights), seed
        assert repeated[1] == history, seed
        restore(meta.parent, tmp_path / "original")
        shutil.rmtree(tmp_path / f"run-{seed}")


def forge(file, generator):
    """Give a random row of an index random fields, and the checksum that they need."""
    rows = np.frombuffer(bytearray(file.read_bytes()), dtype=ROW)
    row = int(generator.integers(len(rows)))
    field = str(generator.choice(["offset", "time", "sum", "fault"]))
    rows[field][row] = generator.integers(2 ** (8 * ROW[field].itemsize), dtype=np.uint64, endpoint=False)
    rows["check"][row] = zlib.crc32(rows[row].tobytes()[: ROW.fields["check"][1]])
    file.write_bytes(rows.tobytes())


def test_a_record_of_a_mutated_store_has_its_samples_or_is_refused(tmp_path):
    generator = np.random.default_rng(0)
    signals = [generator.standard_normal((12, time)).astype(np.float32) for time in (155, 9000, 40, 2570)]
    folder, original = tmp_path / "store", tmp_path / "original"
    original.mkdir()
    with (original / SIGNALS).open("wb") as file, (original / INDEX).open("wb") as index:
        for number, signal in enumerate(signals):
            index.write(make_row(number.to_bytes(16, "big"), b"", file.tell(), signal, ""))
            file.write(signal.tobytes())
    outcomes = {"read": 0, "refused": 0}
    for seed in seeds():
        restore(folder, original)
        generator = np.random.default_rng(seed)
        early = StoredSignals(SignalFile(folder, read_rows(folder)[0]))
        _ = early[0], early[1]  # later reads of these compare other checksums
        if generator.integers(3):
            mutate(folder / str(generator.choice([SIGNALS, INDEX])), generator)
        else:
            forge(folder / INDEX, generator)
        readers = [early]
        try:
            readers.append(StoredSignals(SignalFile(folder, read_rows(folder)[0])))
        except (DataError, IsADirectoryError):  # `SignalStore` turns the latter into a DataError
            outcomes["refused"] += 1
        for reader in readers:
            for position in range(len(reader)):
                expected = signals[int.from_bytes(reader.file.rows["key"][position].tobytes(), "big")]
                try:
                    assert np.array_equal(reader[position], expected), seed
                    stop = min(100, expected.shape[1])
                    assert np.array_equal(reader.window(position, 20, stop), expected[:, 20:stop]), seed
                    outcomes["read"] += 1
                except DataError:
                    outcomes["refused"] += 1
    assert all(outcomes.values()), outcomes
