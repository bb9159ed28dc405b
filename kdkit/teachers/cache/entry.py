"""The files of one cache entry: create them, check that they are complete, and describe them."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import Timeout
from torch import Tensor

from kdkit.teachers.cache.codec import Part
from kdkit.teachers.cache.key import FORMAT, Key
from kdkit.utils.files import read_file, write
from kdkit.utils.locks import FileLock

META, IDS, CHECKSUMS, USED = "meta.json", "ids", "checksums", "used"  # the files of an entry besides its parts
CHECKSUM_BYTES = 4  # per row


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryInfo:
    """One entry in a list of the cache.

    net, view, data: parts of the key. rows: samples times draws. bytes: the size on disk. used: the time of the last
    use, in seconds since the Unix epoch. open: whether a process uses the entry. format: the version of its files.
    """

    path: Path
    net: str
    view: str
    data: str
    rows: int
    bytes: int
    used: float
    open: bool
    format: int

    @property
    def readable(self) -> bool:
        """Whether this version of kdkit can read the entry."""
        return self.format == FORMAT

    @property
    def written(self) -> int:
        """The number of rows that have an output now, read from the checksums; 0 if they cannot be read."""
        try:
            checksums = read_file(self.path / CHECKSUMS)
        except OSError:
            return 0
        whole = len(checksums) // CHECKSUM_BYTES * CHECKSUM_BYTES
        return int(np.count_nonzero(np.frombuffer(checksums[:whole], dtype="<u4")))


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrySpec:
    """What an entry must hold. ids: (samples,) int64. new_rows: the most rows that the next stage may write."""

    net: str
    key: Key
    parts: tuple[Part, ...]
    ids: Tensor
    draws: int
    new_rows: int

    @property
    def new_bytes(self) -> int:
        """The most bytes that the next stage may write."""
        return self.new_rows * sum(part.bytes for part in self.parts)


def create_entry(path: Path, spec: EntrySpec) -> None:
    """Create the files of an entry, sparse until rows are written. meta.json is written last."""
    (path / "uses").mkdir(parents=True)
    (path / IDS).write_bytes(spec.ids.sort().values.contiguous().numpy().tobytes())
    for name, size in _file_sizes(spec).items():
        with (path / name).open("wb") as file:
            file.truncate(size)
    (path / USED).touch()
    write(path / META, json.dumps(_meta(spec), indent=2))


def is_intact(path: Path, spec: EntrySpec) -> bool:
    """Return whether an entry is complete and matches the spec."""
    try:
        meta = json.loads(read_file(path / META))
        ids = torch.frombuffer(bytearray(read_file(path / IDS)), dtype=torch.int64)
        sizes = {name: (path / name).stat().st_size for name in _file_sizes(spec)}
        same_parts = meta["parts"] == _meta(spec)["parts"] and Key(meta["key"]).digest == spec.key.digest
    except (OSError, ArithmeticError, ValueError, KeyError, TypeError):
        return False
    return same_parts and sizes == _file_sizes(spec) and torch.equal(ids, spec.ids.sort().values)


def is_open(path: Path) -> bool:
    """Return whether a process uses an entry. Locks of killed processes are removed."""
    for use in (path / "uses").glob("*"):
        lock = FileLock(use)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        with suppress(PermissionError):  # Windows deletes no open file, and filelock does so there on release
            use.unlink(missing_ok=True)
        lock.release()
    return False


def read_info(path: Path) -> EntryInfo | None:
    """Return the description of an entry, or None if it is incomplete and cannot be read."""
    try:
        meta = json.loads(read_file(path / META))
        net, facts = str(meta["net"]), meta["key"]
        written_format = int(facts["format"])
        # An entry in an older format may have other files. It is listed so that it can be deleted.
        size = (path / CHECKSUMS).stat().st_size if written_format == FORMAT else 0
        files = [file.stat() for file in path.iterdir() if file.is_file()]
        used = (path / USED).stat().st_mtime
        reserved = read_file(path / USED)
        view, data = str(facts["view"]["key"]), str(facts["data"]["fingerprint"])
    except (OSError, ArithmeticError, ValueError, KeyError, TypeError):
        return None
    on_disk = sum(getattr(file, "st_blocks", file.st_size // 512) * 512 for file in files)  # sparse files take less
    in_use = is_open(path)
    if in_use and reserved.isdigit():
        on_disk = max(on_disk, int(reserved))
    return EntryInfo(
        path=path, net=net, view=view, data=data, rows=size // CHECKSUM_BYTES,
        bytes=on_disk, used=used, open=in_use, format=written_format,
    )  # fmt: skip


def _file_sizes(spec: EntrySpec) -> dict[str, int]:
    rows = spec.draws * len(spec.ids)
    return {**{part.name: rows * part.bytes for part in spec.parts}, CHECKSUMS: rows * CHECKSUM_BYTES}


def _meta(spec: EntrySpec) -> dict[str, Any]:
    parts = [{**asdict(part), "shape": list(part.shape), "dtype": str(part.dtype)} for part in spec.parts]
    created = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"net": spec.net, "parts": parts, "created": created, "key": spec.key.facts}
