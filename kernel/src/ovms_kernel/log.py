"""Where log lines go: to stderr, as hclog's JSON under a host and as readable lines otherwise, and to a file of ours.

No prompt, audio, image or key is logged. AOG's own log of plugins may go nowhere, so the file is what a user is
pointed to.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warn", logging.ERROR: "error"}
LINE_LIMIT = 48 << 10
"""Characters of a message; go-plugin cuts lines at 64 KiB and then takes the pieces for raw text (A4)."""
FILE_LIMIT = 8 << 20
QUIET = (
    "asyncio",
    "filelock",
    "grpc",
    "hpack",
    "httpcore",
    "httpx",
    "modelscope",
    "modelscope_hub",
    "stevedore",
    "urllib3",
)
"""Libraries whose chatter is of no use to our users, and may hold what must not be logged."""


class HclogFormatter(logging.Formatter):
    """One JSON object a line, as go-plugin hosts parse it: special fields are text, times have six digits and ``Z``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; anything else than these types in these fields would make the host panic (A4)."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        moment = datetime.fromtimestamp(record.created, UTC)
        return json.dumps(
            {
                "@level": LEVELS.get(record.levelno, "error" if record.levelno > logging.ERROR else "trace"),
                "@message": message[:LINE_LIMIT],
                "@module": record.name,
                "@timestamp": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            }
        )


class SafeStreamHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """A handler that a closed pipe does not upset: when the host is gone, so is the reader of stderr."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say nothing if the pipe is closed."""
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):
            super().handleError(record)


def set_up(level: str, *, hosted: bool, file: Path | None = None) -> None:
    """Send everything that is logged from now on to stderr, and to a file that is set aside when it grows large.

    :param level: a name such as ``INFO``; an unknown one counts as that.
    :param hosted: stderr belongs to a go-plugin host.
    """
    root = logging.getLogger()
    for each in list(root.handlers):
        root.removeHandler(each)
    root.setLevel(logging.getLevelNamesMapping().get(level.upper(), logging.INFO))
    readable = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    stream = SafeStreamHandler(sys.stderr)
    stream.setFormatter(HclogFormatter() if hosted else readable)
    root.addHandler(stream)
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            kept = logging.handlers.RotatingFileHandler(file, maxBytes=FILE_LIMIT, backupCount=3, encoding="utf-8")
        except OSError as error:
            root.warning("The log file %s cannot be written (%s); logging to stderr only", file, error.strerror)
        else:
            kept.setFormatter(readable)
            root.addHandler(kept)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)
    sys.excepthook = lambda kind, error, trace: root.critical("Unexpected error", exc_info=(kind, error, trace))
