"""A terminal of 80 columns, as a person has one in front of them: a pseudo-terminal and what it would show."""

import os
import pty
import re
import select
import struct
import subprocess
import sys
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
ENTER = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Makes the terminal that is stdin the one that Ctrl-C comes from, and becomes the command."""
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
        # No fork of this process, whose threads may hold what the child needs before it is another program.
        self._file, inner = pty.openpty()
        ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        command = [sys.executable, "-I", "-S", "-c", ENTER, *words]
        self._process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, cwd=folder, env=dict(environment)
        )
        os.close(inner)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
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
        return self._process.wait()

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
