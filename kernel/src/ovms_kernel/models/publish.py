"""Staging, publication and removal: a model's folder appears whole and disappears whole.

``models/.staging/<key>/files`` grows until it is complete and on the disk, then gets its note; one rename makes it
``models/<id>``. A crash or power cut leaves the old state, or a staging folder that the next pull goes on with. What is
to vanish is renamed first.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from ovms_kernel.errors import BadRequest, OvmsError
from ovms_kernel.files import disk_usage, read_json, sync, write_atomically
from ovms_kernel.models.files import METADATA
from ovms_kernel.models.metadata import read_metadata
from ovms_kernel.models.names import staging_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ovms_kernel.settings import Settings

TRASH = ".trash-"
JOURNAL = "staging.json"


@dataclass(frozen=True, slots=True)
class Staged:
    """One model that is not published yet."""

    id: str
    directory: Path
    size: int
    """Bytes on disk."""
    modified: datetime
    """Last time that something was added."""
    offered: bool
    """It is older than the setting ``staging_age``: nobody seems to want it any more."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What models occupy on disk, in bytes."""

    models: Mapping[str, int]
    staging: int
    trash: int
    """Of removals that were interrupted; the next start or removal empties it."""
    free: int
    cache: Mapping[str, int] = field(default_factory=dict)
    """Compiled code of each model; ``*`` is what an OVMS keeps for all models together."""


def model_folder(settings: Settings, model_id: str) -> Path:
    """Return where a checked id lives once published."""
    return settings.models_dir.joinpath(*model_id.split("/"))


def staging_folder(settings: Settings, model_id: str) -> Path:
    """Return where a checked id grows."""
    return settings.staging_dir / staging_key(model_id)


def lock_file(settings: Settings, model_id: str) -> Path:
    """Return the lock of one model: held by whoever pulls, publishes, loads or deletes it."""
    return settings.staging_dir / f"{staging_key(model_id)}.lock"


def staged_files(settings: Settings, model_id: str) -> Path:
    """Return the folder of staging that becomes the model's."""
    return staging_folder(settings, model_id) / "files"


def open_staging(settings: Settings, model_id: str, origin: dict[str, str]) -> bool:
    """Make the folders in which a model grows; return whether it was begun before, and from the same origin."""
    folder = staging_folder(settings, model_id)
    begun = is_begun(folder, origin)
    if folder.exists() and not begun:
        discard(settings, folder)
    staged_files(settings, model_id).mkdir(parents=True, exist_ok=True)
    if not begun:
        journal = {"id": model_id, "origin": origin}
        write_atomically(folder / JOURNAL, json.dumps(journal, ensure_ascii=False).encode())
    return begun


def is_begun(folder: Path, origin: dict[str, str]) -> bool:
    """Tell whether that folder of staging was begun from that origin."""
    return (read_json(folder / JOURNAL) or {}).get("origin") == origin


def cache_folder(settings: Settings, model_id: str) -> Path:
    """Return where the embedded engine keeps a model's compiled code; OVMS keeps all models' in the folder above."""
    return settings.cache_dir / quote(staging_key(model_id), safe="@+")


def cache_sizes(settings: Settings) -> dict[str, int]:
    """Return the bytes of compiled code by model id; what lies outside the models' folders is counted as ``*``."""
    if not settings.cache_dir.is_dir():
        return {}
    found: dict[str, int] = {}
    for each in sorted(settings.cache_dir.iterdir()):
        name = unquote(each.name).replace("@", "/") if each.is_dir() else "*"
        found[name] = found.get(name, 0) + (disk_usage(each) if each.is_dir() else each.stat().st_size)
    return found


def check_target(settings: Settings, model_id: str) -> None:
    """Refuse an id whose folder would hold another model or lie in one.

    :raises BadRequest: one sentence names the other model.
    """
    target = model_folder(settings, model_id)
    if "/" in model_id:
        if (target.parent / METADATA).exists():
            raise BadRequest(f"{target.parent.name} is itself a model here, so {model_id} cannot be; delete it first.")
    elif target.is_dir() and not (target / METADATA).exists() and any(target.iterdir()):
        raise BadRequest(f"{model_id} is the folder of an owner's models here; choose a name such as {model_id}/model.")


def publish(settings: Settings, model_id: str) -> Path:
    """Make the staged model the published one, in place of an older one; return its folder.

    The caller holds the model's lock and has written the note, which makes the staged files complete.
    """
    staged = staged_files(settings, model_id)
    target = model_folder(settings, model_id)
    if read_metadata(staged) is None:
        raise OvmsError(f"Model {model_id} is not complete, so it was not published; pull it again.")
    check_target(settings, model_id)
    old = _to_trash(settings, target) if target.exists() else None
    try:
        _rename_into_place(staged, target)
    except OSError as error:
        if old is not None:
            _rename_into_place(old, target)
        raise OvmsError(f"Model {model_id} could not be moved to {target} ({error.strerror}).") from error
    sync(target.parent)
    sync(settings.models_dir)
    if old is not None:
        shutil.rmtree(cache_folder(settings, model_id), ignore_errors=True)  # compiled from the old files
    for each in (old, staging_folder(settings, model_id)):
        if each is not None:
            discard(settings, each)
    return target


def recover(settings: Settings, model_id: str) -> bool:
    """Finish a publication that a crash interrupted; the caller holds the model's lock."""
    staged = staged_files(settings, model_id)
    if (staged / METADATA).exists() and read_metadata(staged) is not None:
        publish(settings, model_id)
        return True
    return False


def remove(settings: Settings, model_id: str) -> None:
    """Take a published model and its compiled code off disk; the caller holds the model's lock."""
    target = model_folder(settings, model_id)
    # First, so that a crash between the two leaves no compiled code of a model that is gone.
    shutil.rmtree(cache_folder(settings, model_id), ignore_errors=True)
    trash = _to_trash(settings, target)
    sync(target.parent)
    if target.parent != settings.models_dir:
        with suppress(OSError):
            target.parent.rmdir()  # only if that was the owner's last model
    discard(settings, trash)


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
                # What a file occupies: a file that grows in ranges is as long as the whole from the start.
                size += getattr(status, "st_blocks", (status.st_size + 511) // 512) * 512
                newest = max(newest, status.st_mtime)
        found.append(
            Staged(model_id, folder, size, datetime.fromtimestamp(newest, UTC), offered=time.time() - newest > age)
        )
    return found


def discard(settings: Settings, folder: Path) -> None:
    """Remove a folder of staging; what cannot be removed now is only said to be trash and goes another time."""
    if not folder.name.startswith(TRASH):
        folder = _to_trash(settings, folder)
    shutil.rmtree(folder, ignore_errors=True)


def empty_trash(settings: Settings) -> None:
    """Remove what an earlier removal left, for want of time, because it was killed, or because it was in use."""
    for folder in settings.staging_dir.glob(TRASH + "*"):
        shutil.rmtree(folder, ignore_errors=True)


def trash_size(settings: Settings) -> int:
    """Return the bytes that removals left."""
    return sum(disk_usage(folder) for folder in settings.staging_dir.glob(TRASH + "*"))


def _rename_into_place(staged: Path, target: Path) -> None:
    for last in (False, False, True):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.rename(target)
            return
        except FileNotFoundError:
            # Another process deleted the owner's last model, and the owner's folder with it, in between.
            if last:
                raise


def _to_trash(settings: Settings, folder: Path) -> Path:
    settings.staging_dir.mkdir(parents=True, exist_ok=True)
    trash = settings.staging_dir / f"{TRASH}{uuid.uuid4().hex}"
    folder.rename(trash)
    return trash
