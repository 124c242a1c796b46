"""The face at work: its parts, and the file that tells other commands where it listens."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import anyio
import psutil

from ovms_face_http import config
from ovms_face_http.api import routes
from ovms_face_http.app import App
from ovms_face_http.guard import Guard
from ovms_face_http.keys import Keys
from ovms_face_http.server import Server, bind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from ovms_face_http.config import HttpSettings
    from ovms_kernel.api.faces import KernelApi, Settings

log = logging.getLogger(__name__)

IDLE_UNLOAD = 1800.0
"""Seconds after which a model that nobody uses is unloaded, where no setting says otherwise."""
LOOK = 1.0
"""Seconds between two looks at whether other commands find this server."""


@dataclass(frozen=True)
class Running:
    """Where a face listens."""

    url: str
    """Without a path."""
    key_file: str
    """Empty if no key is needed."""
    pid: int


async def serve(
    settings: HttpSettings, kernel: Awaitable[KernelApi], ready: Callable[[Running], object] | None = None
) -> None:
    """Serve until cancelled."""
    sock = bind(settings)  # before the kernel, as a port in use is said at once
    try:
        composed = await kernel
        composed.default_idle_unload(IDLE_UNLOAD)
        folder = composed.settings.data_dir
        keys = keys_of(composed.settings) if settings.keys == "required" else None
        if keys:
            await anyio.to_thread.run_sync(keys.default)
        app = App(Guard(settings, keys), settings.max_body)
        app.routes = routes(composed)
        where = Running(config.base_url(settings, sock.getsockname()[1]), str(keys.file) if keys else "", os.getpid())
        async with Server(settings, app, sock) as server, anyio.create_task_group() as group:
            group.start_soon(app.keep_alive)
            group.start_soon(server.keep_time)
            log.info("Serving at %s", where.url)
            _announce(folder, where)
            try:
                if ready:
                    ready(where)
                await _stay_announced(folder, where)
            finally:
                if _owner(file_of(folder)) == where.pid:
                    file_of(folder).unlink(missing_ok=True)
    finally:
        sock.close()


def file_of(data_dir: Path) -> Path:
    """Return the file that tells where a face listens while one does; of several, the one that was started last."""
    return data_dir / "run" / "http.json"


def read(data_dir: Path) -> Running | None:
    """Return where a face listens for this data folder; ``None`` if none does."""
    try:
        found = Running(**json.loads(file_of(data_dir).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return found if psutil.pid_exists(found.pid) else None


def report(settings: Settings) -> dict[str, Any]:
    """Return what ``status`` says: where the face listens, or would listen, and where the key is."""
    wanted = config.read(settings.section("faces", "http"))
    found = read(settings.data_dir)
    if found:
        return {"url": found.url, "key_file": found.key_file, "pid": found.pid}
    key_file = str(keys_of(settings).file) if wanted.keys == "required" else ""
    return {"url": config.base_url(wanted, wanted.port), "key_file": key_file, "pid": None}


def keys_of(settings: Settings) -> Keys:
    """Return the keys of a data folder."""
    return Keys(settings.data_dir / "http")


def _announce(data_dir: Path, where: Running) -> None:
    path = file_of(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_suffix(f".{where.pid}")
    new.write_text(json.dumps(asdict(where)))
    new.replace(path)


async def _stay_announced(data_dir: Path, where: Running) -> None:
    """Tell again where this one listens when a server that was started later on the same data folder has ended."""
    while True:
        await anyio.sleep(LOOK)
        if read(data_dir) is None:
            _announce(data_dir, where)


def _owner(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        return json.loads(path.read_bytes())["pid"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
