"""hashicorp/go-plugin's wire (v1.7.0) from the plugin's side: handshake, its own services, the host's end.

Knows nothing of AOG and of what is served beside; see docs/protocols/go-plugin.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from ovms_face_aog.environment import Refusal
from ovms_face_aog.parent import PUBLIC
from ovms_face_aog.sockets import group_of, make_folder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    import psutil

    from ovms_face_aog.grpc_server import Handlers
    from ovms_face_aog.parent import Seat
    from ovms_face_aog.protos import goplugin_pb2

log = logging.getLogger(__name__)

CORE_VERSION = 1
PORTS = (10_000, 25_000)
"""Where a TCP port is looked for if the host names no range."""
WATCH_PERIOD = 0.2
"""Seconds between two looks at whether the host still lives."""
STREAM_PATIENCE = 0.6
"""Seconds that a host which closed its streams has to ask for the shutdown; in a normal end it does so at once."""
STOP_LIMIT = 10.0
"""Seconds that stopping may take; a host waits longer, but its user does not."""
EXIT_LIMIT = 1.5
"""Seconds from the shutdown's answer to the process's end; the host kills after 2."""
GRACE = 0.3
"""Seconds that calls in flight have to end once the server stops."""


def take_standard_streams() -> tuple[int, int]:
    """Keep stdout and stderr for ourselves and return them as new descriptors that no child inherits.

    The host reads stdout as protocol and waits for the end of both pipes when it stops us, so neither a library that
    prints nor a child may have them. Descriptors 0, 1 and 2 become harmless: what is written there is logged.
    """
    stdout, stderr = os.dup(1), os.dup(2)
    reading, writing = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (writing, 1), (writing, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(writing)
    sys.stdout, sys.stderr = (
        open(each, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - descriptors
        for each in (1, 2)
    )
    threading.Thread(target=_log_output, args=(reading,), name="stray output", daemon=True).start()
    return stdout, stderr


def _log_output(descriptor: int) -> None:
    stray = logging.getLogger("output")
    with open(descriptor, "rb") as lines:
        while line := lines.readline(32 << 10):
            if text := line.decode("utf-8", "replace").rstrip():
                stray.warning("%s", text)


class Host:
    """The process that started us, by what tells that it is gone; to be made as early as possible.

    :param stderr: our end of the pipe that the host reads.
    :param parent: the process that started this one.
    """

    def __init__(self, stderr: int, parent: int) -> None:
        self.stderr = stderr
        self._parent = parent
        self._process: psutil.Process | None = None
        self._sought = False

    def is_gone(self) -> bool:
        """Tell whether the host is known to be gone."""
        if sys.platform == "win32":
            if not self._sought:  # late, as the host waits for the handshake
                from ovms_face_aog.launched import find_host

                self._process, self._sought = find_host(), True
            return self._process is None or not self._process.is_running()
        # A host that died before we knew its pid has left us to another parent, but nobody reads the pipe any more.
        pipe = select.poll()
        pipe.register(self.stderr, 0)
        return os.getppid() != self._parent or bool(pipe.poll(0))


class Server:
    """Serves one host, from the handshake to the host's end or its wish.

    :param handlers: gRPC's handlers of the services that the plugin is for, by their full names.
    :param stop: called once when the end has come, before the host knows; must be done within ``STOP_LIMIT``.
    :param host: what the host is known by, as it was when the process began.
    :param seat: where to serve, if a parent process keeps the socket.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handlers],
        stop: Callable[[str], Awaitable[None]],
        host: Host,
        seat: Seat | None = None,
    ) -> None:
        self._seat = seat
        self.stopped = asyncio.Event()
        """Everything was stopped; all that is left is to close the server and exit."""
        self._handlers = handlers
        self._stop = stop
        self._ending: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._folder: Path | None = None
        self._host = host
        self._opened: set[str] = set()
        self._open: set[str] = set()
        self._closed_at = 0.0

    async def start(self, version: int, handshake: int, environment: Mapping[str, str]) -> None:
        """Listen, and tell the host where.

        :param handshake: a descriptor, which is closed when the host has its line.
        """
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc

        from ovms_face_aog.grpc_server import handlers_of, new_server, start
        from ovms_face_aog.protos import goplugin_pb2

        self._server = new_server()
        servicer = health.aio.HealthServicer()
        for name in ("", "plugin"):
            await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)
        services = goplugin_pb2.DESCRIPTOR.services_by_name
        own: dict[str, dict[str, Callable[..., Any]]] = {
            "GRPCController": {"Shutdown": self._shutdown},
            "GRPCBroker": {"StartStream": self._broker},
            "GRPCStdio": {"StreamStdio": self._stdio},
        }
        all_handlers = {services[name].full_name: handlers_of(services[name], each) for name, each in own.items()}
        for name, handlers in (all_handlers | dict(self._handlers)).items():
            self._server.add_registered_method_handlers(name, handlers)
        network, address = self._bind(environment)
        await start(self._server, self._folder)
        _catch_signals(self.end)
        if self._seat:
            self._seat.take()
        if self._seat is None or self._seat.first:
            line = f"{CORE_VERSION}|{version}|{network}|{address}|grpc|\n"
            with contextlib.suppress(BrokenPipeError):  # the host has gone already, which the watch will find
                os.write(handshake, line.encode())
        os.close(handshake)

    async def serve(self) -> None:
        """Serve the started server, and return when the end has come and everything is stopped."""
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch_host())
                reason = await self._ending
                log.info("The plugin ends: %s", reason)
                watch.cancel()
                await self._stop_all(reason)
        finally:
            self.stopped.set()
            await self._server.stop(GRACE)
            self._remove_folder()

    def end(self, reason: str) -> None:
        """Begin the end; only the first reason counts."""
        if not self._ending.done():
            self._ending.set_result(reason)

    async def _stop_all(self, reason: str) -> None:
        import anyio  # not before the handshake, which a host waits for

        try:
            with anyio.fail_after(STOP_LIMIT):
                await self._stop(reason)
        except TimeoutError:
            log.warning("Stopping took longer than %g s; what still runs ends with this process", STOP_LIMIT)
        except Exception:
            log.exception("Stopping failed")
        # Whatever still holds us then, threads above all: the host must not have to kill.
        last = threading.Timer(EXIT_LIMIT, self._exit)
        last.daemon = True
        last.start()

    def _exit(self) -> None:
        self._remove_folder()
        os._exit(0)

    def _remove_folder(self) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    # -- listening -------------------------------------------------------------------------------------------------

    def _bind(self, environment: Mapping[str, str]) -> tuple[str, str]:
        if self._seat:
            self._folder = self._seat.folder
            self._listen_at(self._seat.private, environment)
            return "unix", str(self._seat.public)
        self._folder = make_folder(environment)
        if self._folder:
            with contextlib.suppress(OSError, RuntimeError):
                self._listen_at(self._folder / PUBLIC, environment)
                return "unix", str(self._folder / PUBLIC)
            self._remove_folder()
        return "tcp", self._bind_tcp(environment)

    def _listen_at(self, path: Path, environment: Mapping[str, str]) -> None:
        self._server.add_insecure_port(f"unix:{path}")
        if (group := group_of(environment)) is not None:
            os.chown(path, -1, group)
            path.chmod(0o660)

    def _bind_tcp(self, environment: Mapping[str, str]) -> str:
        first, last = PORTS
        with contextlib.suppress(KeyError, ValueError):
            first, last = int(environment["PLUGIN_MIN_PORT"]), int(environment["PLUGIN_MAX_PORT"])
        for port in range(first, last + 1):
            address = f"127.0.0.1:{port}"
            with contextlib.suppress(OSError, OverflowError, RuntimeError):
                with socket.socket() as probe:  # gRPC itself complains aloud about each port that is taken
                    probe.bind(("127.0.0.1", port))
                if self._server.add_insecure_port(address) == port:
                    return address
        raise Refusal(f"No TCP port from {first} to {last} is free; end what uses them.")

    # -- go-plugin's own services ----------------------------------------------------------------------------------

    async def _shutdown(self, _request: object, _context: object) -> goplugin_pb2.Empty:
        from ovms_face_aog.protos import goplugin_pb2

        # The host waits for this answer as long as it takes, but for our exit only 2 s.
        self.end("the host asked for it")
        await self.stopped.wait()
        return goplugin_pb2.Empty()

    async def _broker(self, _requests: object, _context: object) -> None:
        # Nothing is asked over it. That the host ends it or is gone cancels this.
        with self._held("broker"):
            await self.stopped.wait()

    async def _stdio(self, _request: object, _context: object) -> None:
        with self._held("stdio"):
            await self.stopped.wait()

    @contextlib.contextmanager
    def _held(self, name: str) -> Iterator[None]:
        """Note that the host holds one of the two streams that it keeps open for its whole life."""
        self._opened.add(name)
        self._open.add(name)
        try:
            yield
        finally:
            self._open.discard(name)
            self._closed_at = time.monotonic()

    # -- the host's end --------------------------------------------------------------------------------------------

    async def _watch_host(self) -> None:
        while True:
            await asyncio.sleep(WATCH_PERIOD)
            if self._host.is_gone():
                self.end("the host is gone")
            # A host that never opened one is not known to hold them; of two that were, one may have been lost.
            if self._opened and not self._open and time.monotonic() - self._closed_at > STREAM_PATIENCE:
                self.end("the host closed its streams")


def _catch_signals(end: Callable[[str], object]) -> None:
    # Host and plugin share the terminal's process group: Ctrl-C reaches both, and the host then asks for the shutdown.
    # A function and not SIG_IGN, which children would inherit.
    for name in ("SIGINT", "SIGBREAK"):
        if number := getattr(signal, name, None):
            signal.signal(number, lambda *_: None)
    if sys.platform != "win32":
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(each, end, f"it was sent {each.name}")
