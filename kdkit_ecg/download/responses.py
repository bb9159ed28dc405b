"""Judge what a server answers: it is the file, ask again, or give up."""

from threading import Event

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from kdkit import DataError
from kdkit_ecg.download.backoff import ASKED, TRIES, Backoff, asked_wait

TIMEOUT = (15.0, 60.0)  # s to connect, and between two pieces

# Sums are of the bytes as they are, and so are ranges: nothing may be compressed on the way.
PLAIN = {"Accept-Encoding": "identity"}

_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class TransferError(DataError):
    """A file that could not be fetched, and why."""


class UnreachableError(TransferError):
    """A file that the server did not give, though it was asked often enough."""


class DiskFullError(DataError):
    """No file can be written any more."""


class AskAgain(Exception):  # noqa: N818 -- no error yet: the next try may do
    """An answer that may be another one later."""


def judge(response: requests.Response, patience: Backoff) -> None:
    """Return where the answer is the file or a range of it.

    Raises AskAgain, having made all files wait as long as the server asks, and TransferError where that is of no use.
    """
    if response.status_code in (200, 206):
        return
    said = f"the server answers {response.status_code} {response.reason}"
    if response.status_code not in _AGAIN:
        raise TransferError(said)
    seconds = asked_wait(response.headers.get("Retry-After"))
    if seconds > ASKED:
        raise UnreachableError(f"{said} and asks to come back in {seconds:.0f} s")
    patience.pause(seconds)
    raise AskAgain(said)


def fetch_text(session: requests.Session, source: str) -> str:
    """Return a text of the server, which is tried as often as a file. Raises DataError."""
    patience = Backoff(Event())
    for tries in range(1, TRIES + 1):
        patience.wait_turn()
        try:
            answer = session.get(source, timeout=TIMEOUT)
            if answer.ok:
                return answer.content.decode("utf-8")
            problem = f"the server answers {answer.status_code} {answer.reason}"
            if answer.status_code not in _AGAIN:
                break
            patience.pause(min(ASKED, asked_wait(answer.headers.get("Retry-After"))))
        except (requests.RequestException, UnicodeDecodeError) as error:
            problem = said(error)
        if tries < TRIES:
            patience.wait_after(tries)
    raise DataError(f"{source} cannot be fetched: {problem}; is the address right, and is there a connection?")


def said(error: Exception) -> str:
    """Return what to say of a try that failed."""
    if isinstance(error, requests.Timeout | ReadTimeoutError):
        return "the server did not answer in time"
    if isinstance(error, requests.RequestException | HTTPError):
        return "the connection failed or was cut"
    return str(error)
