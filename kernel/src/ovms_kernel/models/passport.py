"""What models answered to fixed requests, by weights, engine, driver and device, and where they answered nonsense.

One file for the weights of a model, ``<data folder>/passports/<digest>.json``, so that it outlives a pull of the same
weights; this module is its only reader and writer.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from ovms_kernel.files import read_json, write_atomically
from ovms_kernel.models.judge import Sample  # noqa: TC001 - msgspec reads annotations

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

VERSION = 1
CPU = "CPU"
KEPT = 16
"""Entries of one model: those of the engines and drivers that were used last."""


class Key(msgspec.Struct, frozen=True):
    """Where weights ran."""

    engine: str
    """Version of the engine."""
    device: str
    driver: str = ""
    """Version of the device's driver; empty for a CPU, and where the system does not tell."""


class PassportEntry(msgspec.Struct, frozen=True):
    """What one model answered in one place."""

    key: Key
    answers: tuple[Sample, ...]
    """One for each of the fixed requests, in their order."""
    fault: str = ""
    """What is wrong with the answers; empty if nothing is."""
    at: str = ""
    """When it was noted, as ISO 8601."""


class Passports:
    """The store.

    :param folder: made when something is noted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[float, list[PassportEntry]]] = {}
        """By digest: when the file was written that was read, and what it says."""

    def entries(self, digest: str) -> list[PassportEntry]:
        """Return all that is known of those weights, the latest last."""
        path = self._path(digest)
        try:
            written = path.stat().st_mtime_ns
        except OSError:
            return []
        known = self._read.get(digest)
        if known is None or known[0] != written:
            known = self._read[digest] = written, list(_parse(read_json(path)))
        return known[1]

    def find(self, digest: str, key: Key) -> PassportEntry | None:
        """Return what those weights answered there; ``None`` if they were never asked."""
        return next((each for each in self.entries(digest) if each.key == key), None)

    def note(self, digest: str, model_id: str, entry: PassportEntry) -> None:
        """Keep an entry instead of the one with the same key."""
        stamped = replace(entry, at=entry.at or datetime.now(UTC).isoformat(timespec="seconds"))
        kept = [each for each in self.entries(digest) if each.key != entry.key]
        value = {"version": VERSION, "model": model_id, "entries": msgspec.to_builtins([*kept, stamped][-KEPT:])}
        write_atomically(self._path(digest), json.dumps(value, ensure_ascii=False).encode())

    def forget(self, digest: str) -> bool:
        """Remove what is known of those weights; return whether there was anything."""
        self._read.pop(digest, None)
        with suppress(FileNotFoundError):
            self._path(digest).unlink()
            return True
        return False

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest[:32] or 'none'}.json"


def _parse(value: dict[str, Any] | None) -> Iterable[PassportEntry]:
    """Yield the entries of a file; of a damaged one, those that can be used."""
    if value is None or value.get("version") != VERSION or not isinstance(value.get("entries"), list):
        return
    for each in value["entries"]:
        try:
            yield msgspec.convert(each, PassportEntry)
        except msgspec.ValidationError:
            log.warning("An entry of a model's passport is damaged and is made again.")
