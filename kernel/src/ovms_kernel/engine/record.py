"""What earlier installs found out: which platform was chosen by name, and which were skipped and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from ovms_kernel.files import read_json, write_atomically

if TYPE_CHECKING:
    from pathlib import Path


class Skipped(msgspec.Struct, frozen=True):
    """A platform that fits better than the one in use and was not installed."""

    platform: str
    cause: str
    """One sentence."""
    final: bool
    """Its archive was refused or does not run here; otherwise the download failed, which may change."""


class Record(msgspec.Struct, frozen=True):
    """The content of ``engine/platform.json``."""

    chosen: str = ""
    """The platform that the last install was told to use; empty = the best."""
    skipped: tuple[Skipped, ...] = ()


def read_record(path: Path) -> Record:
    """Return what is recorded; nothing if the file is absent or damaged."""
    value = read_json(path) or {}
    try:
        return Record(str(value["chosen"]), tuple(Skipped(**each) for each in value["skipped"]))  # type: ignore[attr-defined]
    except (KeyError, TypeError):
        return Record()


def write_record(path: Path, record: Record) -> None:
    """Record it."""
    write_atomically(path, (json.dumps(msgspec.to_builtins(record), indent=1) + "\n").encode())
