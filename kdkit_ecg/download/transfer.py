"""Fetch one file: resume it, retry, verify its checksum, and rename it only when it is correct."""

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import requests
from urllib3.exceptions import HTTPError

from kdkit.utils.files import is_file
from kdkit.utils.reprs import format_bytes
from kdkit_ecg.download.backoff import MAX_TRIES, Backoff, Stopped
from kdkit_ecg.download.checksums import ReleaseFile
from kdkit_ecg.download.responses import (
    TIMEOUT,
    DiskFullError,
    RetryLater,
    TransferError,
    UnreachableError,
    check_response,
    content_length,
    describe_failure,
)
from kdkit_ecg.download.verified_files import file_checksum

CHUNK = 1 << 16  # bytes

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Fetches files below the address `base` into `folder`.

    most_bytes returns the size at which the transfer of a file is stopped. on_bytes is called with the number of bytes
    received, or, if negative, discarded.
    """

    session: requests.Session
    base: str
    folder: Path
    backoff: Backoff
    most_bytes: Callable[[ReleaseFile], int]
    on_bytes: Callable[[int], None]

    def fetch(self, file: ReleaseFile) -> None:
        """Fetch one file. An existing .part file is resumed, and stays if this call is interrupted.

        Raises TransferError with the reason, DiskFullError, and Stopped.
        """
        part = file.part(self.folder)
        try:
            # A link in the folder could point to any of the user's files, which would be overwritten. The folder itself
            # may be a link that the user made.
            for path in (part, *part.parents[: file.path.count("/")]):
                if path.is_symlink():
                    raise TransferError(f"{path} is a link, and links are not followed; move or delete it")
            part.parent.mkdir(parents=True, exist_ok=True)
            self._complete(file, part)
            if file_checksum(part, file.algorithm) != file.sum:
                # The .part file may belong to an older file, or bytes were damaged in transit: start again once.
                self._discard(part)
                self._complete(file, part)
                if file_checksum(part, file.algorithm) != file.sum:
                    self._discard(part)
                    raise TransferError("its bytes do not match the checksum in the list, in two downloads")
            # The file gets its own name only now, so a file with that name is complete.
            part.replace(file.below(self.folder))
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise DiskFullError(
                    f"{part} cannot be written: {error.strerror}; free some space and run the same command again"
                ) from error
            raise TransferError(f"cannot be written: {error.strerror or error}") from error

    def _complete(self, file: ReleaseFile, part: Path) -> None:
        """Request the file until the .part is complete. Only tries without a new byte count towards MAX_TRIES."""
        tries = 0
        while True:
            self.backoff.wait_for_pause()
            size_before = _size(part)
            try:
                self._request(file, part)
                return
            except (requests.RequestException, HTTPError, RetryLater) as error:
                tries = 1 if _size(part) > size_before else tries + 1
                if tries >= MAX_TRIES:
                    raise UnreachableError(f"{describe_failure(error)}, {MAX_TRIES} times") from error
            self.backoff.wait_after_failure(tries)

    def _request(self, file: ReleaseFile, part: Path) -> None:
        """Send one request and append its bytes to the .part. Returns when the file is complete."""
        start = _size(part)
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self.session.get(address(self.base, file), headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # no bytes remain, or the .part is longer than the file
                if response.headers.get("Content-Range", f"bytes */{start}") != f"bytes */{start}":
                    self._discard(part)
                    raise RetryLater("the .part file is longer than the file")
                return
            check_response(response, self.backoff)
            content_range = re.match(r"bytes ([0-9]{1,18})-", response.headers.get("Content-Range", ""))
            resumes = response.status_code == 206 and content_range is not None and int(content_range[1]) == start
            if start and not resumes:  # a server without ranges sends the whole file
                self._discard(part)
            if response.status_code == 206 and not resumes:
                raise RetryLater("the server sent another range than the requested one")
            # The list has no sizes, and the checksum is known only at the end. Without a limit, a server that does not
            # send the file in the list could fill the disk.
            size, limit = (start if resumes else 0), self.most_bytes(file)
            self._require_size(part, size + (content_length(response) or 0), limit)
            with part.open("ab" if resumes else "wb") as out:
                # read1 returns the bytes received so far; read waits for a full chunk, and loses it if the connection
                # breaks.
                while chunk := response.raw.read1(CHUNK):
                    out.write(chunk)
                    self.on_bytes(len(chunk))
                    size += len(chunk)
                    self._require_size(part, size, limit)
                    if self.backoff.stop.is_set():
                        raise Stopped

    def _require_size(self, part: Path, size: int, limit: int) -> None:
        if size > limit:
            self._discard(part)
            raise TransferError(
                f"the server sends {format_bytes(size)} or more, expected at most {format_bytes(limit)}; if the file "
                "is right, put it in the folder by other means"
            )

    def _discard(self, part: Path) -> None:
        self.on_bytes(-_size(part))
        part.unlink(missing_ok=True)


def address(base: str, file: ReleaseFile) -> str:
    """Return the address of a file."""
    return file.url or base + quote(file.path)  # names may contain spaces


def _size(part: Path) -> int:
    return part.stat().st_size if is_file(part) else 0
