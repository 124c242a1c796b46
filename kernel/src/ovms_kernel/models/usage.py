"""What models, unfinished pulls, removals and compiled code occupy on disk."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from ovms_kernel.files import disk_usage, occupied, read_json
from ovms_kernel.models.staging import JOURNAL, TRASH

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ovms_kernel.settings import Settings


class Staged(msgspec.Struct, frozen=True):
    """One model that is not published yet."""

    id: str
    directory: Path
    size: int
    """Bytes on disk."""
    modified: datetime
    """Last time that something was added."""
    offered: bool
    """It is older than the setting ``staging_age``: nobody seems to want it any more."""


class Usage(msgspec.Struct, frozen=True):
    """What models occupy on disk, in bytes."""

    models: Mapping[str, int]
    staging: int
    trash: int
    """Of removals that were interrupted; the next start or removal empties it."""
    free: int
    cache: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Compiled code of each model; ``*`` is what an OVMS keeps for all models together."""


def cache_sizes(settings: Settings) -> dict[str, int]:
    """Return the bytes of compiled code by model id; what lies outside the models' folders is counted as ``*``."""
    if not settings.cache_dir.is_dir():
        return {}
    found: dict[str, int] = {}
    for each in sorted(settings.cache_dir.iterdir()):
        name = unquote(each.name).replace("@", "/") if each.is_dir() else "*"
        found[name] = found.get(name, 0) + (disk_usage(each) if each.is_dir() else each.stat().st_size)
    return found


def staged_models(settings: Settings, age: float) -> list[Staged]:
    """Return what is in staging; ``age`` in seconds decides what is offered for removal."""
    if not settings.staging_dir.is_dir():
        return []
    found = []
    for folder in sorted(settings.staging_dir.iterdir()):
        journal = read_json(folder / JOURNAL) if folder.is_dir() else None
        if journal is None or not isinstance(model_id := journal.get("id"), str):
            continue
        size, newest = 0, 0.0
        for root, _, names in os.walk(folder):
            for name in names:
                try:
                    status = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118 - thousands of parts
                except FileNotFoundError:
                    continue
                size += occupied(status)
                newest = max(newest, status.st_mtime)
        found.append(
            Staged(model_id, folder, size, datetime.fromtimestamp(newest, UTC), offered=time.time() - newest > age)
        )
    return found


def trash_size(settings: Settings) -> int:
    """Return the bytes that removals left."""
    return sum(disk_usage(folder) for folder in settings.staging_dir.glob(TRASH + "*"))
