"""One place in a folder of answers: its files, whether they are whole, and what is known of it."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from kdkit.teachers.cache.codec import Part
from kdkit.teachers.cache.key import Key
from kdkit.teachers.cache.store import IDS, KNOWN, META, USED
from kdkit.utils.files import write


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryInfo:
    """What stands in one place: whose answers, how many rows (samples times draws) are known, bytes, and last use."""

    path: Path
    net: str
    view: str
    data: str
    known: int
    rows: int
    bytes: int
    used: float
    open: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrySpec:
    """What is to be kept in one place. ids: (samples,) int64. asked: how many rows the coming stage may add."""

    net: str
    key: Key
    parts: tuple[Part, ...]
    ids: Tensor
    draws: int
    asked: int

    @property
    def planned(self) -> int:
        """The bytes that the coming stage may add."""
        return self.asked * sum(part.bytes for part in self.parts)


def create(at: Path, place: EntrySpec) -> None:
    """Make the files of a place, which take no room until they are written to; last, what says that it is whole."""
    (at / "uses").mkdir(parents=True)
    content = place.ids.sort().values.contiguous().numpy().tobytes()
    (at / IDS).write_bytes(content)
    for name, size in _sizes(place).items():
        with (at / name).open("wb") as file:
            file.truncate(size)
    (at / USED).touch()
    write(at / META, json.dumps(_meta(place), indent=2))


def _sizes(place: EntrySpec) -> dict[str, int]:
    rows = place.draws * len(place.ids)
    return {**{part.name: rows * part.bytes for part in place.parts}, KNOWN: rows}


def _meta(place: EntrySpec) -> dict[str, Any]:
    parts = [{**asdict(part), "shape": list(part.shape), "dtype": str(part.dtype)} for part in place.parts]
    return {"net": place.net, "parts": parts, "made": time.strftime("%Y-%m-%d %H:%M:%S"), "key": place.key.facts}


def fits(at: Path, place: EntrySpec) -> bool:
    """Whether a place is whole and of this form."""
    try:
        meta = json.loads((at / META).read_text())
        ids = torch.frombuffer(bytearray((at / IDS).read_bytes()), dtype=torch.int64)
        sizes = {name: (at / name).stat().st_size for name in _sizes(place)}
        parts = meta["parts"] == _meta(place)["parts"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return parts and sizes == _sizes(place) and torch.equal(ids, place.ids.sort().values)


def in_use(at: Path) -> bool:
    """Whether a process has it open; what a process left that was killed is cleared away."""
    for use in (at / "uses").glob("*"):
        lock = FileLock(use)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        use.unlink(missing_ok=True)
        lock.release()
    return False


def kept_in(at: Path) -> EntryInfo | None:
    """Return what is kept in a place, None where that cannot be told: one that is not whole is of no use."""
    try:
        meta = json.loads((at / META).read_text())
        known = (at / KNOWN).read_bytes()
        files = [each.stat() for each in at.iterdir() if each.is_file()]
        used = (at / USED).stat().st_mtime
        planned = int((at / USED).read_text() or 0)
        net, facts = str(meta["net"]), meta["key"]
        view, data = str(facts["view"]["key"]), str(facts["data"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    taken = sum(getattr(each, "st_blocks", each.st_size // 512) * 512 for each in files)
    open_teacher = in_use(at)
    return EntryInfo(
        path=at, net=net, view=view, data=data, known=known.count(1), rows=len(known),
        bytes=max(taken, planned) if open_teacher else taken, used=used, open=open_teacher,
    )  # fmt: skip
