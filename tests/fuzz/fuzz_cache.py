"""Random damage to cached teacher outputs and to stores of signals: values are right, recomputed, or refused."""

import shutil
import warnings
import zlib

import numpy as np
import torch

from kdkit.errors import CacheError, DataError
from kdkit.teachers.cache import CacheFolder, EntrySpec, Key, Part
from kdkit.teachers.cache.key import FORMAT
from kdkit_ecg.store import SignalFile, StoredSignals
from kdkit_ecg.store.index import INDEX, ROW, SIGNALS, make_row, read_rows

FILES = ["output", "feature-0", "checksums", "ids", "meta.json", "used"]  # of an entry


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


def numbers(inputs, first_seed):
    """Return the seeds of this many mutations."""
    return range(first_seed * 1_000_000, first_seed * 1_000_000 + inputs)


def fuzz_entries(folder, meter, seeds):
    """Damage an entry of the teacher cache once for each seed. A hit has the value that was written."""
    facts = {"format": FORMAT, "view": {"key": "inputs"}, "data": {"fingerprint": "abc"}}
    ids = torch.arange(ROWS)
    spec = EntrySpec(net="teacher", key=Key(facts), parts=PARTS, ids=ids, draws=DRAWS, new_rows=DRAWS * ROWS)
    written = [torch.randn(DRAWS, ROWS, *part.shape).to(part.dtype) for part in PARTS]
    cache = CacheFolder(folder / "cache")
    opened = cache.open(spec)
    for draw in range(DRAWS):
        opened.write(draw, ids, [part[draw] for part in written])
    opened.close()
    entry, original = opened.path, folder / "original"
    shutil.copytree(entry, original)

    def read(seed):
        cache.kept()
        try:
            opened = cache.open(spec)
        except CacheError:
            return "refused"
        missed = 0
        for draw in range(DRAWS):
            cached = opened.read(ids, draw)
            hits = torch.ones(ROWS, dtype=torch.bool) if cached.hits is None else cached.hits
            missed += int((~hits).sum())
            for part, expected in zip(cached.parts, written, strict=True) if hits.any() else ():
                assert torch.equal(part[hits], expected[draw][hits]), seed
        opened.abandon()
        return "computed again" if missed else "read"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of each damaged entry
        for seed in seeds:
            generator = np.random.default_rng(seed)
            for file in generator.choice(FILES, 2):
                if (entry / file).is_file():
                    mutate(entry / file, generator)
            meter.read(lambda seed=seed: read(seed))
            restore(entry, original)


def forge(file, generator):
    """Give a random row of an index random fields, and the checksum that they need."""
    rows = np.frombuffer(bytearray(file.read_bytes()), dtype=ROW)
    row = int(generator.integers(len(rows)))
    field = str(generator.choice(["offset", "time", "sum", "fault"]))
    rows[field][row] = generator.integers(2 ** (8 * ROW[field].itemsize), dtype=np.uint64, endpoint=False)
    rows["check"][row] = zlib.crc32(rows[row].tobytes()[: ROW.fields["check"][1]])
    file.write_bytes(rows.tobytes())


def fuzz_store(folder, meter, seeds):
    """Damage a store of signals once for each seed. A record has its samples or is refused."""
    generator = np.random.default_rng(0)
    signals = [generator.standard_normal((12, time)).astype(np.float32) for time in (155, 9000, 40, 2570)]
    folder, original = folder / "store", folder / "original"
    original.mkdir()
    with (original / SIGNALS).open("wb") as file, (original / INDEX).open("wb") as index:
        for number, signal in enumerate(signals):
            index.write(make_row(number.to_bytes(16, "big"), b"", file.tell(), signal, ""))
            file.write(signal.tobytes())

    def read(seed, early):
        readers, refused = [early], 0
        try:
            readers.append(StoredSignals(SignalFile(folder, read_rows(folder)[0])))
        except (DataError, IsADirectoryError):  # `SignalStore` turns the latter into a DataError
            refused += 1
        for reader in readers:
            for position in range(len(reader)):
                expected = signals[int.from_bytes(reader.file.rows["key"][position].tobytes(), "big")]
                try:
                    assert np.array_equal(reader[position], expected), seed
                    stop = min(100, expected.shape[1])
                    assert np.array_equal(reader.window(position, 20, stop), expected[:, 20:stop]), seed
                except DataError:
                    refused += 1
        return "refused" if refused else "read"

    for seed in seeds:
        restore(folder, original)
        generator = np.random.default_rng(seed)
        early = StoredSignals(SignalFile(folder, read_rows(folder)[0]))
        _ = early[0], early[1]  # later reads of these compare other checksums
        if generator.integers(3):
            mutate(folder / str(generator.choice([SIGNALS, INDEX])), generator)
        else:
            forge(folder / INDEX, generator)
        meter.read(lambda seed=seed, early=early: read(seed, early))
