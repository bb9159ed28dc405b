"""Serve a small release on a local HTTP server, with faults of servers and connections on single requests."""

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep

from kdkit_ecg.download import backoff

Fault = Callable[["Handler", bytes], None]


class ReleaseServer(ThreadingHTTPServer):
    """Serves `files`. Each GET uses up one fault of its path in `faults`, after which the one in `always` applies."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(files)
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.always: dict[str, Fault] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.supports_ranges = True
        self.supports_head = True
        self.list_text = "".join(f"{hashlib.sha256(body).hexdigest()} {path}\n" for path, body in files.items())
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files/tiny/1.0.0/"

    def gets(self, path: str) -> list[str]:
        """Return the ranges requested of a file, in order."""
        return [span for method, requested, span in self.requests if (method, requested) == ("GET", path)]

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing about clients that disconnected."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ReleaseServer

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        body = self._body()
        if body is None or not self.server.supports_head:
            self.respond(404 if body is None else 405, b"")
        else:
            self.respond(200, b"", {"Content-Length": str(len(body))})

    def do_GET(self) -> None:
        path, body = self._path(), self._body()
        faults = self.server.faults[path]
        fault = faults.pop(0) if faults else self.server.always.get(path)
        if body is None:
            self.respond(404, b"not here")
        elif fault is not None:
            fault(self, body)
        else:
            self.send(body)

    def send(self, body: bytes) -> None:
        """Send the file, or the requested range of it."""
        span = self.headers.get("Range")
        if span is None or not self.server.supports_ranges:
            self.respond(200, body)
            return
        start = int(span.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            self.respond(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        else:
            self.respond(206, body[start:], {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"})

    def respond(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _path(self) -> str:
        return self.path.removeprefix("/files/tiny/1.0.0/").replace("%20", " ")

    def _body(self) -> bytes | None:
        path = self._path()
        self.server.requests.append((self.command, path, self.headers.get("Range", "")))
        return self.server.list_text.encode() if path == "SHA256SUMS.txt" else self.server.files.get(path)


def disconnect(after: int) -> Fault:
    """Close the connection after this number of bytes, fewer than in the Content-Length."""

    def fault(handler: Handler, body: bytes) -> None:
        span = handler.headers.get("Range") if handler.server.supports_ranges else None
        start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
        handler.send_response(206 if span else 200)
        handler.send_header("Content-Length", str(len(body) - start))
        if span:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.end_headers()
        handler.wfile.write(body[start : start + after])
        handler.close_connection = True

    return fault


def corrupt(handler: Handler, body: bytes) -> None:
    """Send the right number of wrong bytes."""
    handler.send(bytes(byte ^ 1 for byte in body))


def send_another_range(handler: Handler, body: bytes) -> None:
    """Send a range that was not requested."""
    handler.respond(206, body[7:], {"Content-Range": f"bytes 7-{len(body) - 1}/{len(body)}"})


def refuse(code: int, **headers: str) -> Fault:
    """Respond with an error status."""
    header_fields = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda handler, _: handler.respond(code, b"no", header_fields)


def send_slowly(piece: int, pause: float) -> Fault:
    """Send this number of bytes at a time, with a pause in s after each."""

    def fault(handler: Handler, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for start in range(0, len(body), piece):
            handler.wfile.write(body[start : start + piece])
            handler.wfile.flush()
            sleep(pause)

    return fault


def send_chunks(count: int, sent: list[int] | None = None) -> Fault:
    """Send this number of chunks of 64 KiB without declaring a length. sent: to which the size of each is added."""

    def fault(handler: Handler, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        piece = bytes(1 << 16)
        for _ in range(count):
            try:
                handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            except OSError:  # the client has closed the connection
                break
            if sent is not None:
                sent.append(len(piece))
        handler.close_connection = True

    return fault


@contextmanager
def serving(files: dict[str, bytes], monkeypatch) -> Iterator[ReleaseServer]:
    """Serve files for `kdkit ecg fetch`, which waits only briefly before it tries again."""
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ReleaseServer(files) as server:
        yield server
        server.shutdown()
