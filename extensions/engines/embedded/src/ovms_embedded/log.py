"""Log lines as OVMS writes them: ``[date time.ms][thread][logger][level][file:line] text``."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

TRACE = 5
LEVELS = {
    "TRACE": TRACE,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
}
NAMES = {TRACE: "trace", logging.CRITICAL: "critical"} | {
    value: name.lower() for name, value in LEVELS.items() if name != "TRACE"
}

serving = logging.getLogger("ovms.serving")
manager = logging.getLogger("ovms.modelmanager")
calculator = logging.getLogger("ovms.llm_calculator")


class OvmsFormatter(logging.Formatter):
    """One line per record; a line break within a text would look like a line of another kind."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        milliseconds = int(record.msecs)
        logger = record.name.removeprefix("ovms.")
        level = NAMES.get(record.levelno, record.levelname.lower())
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        text = text.replace("\n", " | ")
        where = f"{record.filename}:{record.lineno}"
        return f"[{clock}.{milliseconds:03d}][{record.thread}][{logger}][{level}][{where}] {text}"


def configure(level: str, path: str | None) -> None:
    """Write to standard output, and to a file as well if one is named.

    :raises OSError: the file cannot be opened.
    """
    root = logging.getLogger("ovms")
    root.setLevel(LEVELS[level])
    root.propagate = False
    root.handlers = [logging.StreamHandler(sys.stdout)]
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        root.addHandler(logging.FileHandler(path, encoding="utf-8"))
    for handler in root.handlers:
        handler.setFormatter(OvmsFormatter())
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
