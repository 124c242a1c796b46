"""Noticing that a file has changed, cheaply enough to ask for every request."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PERIOD = 0.02
"""Seconds for which one look at a file holds."""

Signature = tuple[int, int, int] | None
"""What changes with a file's content; ``None`` if there is no file."""


class FileWatch:
    """The signature of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._looked = -PERIOD
        self._found: Signature = None

    def look(self) -> Signature:
        """Return the file's signature now."""
        self._looked = time.monotonic()
        try:
            status = self.path.stat()
        except OSError:
            self._found = None
        else:
            self._found = status.st_ino, status.st_mtime_ns, status.st_size
        return self._found

    def glance(self) -> Signature:
        """Return the file's signature as of the last look, if that was just now."""
        return self._found if time.monotonic() - self._looked < PERIOD else self.look()
