"""A terminal for tests: a pseudo-terminal whose screen is interpreted by pyte."""

import os
import re
import signal
import struct
import threading
import time
from pathlib import Path

import pyte
import pytest

from tests.helpers.command_line import environment
from tests.helpers.processes import ForkedPython

fcntl, pty, termios = (
    pytest.importorskip(name, reason="Windows has no pseudo-terminals") for name in ("fcntl", "pty", "termios")
)


class Terminal:
    """A pseudo-terminal. A thread reads what is written to it.

    file: for a console in this process. raw: all characters that were written.
    """

    def __init__(self, columns: int = 100, lines: int = 30) -> None:
        self._leader, follower = pty.openpty()
        self.file = os.fdopen(follower, "w")
        self.raw = ""
        self._screen = pyte.HistoryScreen(columns, lines, history=1000)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._process: ForkedPython | None = None
        self.resize(columns, lines)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, arguments: list[str], folder: Path, **variables: str) -> None:
        """Start a Python program whose terminal this is. variables: more of its environment."""
        inherited = {name: value for name, value in environment().items() if name not in ("COLUMNS", "LINES")}
        self._process = ForkedPython(
            arguments, folder, {**inherited, **variables}, terminal=os.ttyname(self.file.fileno())
        )
        self.file.close()  # so that the reader sees the end of the program

    def press_ctrl_c(self) -> None:
        """Press Ctrl-C: the terminal prints ^C and sends a signal to the program."""
        os.write(self._leader, b"\x03")

    def resize(self, columns: int, lines: int) -> None:
        """Change the size. pyte does not wrap lines again, as other terminals do."""
        with self._lock:
            fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
            self._screen.resize(lines, columns)

    @property
    def size(self) -> tuple[int, int]:
        """The columns and lines."""
        return self._screen.columns, self._screen.lines

    @property
    def screen(self) -> list[str]:
        """The lines on the screen, without spaces at their ends."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """All lines, with those that were scrolled off the screen."""
        with self._lock:
            width = range(self._screen.columns)
            top = ["".join(line[column].data for column in width).rstrip() for line in self._screen.history.top]
            return "\n".join([*top, *(line.rstrip() for line in self._screen.display)]).rstrip()

    def wait_for(self, pattern: str, seconds: float = 90) -> str:
        """Wait until a regular expression is on the screen, and return the screen."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, shown := "\n".join(self.screen)):
            assert time.monotonic() < deadline, shown
            assert self._process is None or self._process.poll() is None, shown
            time.sleep(0.05)
        return shown

    def wait(self) -> int:
        """Wait until the program has ended and everything is read, and return its exit code."""
        if self._process is None:
            self.file.close()
            self._reader.join(60)
            return 0
        code = self._process.wait(120)
        self._reader.join(60)
        return code

    def close(self) -> None:
        """End the program and the terminal."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self.wait()
        os.close(self._leader)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._leader, 65536)
            except OSError:  # every other side is closed
                return
            with self._lock:
                self.raw += data.decode(errors="replace")
                self._stream.feed(data)
