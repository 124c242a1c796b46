"""What earlier installs found out: which platform was chosen by name, and which were skipped and why."""

from __future__ import annotations

import msgspec


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
