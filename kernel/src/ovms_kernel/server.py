"""The one server of a data folder: who may be it, and where other processes find it.

A lock of the operating system decides, so that the place of a server that dies is free at once. A note beside it tells
where the server listens.
"""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec
from msgspec.structs import asdict

from ovms_kernel import processes
from ovms_kernel.errors import PreconditionFailed, TimedOut
from ovms_kernel.files import disk_errors, locked, read_json, write_atomically
from ovms_kernel.values import Discreet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PATIENCE = 10.0
"""Seconds that one server waits for another that starts or ends at the same time."""
BUSY = (
    "Another server starts or stops for this data folder; try again when `ovms-plugin status` shows what became of it."
)


class RunningServer(Discreet, frozen=True):
    """A server that answers requests."""

    hidden: ClassVar[tuple[str, ...]] = ("control",)
    url: str
    """Without a path."""
    key_file: str
    """Empty if no key is needed."""
    pid: int
    started: float
    """See ``processes.start_time``."""
    control: str = ""
    """What a request shows to come from a program of the same user, which may read the note."""

    def key(self) -> str:
        """Return the key that its requests need; empty if none, or if this user may not read it."""
        try:
            return Path(self.key_file).read_text("ascii").strip() if self.key_file else ""
        except OSError:
            return ""


def read_server(data_dir: Path) -> RunningServer | None:
    """Return the server that runs for a data folder; ``None`` if none does."""
    note = read_json(_note(data_dir)) or {}
    if note.pop("boot", None) != processes.boot():
        return None
    try:
        found = msgspec.convert(note, RunningServer)
    except msgspec.ValidationError:
        return None
    return found if processes.is_alive(found.pid, found.started) else None


def refuse_second(data_dir: Path) -> None:
    """Return if no server runs for a data folder.

    :raises PreconditionFailed: one does; the sentence says where, and what to do.
    """
    if found := read_server(data_dir):
        raise PreconditionFailed(
            f"A server runs here already, at {found.url} (process {found.pid}); `ovms-plugin stop` ends it, "
            "`ovms-plugin restart` starts it anew, and --data-dir names another data folder."
        )


@asynccontextmanager
async def only_server(data_dir: Path) -> AsyncIterator[None]:
    """Be the only server of a data folder until the end of the block.

    :raises PreconditionFailed: there is another one; the sentence says where, and what to do.
    :raises TimedOut: another one is starting or stopping and takes long.
    """
    with disk_errors("Starting the server"):
        _note(data_dir).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with locked(_lock(data_dir), timeout=PATIENCE, busy=BUSY, waiting=lambda: refuse_second(data_dir)):
        yield


@contextmanager
def noted_server(data_dir: Path, url: str, key_file: str, control: str = "") -> Iterator[RunningServer]:
    """Have written down where this process, which is the only server, answers requests until the end of the block."""
    server = RunningServer(url, key_file, os.getpid(), processes.start_time(os.getpid()), control)
    write_atomically(_note(data_dir), json.dumps(asdict(server) | {"boot": processes.boot()}).encode(), 0o600)
    try:
        yield server
    finally:
        _note(data_dir).unlink(missing_ok=True)


async def forget_dead_server(data_dir: Path) -> bool:
    """Remove the note of a server that is gone; return whether there was one."""
    if not _note(data_dir).exists() or read_server(data_dir):
        return False
    with suppress(TimedOut):  # one that starts replaces the note itself
        async with locked(_lock(data_dir), timeout=0):
            _note(data_dir).unlink(missing_ok=True)
    return True


def _note(data_dir: Path) -> Path:
    return data_dir / "run" / "http.json"


def _lock(data_dir: Path) -> Path:
    return data_dir / "run" / "server.lock"
