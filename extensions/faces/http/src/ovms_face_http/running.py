"""The face at work: its parts, put together."""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ovms_face_http import config
from ovms_face_http.api import routes
from ovms_face_http.app import App
from ovms_face_http.guard import Guard
from ovms_face_http.keys import keys_of
from ovms_face_http.server import Server, bind
from ovms_kernel.api.faces import noted_server, only_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ovms_face_http.config import HttpSettings
    from ovms_kernel.api.faces import KernelApi, RunningServer

log = logging.getLogger(__name__)

IDLE_UNLOAD = 1800.0
"""Seconds after which a model that nobody uses is unloaded, where no setting says otherwise."""


async def serve(
    settings: HttpSettings, kernel: Awaitable[KernelApi], ready: Callable[[RunningServer], object] | None = None
) -> None:
    """Serve until cancelled.

    :raises PreconditionFailed: another server runs for the data folder, or the port is in use.
    """
    composed = await kernel
    folder = composed.settings.data_dir
    async with only_server(folder):
        sock = bind(settings)
        try:
            composed.default_idle_unload(IDLE_UNLOAD)
            keys = keys_of(composed.settings) if settings.keys == "required" else None
            if keys:
                await anyio.to_thread.run_sync(keys.default)
            app = App(Guard(settings, keys), settings.max_body)
            control = secrets.token_urlsafe(24)
            app.routes = routes(composed, control)
            url = config.base_url(settings, sock.getsockname()[1])
            async with Server(settings, app, sock) as server, anyio.create_task_group() as group:
                group.start_soon(app.keep_alive)
                group.start_soon(server.keep_time)
                log.info("Serving at %s", url)
                with noted_server(folder, url, str(keys.file) if keys else "", control) as where:
                    if ready:
                        ready(where)
                    await anyio.sleep_forever()
        finally:
            sock.close()
