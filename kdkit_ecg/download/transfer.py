"""Fetch one file: resumed, tried again, checked, and under its own name only when it is right."""

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import requests
from urllib3.exceptions import HTTPError

from kdkit_ecg.download.backoff import TRIES, Backoff, Stopped
from kdkit_ecg.download.checksums import ReleaseFile
from kdkit_ecg.download.responses import TIMEOUT, AskAgain, DiskFullError, TransferError, UnreachableError, judge, said
from kdkit_ecg.download.verified_files import sum_of

PIECE = 1 << 16  # bytes

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Fetches files from below `base` to below `folder`; `moved` is told of bytes as they come, or are lost again."""

    session: requests.Session
    base: str
    folder: Path
    patience: Backoff
    moved: Callable[[int], None]

    def fetch(self, file: ReleaseFile) -> None:
        """Fetch one file. What is there of its .part is gone on with, and left where this ends early.

        Raises TransferError, which says why, DiskFullError, and Stopped.
        """
        part = file.part(self.folder)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            self._whole(file, part)
            if sum_of(part) != file.sum:
                # Perhaps an older .part, perhaps a bad line: once more from the beginning.
                self._lose(part)
                self._whole(file, part)
                if sum_of(part) != file.sum:
                    self._lose(part)
                    raise TransferError("its bytes are not those of the list, twice")
            part.replace(file.below(self.folder))
        except OSError as error:
            if error.errno in _FULL:
                raise DiskFullError(
                    f"{part} cannot be written: {error.strerror}; make room and run the same command again"
                ) from error
            raise TransferError(f"cannot be written: {error.strerror or error}") from error

    def _whole(self, file: ReleaseFile, part: Path) -> None:
        """Bring the .part to its end, however many tries it takes while each brings new bytes."""
        tries = 0
        while True:
            self.patience.wait_turn()
            before = _size(part)
            try:
                self._piece(file, part)
                return
            except (requests.RequestException, HTTPError, AskAgain) as error:
                tries = 1 if _size(part) > before else tries + 1
                if tries >= TRIES:
                    raise UnreachableError(f"{said(error)}, {TRIES} times") from error
            self.patience.wait_after(tries)

    def _piece(self, file: ReleaseFile, part: Path) -> None:
        """Ask once, and write what comes; returns when the file is whole."""
        start = _size(part)
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self.session.get(address(self.base, file), headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # nothing is left to come, or the .part is longer than the file
                self._settle(response, part, start)
                return
            judge(response, self.patience)
            going_on = response.status_code == 206 and _starts_at(response, start)
            if start and not going_on:
                self._lose(part)
            if response.status_code == 206 and not going_on:
                raise AskAgain("the server sent another range than it was asked for")
            with part.open("ab" if going_on else "wb") as out:
                # read1 hands out what has come; read would wait for a whole piece and lose it where the line is cut.
                while piece := response.raw.read1(PIECE):
                    out.write(piece)
                    self.moved(len(piece))
                    if self.patience.stop.is_set():
                        raise Stopped

    def _settle(self, response: requests.Response, part: Path, start: int) -> None:
        if response.headers.get("Content-Range", f"bytes */{start}") != f"bytes */{start}":
            self._lose(part)
            raise AskAgain("what was there is longer than the file")

    def _lose(self, part: Path) -> None:
        self.moved(-_size(part))
        part.unlink(missing_ok=True)


def address(base: str, file: ReleaseFile) -> str:
    """Return where a file is fetched from."""
    return base + quote(file.path)


def _starts_at(response: requests.Response, start: int) -> bool:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return match is not None and int(match[1]) == start


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
