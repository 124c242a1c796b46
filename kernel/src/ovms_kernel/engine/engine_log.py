"""The engine's log: opened, kept from growing without end, and read for why something failed."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import time
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ovms_kernel.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

LOG_LIMIT = 16 << 20
"""Bytes of an engine log before it is set aside."""
LOGS_KEPT = 3
READ_LIMIT = 64 << 10
"""Bytes at the end of a log that are read for a cause."""
ERRORS = re.compile(r"\[(error|critical)\]|error while loading|Traceback|Error:|terminate called", re.IGNORECASE)
PREFIX = re.compile(r"^\[[^\]]*\]\[[^\]]*\]\[[^\]]*\]\[[^\]]*\]\[[^\]]*\]\s*")
"""Time, thread, logger, level and place before an OVMS log line."""

STAMP = re.compile(r"^\[(?P<time>\d{4}-[^\]]*)\]\[")
"""The time of such a line."""
ANSWERED = re.compile(r"^\[[^\]]*\]\[[^\]]*\]\[[^\]]*_calculator\]")
"""A line that tells what a model's calculator answered to a request."""
END = timedelta(seconds=5)
"""How long before an engine's end a line may tell of its cause."""


class EngineLog:
    """The log file of one engine after another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin = 0
        """Where the lines of the engine that was started last begin."""

    def open(self) -> None:
        """Begin the lines of a new engine, setting a large file aside first.

        :raises Unavailable: it cannot be written.
        """
        open_log(self.path)
        self._begin = self.position()

    def cut(self) -> None:
        """Set a large file aside while the engine goes on writing."""
        if cut_log(self.path):
            self._begin = 0

    def position(self) -> int:
        """Return where the log ends now."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def about(self, subject: str, since: int = 0) -> str:
        """Return the engine's last log lines of errors that name a model, else of any error.

        :param since: a position in the log; nothing before it counts, nor what an earlier engine wrote.
        """
        since = since if since <= self.position() else 0  # the log was set aside in the meantime
        lines = log_lines(self.path, max(since, self._begin))
        about = [line for line in lines if subject in line]
        found = error_lines(about) if about else []
        return "; ".join(found or error_lines(lines, most=3))

    def last_errors(self) -> list[str]:
        """Return the lines that tell why the engine ended."""
        return error_lines(last_lines(self.path, self._begin))


def open_log(path: Path) -> None:
    """Make the engine's log file, setting a large one aside first.

    :raises Unavailable: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            # A pipe would wait for a reader for ever, and /dev/full has no end.
            log.warning("The engine's log %s is not a file; it is replaced by one.", path)
            path.unlink()
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            _make_room(path)
            path.replace(path.with_suffix(".log.1"))
        path.open("ab").close()
    except OSError as error:
        raise Unavailable(
            f"The engine's log {path} cannot be written ({error.strerror}); fix that and retry."
        ) from error


def cut_log(path: Path) -> bool:
    """Set the lines of a large log aside while the engine goes on writing to it; return whether that was done.

    The engine's handle appends, so it goes on at the beginning of the emptied file. On Windows it would not, so there
    the log is only set aside at a start.
    """
    copy = path.with_suffix(".log.partial")
    try:
        if sys.platform == "win32" or path.stat().st_size <= LOG_LIMIT:
            return False
        # Before the older ones move up, or a full disk would cost one of them at each try.
        shutil.copyfile(path, copy)
        _make_room(path)
        copy.replace(path.with_suffix(".log.1"))
        os.truncate(path, 0)
    except FileNotFoundError:
        return False  # an engine that runs elsewhere writes no log here
    except OSError as error:
        with suppress(OSError):
            copy.unlink()
        log.warning("The engine's log %s cannot be set aside (%s); fix that.", path, error.strerror)
        return False
    return True


def _make_room(path: Path) -> None:
    for number in range(LOGS_KEPT, 1, -1):
        newer = path.with_suffix(f".log.{number - 1}")
        if newer.exists():
            newer.replace(path.with_suffix(f".log.{number}"))


def log_lines(path: Path, begin: int = 0) -> list[str]:
    """Return the lines of a log after a position in bytes, the last of them where they are many."""
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begin, size - READ_LIMIT, 0))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def last_lines(path: Path, begin: int = 0) -> list[str]:
    """Return the lines around the end of an engine, without what it said of requests that it answered.

    The engine's clock may show another zone, so the times in the log are compared with each other only.

    :param begin: a position in bytes; nothing before it counts.
    """
    try:
        if time.time() - path.stat().st_mtime > END.total_seconds():
            return []
    except OSError:
        return []
    lines = log_lines(path, begin)
    times = [_time_of(line) for line in lines]
    last = max((each for each in times if each), default=None)
    found = []
    keep = True
    for line, written in zip(lines, times, strict=True):
        if written and last:  # a line without a time goes on the one before it
            keep = last - written <= END and not ANSWERED.match(line)
        if keep:
            found.append(line)
    return found


def _time_of(line: str) -> datetime | None:
    match = STAMP.match(line)
    try:
        return datetime.fromisoformat(match["time"]) if match else None
    except ValueError:
        return None


def error_lines(lines: list[str], *, most: int = 5) -> list[str]:
    """Return the last lines that tell of errors, without their prefix; else the last that is not of OVMS's own form.

    Such a line is what the loader, the shell or Python says of an engine that did not come so far.
    """
    found = [PREFIX.sub("", line).strip() for line in lines if ERRORS.search(line)]
    if not found:
        found = [line.strip() for line in lines if line.strip() and not PREFIX.match(line)][-1:]
    return found[-most:]
