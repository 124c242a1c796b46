"""What the process that runs the engine tells other processes: which models are loaded, who uses them, until when."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec.structs import replace

from ovms_kernel.files import read_json, rename

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ovms_kernel.settings import Settings
    from ovms_kernel.values import LocalModel

log = logging.getLogger(__name__)

PERIOD = 2.0
"""Seconds between two looks whether something has changed."""
FIELDS = ("state", "users", "last_used", "loaded_at", "memory", "device", "unload_at", "failure", "suspect")
"""What is told; what is pinned, a model's record says, and at once."""


class ResidentModel(msgspec.Struct, frozen=True):
    """A model that is loaded, is being loaded or failed to load, as ``ps`` and ``/api/ps`` show it."""

    model: LocalModel
    state: Literal["waiting", "loading", "loaded", "unloading", "failed"]
    users: int = 0
    """Requests that use it now."""
    last_used: float = 0.0
    """Seconds since the epoch."""
    loaded_at: float = 0.0
    """Seconds since the epoch; 0 = it is not loaded."""
    memory: int = 0
    """Bytes that it takes, as far as known."""
    device: str = ""
    pinned: bool = False
    unload_at: float | None = None
    """When it is unloaded if nobody uses it, in seconds since the epoch; ``None`` = when memory is needed."""
    failure: str = ""
    """Why the last load failed."""
    suspect: str = ""
    """What is wrong with its answers on this device, or why it does not run on another one; empty if nothing is."""


def write(settings: Settings, models: Sequence[ResidentModel]) -> None:
    """Replace the report; that a disk is full costs nothing but the report."""
    rows = {each.model.id: {name: getattr(each, name) for name in FIELDS} for each in models}
    path = _file(settings)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.write_text(json.dumps(rows), "utf-8")
        rename(partial, path)
    except OSError as error:
        log.debug("The report of models is not written: %s", error)


def completed(settings: Settings, models: Sequence[ResidentModel]) -> list[ResidentModel]:
    """Return models with what the last report says of them."""
    rows: Mapping[str, Any] = read_json(_file(settings)) or {}
    return [_completed(each, rows.get(each.model.id)) for each in models]


def _completed(model: ResidentModel, row: object) -> ResidentModel:
    if not isinstance(row, dict) or row.get("state") != "loaded":
        return model
    return replace(model, **{name: row[name] for name in FIELDS if name in row})


def _file(settings: Settings) -> Path:
    return settings.run_dir / "models.json"
