"""A terminal of 80 columns, as a person has one in front of them: a pseudo-terminal and what it would show."""

import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Self

import pyte
from wcwidth import wcswidth

COLUMNS = 80
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
ROWS = 400
"""Enough for all that a command prints, so that nothing scrolls away."""


class Terminal:
    """One command in a terminal of its own; at the end of the block it is killed if it still runs."""

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        *,
        folder: Path,
        limit: float = 60.0,
        columns: int = COLUMNS,
    ) -> None:
        self._end = time.monotonic() + limit
        self._screen = pyte.Screen(columns, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        """Everything that arrived, with its escape sequences."""
        self._pid, self._file = pty.fork()
        if self._pid == 0:
            ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
            os.chdir(folder)
            os.execvpe(words[0], list(words), dict(environment))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._file)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._file, text.encode())

    def wait_for(self, text: str) -> None:
        """Return when the screen shows a text."""
        while text not in self.shown():
            assert self._read(), f"the command ended without {text!r}:\n{self.shown()}"

    def code(self) -> int:
        """Wait for the end of the command and return its exit code."""
        while self._read():
            pass
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def shown(self) -> str:
        """Return what the screen shows, without empty lines at its end."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def broken(self) -> list[str]:
        """Return the lines that the terminal had to break, as they had more columns than it has."""
        text = ESCAPES.sub(b"", self.raw).decode(errors="replace")
        return [line for line in re.split(r"\r?\n", text) if wcswidth(line.rpartition("\r")[2]) > COLUMNS]

    def _read(self) -> bool:
        """Take what arrives next; return whether there may be more."""
        left = self._end - time.monotonic()
        ready, _, _ = select.select([self._file], [], [], max(0.0, left))
        assert ready, f"the command does not end; it shows:\n{self.shown()}"
        try:
            data = os.read(self._file, 65536)
        except OSError:  # Linux says so when the other side is closed
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)
