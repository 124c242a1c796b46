"""What the front process consists of: REST, gRPC and what they serve, started in turn and stopped in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import sys
from typing import TYPE_CHECKING

import uvicorn

from ovms_embedded import log
from ovms_embedded.config import ConfigError
from ovms_embedded.garbage import collect_rarely
from ovms_embedded.guard import guard
from ovms_embedded.manager import Manager
from ovms_embedded.metrics import Metrics
from ovms_embedded.rest.app import App
from ovms_embedded.rest.protocol import BoundedProtocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ovms_embedded.cli import Settings
    from ovms_embedded.config import Config
    from ovms_embedded.workers import Spare

GRACE = 5
"""Seconds that running requests have to end after a signal, before they are cancelled."""
KEEP_ALIVE = 75
BACKLOG = 2048
TICKS = 10
"""What uvicorn counts in a second."""
TURNS = 3
"""Of the event loop, in which idle connections close."""
SPARE_PAUSE = 1.0
"""Seconds between two looks whether a spare worker is to be started."""


class StartFailed(Exception):
    """The server cannot start, with the reason."""


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let it end."""
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        # uvicorn's own wakes ten times a second; the clock in its answers needs once.
        tick = 0
        while not await self.on_tick(tick):
            tick += TICKS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close what is open; uvicorn's own waits a tenth of a second even where no request runs."""
        for each in (*self.servers, *(sockets or ())):
            each.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals are ours: uvicorn would send itself the signal again after the shutdown, and the exit code with it.
        yield


async def run(settings: Settings, spare: Spare, stopped: asyncio.Event) -> int:
    """Serve until ``stopped`` is set; returns the exit code."""
    stack = contextlib.AsyncExitStack()
    try:
        async with stack:
            background = await _start(settings, spare, stack, stopped)
            await stopped.wait()
            log.serving.info("Shutting down")
            if background.done():
                background.result()
    except StartFailed as failed:
        log.serving.error("%s", failed)
        return 1
    log.serving.info("Shutdown complete")
    return 0


async def _start(
    settings: Settings, spare: Spare, stack: contextlib.AsyncExitStack, stopped: asyncio.Event
) -> asyncio.Task[None]:
    manager = Manager(settings.config_path, settings.cache_dir, settings.worker_memory, spare)
    config, metrics = await _read_configuration(settings, manager)
    stack.push_async_callback(_module, "ServableManager", manager.close)
    app = App(manager, settings, metrics)
    if settings.rest_port:
        await _start_rest(settings, app, stack)
    if settings.port:
        await _start_grpc(settings, manager, stack)
    log.serving.info("ServableManagerModule starting")
    background = asyncio.create_task(_manage(settings, manager, config))
    background.add_done_callback(lambda task: stopped.set() if not task.cancelled() and task.exception() else None)
    stack.push_async_callback(_cancel, background)
    stack.push_async_callback(_cancel, asyncio.create_task(guard(manager)))
    if settings.spare_worker:
        stack.push_async_callback(_cancel, asyncio.create_task(_keep_spare(manager, spare)))
    if settings.idle_seconds:
        stack.push_async_callback(_cancel, asyncio.create_task(_unload_idle(manager, settings.idle_seconds)))
    return background


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def _read_configuration(settings: Settings, manager: Manager) -> tuple[Config, Metrics | None]:
    try:
        config = await manager.first(settings)
    except ConfigError as error:
        raise StartFailed(str(error)) from error
    wanted = list(settings.metrics_list)
    if config.metrics is not None:
        if settings.metrics:
            raise StartFailed("metrics_enable and a monitoring section in the configuration file exclude each other")
        wanted = config.metrics.get("metrics_list", [])
    if not (settings.metrics or (config.metrics or {}).get("enable")):
        return config, None
    try:
        return config, Metrics(wanted)
    except ValueError as error:
        raise StartFailed(str(error)) from error


async def _manage(settings: Settings, manager: Manager, config: Config) -> None:
    try:
        await manager.apply(config)
    except ConfigError as error:
        log.manager.error("%s", error)
        if settings.config_path is None:
            # The only servable there is: without it there is nothing to serve.
            raise StartFailed("The model did not load.") from error
    manager.first_pass_done = True
    await manager.prepare()
    collect_rarely()
    log.serving.info("ServableManagerModule started")
    if settings.config_path and settings.poll_seconds:
        await manager.watch(settings.poll_seconds)


async def _keep_spare(manager: Manager, spare: Spare) -> None:
    """Start the next spare worker when nothing else is going on: its imports would slow a model's first answer."""
    while True:
        await asyncio.sleep(SPARE_PAUSE)
        if not manager.busy:
            await spare.refill()


async def _unload_idle(manager: Manager, seconds: float) -> None:
    while True:
        await asyncio.sleep(1)
        await manager.unload_idle(seconds)


async def _start_rest(settings: Settings, app: App, stack: contextlib.AsyncExitStack) -> None:
    log.serving.info("HTTPServerModule starting")
    sockets = []
    for address in settings.rest_addresses:
        log.serving.info("Binding REST server to address: %s:%d", address, settings.rest_port)
        try:
            sockets.append(_listen(address, settings.rest_port))
        except OSError as error:
            for each in sockets:
                each.close()
            text = f"Failed to start REST server at {address}:{settings.rest_port}: port is busy or not ours: {error}"
            raise StartFailed(text) from error
    config = uvicorn.Config(
        app, http=BoundedProtocol, loop="none", ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=GRACE,
        backlog=BACKLOG,
    )  # fmt: skip
    server = _Uvicorn(config)
    task = asyncio.create_task(server.serve(sockets))
    while not server.started:  # noqa: ASYNC110 - a few turns of the loop: the sockets are bound already
        await asyncio.sleep(0)

    async def stop() -> None:
        server.stop()
        await task

    stack.push_async_callback(_module, "HTTPServer", stop)
    workers = settings.rest_workers
    log.serving.info(
        "REST server listening on port %d with %d unary threads and %d streaming threads",
        settings.rest_port,
        workers,
        workers,
    )
    for address in settings.rest_addresses:
        log.serving.info("Started REST server at %s:%d", address, settings.rest_port)
    log.serving.info("HTTPServerModule started")


def _listen(address: str, port: int) -> socket.socket:
    family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


async def _start_grpc(settings: Settings, manager: Manager, stack: contextlib.AsyncExitStack) -> None:
    log.serving.info("GRPCServerModule starting")
    from ovms_embedded.grpc_service import start

    for address in settings.grpc_addresses:
        try:
            server = await start(manager, address, settings.port)
        except (RuntimeError, OSError) as error:
            text = f"Failed to start gRPC server at {address}:{settings.port}: port is busy or not ours: {error}"
            raise StartFailed(text) from error
        stack.push_async_callback(_module, "GRPCServer", functools.partial(server.stop, GRACE))
    log.serving.info("Started gRPC server on port %d", settings.port)
    log.serving.info("GRPCServerModule started")


async def _module(name: str, stop: Callable[[], Awaitable[None]]) -> None:
    log.serving.info("%sModule shutting down", name)
    await stop()
    log.serving.info("%sModule shutdown", name)
