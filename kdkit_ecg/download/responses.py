"""Interpret a server's response: it is the file, the request should be retried, or the file cannot be fetched."""

import re
from threading import Event

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from kdkit import DataError
from kdkit.utils.reprs import format_bytes
from kdkit_ecg.download.backoff import MAX_RETRY_AFTER, MAX_TRIES, Backoff, retry_after_seconds

MAX_LIST = 64 << 20  # bytes of a text; the largest list, that of the Challenge 2021, has about 20 MB
_PIECE = 1 << 16  # bytes of a text that are read at a time

TIMEOUT = (15.0, 60.0)  # s to connect, and between two pieces of data

# Checksums and ranges refer to the file itself, so the server must not compress it.
UNCOMPRESSED = {"Accept-Encoding": "identity"}

_RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}


class TransferError(DataError):
    """A file could not be fetched."""


class UnreachableError(TransferError):
    """The server did not send a file in several tries."""


class DiskFullError(DataError):
    """The disk is full or read-only, so no other file can be written either."""


class RetryLater(Exception):  # noqa: N818 -- not an error yet: the next try may succeed
    """A response after which the same request should be repeated."""


def check_response(response: requests.Response, backoff: Backoff) -> None:
    """Return if the response contains the file or a range of it.

    Raises RetryLater if the request may be repeated; all files then wait as long as the server requests. Raises
    TransferError if it should not be repeated.
    """
    if response.status_code in (200, 206):
        return
    problem = _describe_status(response)
    if response.status_code not in _RETRY_STATUS:
        raise TransferError(problem)
    seconds = retry_after_seconds(response.headers.get("Retry-After"))
    if seconds > MAX_RETRY_AFTER:
        raise UnreachableError(f"{problem} and requests a wait of {seconds:.0f} s")
    backoff.pause_all(seconds)
    raise RetryLater(problem)


def fetch_text(session: requests.Session, source: str) -> str:
    """Return a text from the server, with the same number of tries as for a file.

    Raises DataError if it cannot be fetched, and if it has more than MAX_LIST bytes, even after decompression.
    """
    backoff = Backoff(Event())
    for tries in range(1, MAX_TRIES + 1):
        backoff.wait_for_pause()
        try:
            with session.get(source, timeout=TIMEOUT, stream=True) as response:
                if response.ok:
                    return _read_limited(response, source).decode("utf-8")
            problem = _describe_status(response)
            if response.status_code not in _RETRY_STATUS:  # e.g. 404: the address is wrong
                break
            backoff.pause_all(min(MAX_RETRY_AFTER, retry_after_seconds(response.headers.get("Retry-After"))))
        except (requests.RequestException, UnicodeDecodeError) as error:
            problem = describe_failure(error)
        if tries < MAX_TRIES:
            backoff.wait_after_failure(tries)
    raise DataError(f"{source} cannot be fetched: {problem}; check the address and the connection")


def content_length(response: requests.Response) -> int | None:
    """Return the size in bytes that a response declares, or None if it declares none."""
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def _read_limited(response: requests.Response, source: str) -> bytes:
    text, declared = bytearray(), content_length(response) or 0
    for piece in response.iter_content(_PIECE):
        text += piece
        if max(len(text), declared) > MAX_LIST:
            raise DataError(
                f"{source} has more than {format_bytes(MAX_LIST)}, which is too long for the list of a release; is the "
                "address right?"
            )
    return bytes(text)


def describe_failure(error: Exception) -> str:
    """Return a short description of a failed request."""
    if isinstance(error, requests.Timeout | ReadTimeoutError):
        return "the server did not respond in time"
    if isinstance(error, requests.RequestException | HTTPError):
        return "the connection failed or was interrupted"
    return str(error)


def _describe_status(response: requests.Response) -> str:
    return f"the server responds with {response.status_code} {response.reason}"
