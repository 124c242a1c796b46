"""Where log lines go: to the host as hclog's JSON, to a file that is rotated, or readable to a person.

hclog's rules (go-plugin ``log_entry.go``): ``@level``, ``@message`` and ``@timestamp`` must be strings or the *host*
panics, and the time needs six digits and a zone or the level is lost.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import queue
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LINE_LIMIT = 48 << 10
"""Bytes of a line for the host, which splits lines at 64 KiB and then no longer understands them."""
WAITING = 10_000
"""Lines that wait for a host that does not read; further ones are dropped, as the work must not wait for a log."""
FILE_LIMIT = 4 << 20
FILES_KEPT = 3
LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warn"), (logging.INFO, "info"), (logging.DEBUG, "debug"))
READABLE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

QUIET = (
    "asyncio", "filelock", "grpc", "hpack", "httpcore", "httpx", "modelscope", "modelscope_hub", "stevedore", "urllib3",
)  # fmt: skip


class HclogFormatter(logging.Formatter):
    """Makes one JSON line of a record, as hclog would."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "@level": next((name for level, name in LEVELS if record.levelno >= level), "trace"),
            "@message": message,
            "@module": record.name,
            "@timestamp": f"{seconds}.{int(record.created % 1 * 1_000_000):06d}Z",
        }
        # ASCII, so that characters are bytes and lone surrogates do no harm.
        line = json.dumps(fields)
        if len(line) > LINE_LIMIT:
            # What escaping adds is not known beforehand: a character becomes twelve at most.
            fields["@message"] = message[: LINE_LIMIT // 16] + " …"
            line = json.dumps(fields)
        return line


class DescriptorHandler(logging.Handler):
    """Writes lines to a descriptor; a host that is gone is no error."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line at once, so that lines of threads and of dying processes stay whole."""
        try:
            data = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
            while data:
                data = data[os.write(self._descriptor, data) :]
        except (OSError, ValueError, TypeError):
            pass


class Log:
    """The logging of a process under a host: records are queued, and a thread writes them."""

    def __init__(self, descriptor: int, level: str = "INFO") -> None:
        # A record that cannot be formatted must not be printed where the host would read it.
        logging.raiseExceptions = False
        to_host = DescriptorHandler(descriptor)
        to_host.setFormatter(HclogFormatter())
        waiting: queue.Queue[logging.LogRecord] = queue.Queue(WAITING)
        self._listener = logging.handlers.QueueListener(waiting, to_host)
        root = logging.getLogger()
        root.handlers[:] = [QueueHandler(waiting)]
        set_level(level)
        logging.captureWarnings(capture=True)
        self._listener.start()

    def add_file(self, path: Path) -> None:
        """Write to a file as well; a host that runs as a service may keep no log at all."""
        if to_file := open_file(path):
            self._listener.handlers += (to_file,)

    def close(self) -> None:
        """Write what waits."""
        self._listener.stop()
        for handler in self._listener.handlers:
            handler.close()


class QueueHandler(logging.handlers.QueueHandler):
    """Queues records unformatted: the writers have formats of their own."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Fix the message now, as its arguments may change."""
        record.msg, record.args = record.getMessage(), None
        return record


class RotatingFile(logging.handlers.RotatingFileHandler):
    """A file that is set aside when it is large; on Windows only if no other process has it open, else it grows on."""

    def doRollover(self) -> None:  # noqa: N802 - logging's name
        """Set the file aside and begin a new one."""
        try:
            super().doRollover()
        except OSError:
            self.maxBytes += FILE_LIMIT  # until it is tried again
            self.stream = self.stream or self._open()


def set_up(level: str) -> None:
    """Log to stderr in this process, readable to a person."""
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(logging.Formatter(READABLE))
    logging.getLogger().handlers[:] = [to_stderr]
    set_level(level)


def open_file(path: Path) -> logging.Handler | None:
    """Return a handler that writes readable lines and sets a large file aside; ``None`` if there cannot be one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        to_file = RotatingFile(
            path, maxBytes=FILE_LIMIT, backupCount=FILES_KEPT, encoding="utf-8", errors="backslashreplace"
        )
    except OSError as error:
        logging.getLogger(__name__).warning("The log file %s cannot be written: %s", path, error.strerror)
        return None
    to_file.setFormatter(logging.Formatter(READABLE))
    return to_file


def set_level(level: str) -> None:
    """Set our level by name, and keep libraries quiet whose chatter may hold what must not be logged."""
    root = logging.getLogger()
    root.setLevel(logging.getLevelNamesMapping().get(level.upper(), logging.INFO))
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
