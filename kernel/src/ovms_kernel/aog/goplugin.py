"""hashicorp/go-plugin's wire, as a plugin speaks it over gRPC. Knows nothing of AOG nor of the kernel.

Facts and numbers in parentheses are sections of go-plugin v1.7.0 as read in its source: A1 environment, A2 handshake
line, A5 services, A6 shutdown, A9 death of the host.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf import empty_pb2, message_factory
from grpc_health.v1 import health_pb2

from ovms_kernel.aog.protos import goplugin_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from google.protobuf.descriptor import ServiceDescriptor

log = logging.getLogger(__name__)

CORE_PROTOCOL = 1
SOCKET_LIMIT = 100
"""Bytes of a unix socket's path that work everywhere: Linux takes 107, macOS 103."""
FOLDER = "ovms-plugin-"
"""Begins the name of each socket's private folder; then the pid, so that those of dead plugins can be cleared away."""
HOST_POLL = 0.25
"""Seconds between two looks at whether our parent is still the one that started us."""
STREAM_GRACE = 1.0
"""Seconds that a Shutdown has to arrive after the host's two long-lived streams have ended."""
EXIT_LIMIT = 1.5
"""Seconds from the reply to Shutdown to the end of the process; the host kills at 2 s (A6)."""
DRAIN = 0.2
"""Seconds that replies under way have to be flushed when the server stops."""

NOTHING: tuple[Any, ...] = ()
"""What a stream that is only held open yields."""


class NotStartedByHost(Exception):
    """The process was not started as a plugin, or in a way that it does not support; the text is for a person."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a host must present, and which protocol we speak."""

    cookie_key: str
    cookie_value: str
    protocol_version: int


def check_host(handshake: Handshake, environment: Mapping[str, str]) -> int:
    """Return the protocol version to announce.

    :raises NotStartedByHost: there is no host, or it asks for what this plugin does not do.
    """
    if environment.get(handshake.cookie_key) != handshake.cookie_value:
        raise NotStartedByHost(
            "This program is a plugin: a go-plugin host such as AOG starts it, and it does nothing by itself. "
            "Run `ovms-plugin --help` for what you can do at a terminal."
        )
    if environment.get("PLUGIN_CLIENT_CERT"):
        raise NotStartedByHost(
            "The host asks for AutoMTLS, which this plugin does not support, as gRPC for Python cannot verify the "
            "P-521 certificates of go-plugin hosts; switch AutoMTLS off in the host."
        )
    if environment.get("PLUGIN_MULTIPLEX_GRPC"):
        raise NotStartedByHost(
            "The host asks for a multiplexed gRPC broker, which this plugin does not support; "
            "switch GRPCBrokerMultiplex off in the host."
        )
    offered = {int(each) for each in re.findall(r"\d+", environment.get("PLUGIN_PROTOCOL_VERSIONS", ""))}
    if offered and handshake.protocol_version not in offered:
        log.warning("The host speaks protocol versions %s; this plugin speaks %d", offered, handshake.protocol_version)
    return handshake.protocol_version


def take_stdout() -> int:
    """Return a descriptor of the host's end of stdout for the handshake line, and point stdout itself at stderr.

    From now on nothing that a library or an extension prints can reach the host as part of the handshake, nor fill the
    pipe later.
    """
    sys.stdout.flush()
    line = os.dup(1)
    os.dup2(2, 1)
    return line


def handlers_of(service: ServiceDescriptor, methods: Mapping[str, Callable[..., Any]]) -> grpc.GenericRpcHandler:
    """Return gRPC's handlers of a service, from its descriptor; a method's name is the key of its function."""
    handlers = {}
    for method in service.methods:
        make = _HANDLERS[method.client_streaming, method.server_streaming]
        handlers[method.name] = make(
            methods[method.name],
            request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
            response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


_HANDLERS: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class PluginServer:
    """Serves one host until it says Shutdown, dies, or a signal arrives.

    :param handlers: the plugin's own services.
    :param shut_down: ends the plugin's work; called once, with the reason, before the host gets its reply.
    """

    def __init__(self, handlers: Sequence[grpc.GenericRpcHandler], shut_down: Callable[[str], Awaitable[None]]) -> None:
        self._handlers = [*handlers, *self._own_handlers()]
        self._shut_down = shut_down
        self._ending: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._streams_open = 0
        self._streams_seen = 0
        self._folder: Path | None = None

    async def serve(self, version: int, line: int, environment: Mapping[str, str]) -> None:
        """Listen, print the handshake line, and return when the plugin has ended its work.

        :param line: descriptor that the handshake line is written to; it is closed afterwards.
        """
        server = grpc.aio.server(
            options=[
                # The host's own limits are MaxInt32, and images travel as base64 (A3).
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ]
        )
        server.add_generic_rpc_handlers(self._handlers)
        try:
            network, address = self._bind(server, environment)
            await server.start()
            os.write(line, f"{CORE_PROTOCOL}|{version}|{network}|{address}|grpc|\n".encode())
            os.close(line)
            self._catch_signals()
            watcher = asyncio.create_task(self._watch_host(os.getppid()))
            await self._ended.wait()
            watcher.cancel()
            self._arm_hard_exit()
            await server.stop(DRAIN)
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def end(self, reason: str) -> asyncio.Task[None]:
        """Begin to end, once; later callers get the same task to wait for."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(reason))
        return self._ending

    async def _end(self, reason: str) -> None:
        log.info("The plugin ends: %s", reason)
        try:
            await self._shut_down(reason)
        except Exception:
            log.exception("Ending the plugin's work failed")
        finally:
            # The reply to Shutdown leaves before the server stops.
            asyncio.get_running_loop().call_later(0.05, self._ended.set)

    # -- where to listen -------------------------------------------------------------------------------------------

    def _bind(self, server: grpc.aio.Server, environment: Mapping[str, str]) -> tuple[str, str]:
        if sys.platform != "win32" and (path := self._socket_path(environment.get("PLUGIN_UNIX_SOCKET_DIR", ""))):
            server.add_insecure_port(f"unix:{path}")
            if group := environment.get("PLUGIN_UNIX_SOCKET_GROUP"):
                path.parent.chmod(0o750)
                for each in (path.parent, path):
                    shutil.chown(each, group=int(group) if group.isdigit() else group)
                path.chmod(0o660)
            return "unix", str(path)
        first, last = (int(environment.get(f"PLUGIN_{name}_PORT") or port) for name, port in _PORTS.items())
        for port in range(first, last + 1):
            with suppress(RuntimeError):
                if server.add_insecure_port(f"127.0.0.1:{port}"):
                    return "tcp", f"127.0.0.1:{port}"
        raise NotStartedByHost(f"No port from {first} to {last} is free on 127.0.0.1; widen the host's port range.")

    def _socket_path(self, wanted: str) -> Path | None:
        """Return a path in a new private folder; ``None`` if no folder's path is short enough."""
        for root in (wanted,) if wanted else (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - the short one
            if len(os.fsencode(root)) + len(FOLDER) + 24 > SOCKET_LIMIT or "|" in root or not Path(root).is_dir():
                continue
            _clear_dead(Path(root))
            self._folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-", dir=root))
            return self._folder / "s"
        return None

    # -- ends ------------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        # Host and plugin share a terminal's process group: ^C reaches both, and the host then asks us to end (A7).
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if sys.platform == "win32":
            signal.signal(signal.SIGBREAK, signal.SIG_IGN)
            return
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(each, self.end, f"{each.name} was received")

    async def _watch_host(self, parent: int) -> None:
        """End when the host is gone without a word: another parent, or both of its streams ended (A9)."""
        while True:
            await asyncio.sleep(HOST_POLL)
            if os.getppid() != parent:
                self.end("the host is gone")
            elif self._streams_seen >= 2 and self._streams_open == 0:
                await asyncio.sleep(STREAM_GRACE)
                self.end("the host closed its connection")

    @staticmethod
    def _arm_hard_exit() -> None:
        timer = threading.Timer(EXIT_LIMIT - DRAIN, os._exit, (0,))
        timer.daemon = True
        timer.start()

    # -- go-plugin's own services ----------------------------------------------------------------------------------

    def _own_handlers(self) -> list[grpc.GenericRpcHandler]:
        services = goplugin_pb2.DESCRIPTOR.services_by_name
        return [
            handlers_of(services["GRPCController"], {"Shutdown": self._controller_shutdown}),
            handlers_of(services["GRPCBroker"], {"StartStream": self._broker_stream}),
            handlers_of(services["GRPCStdio"], {"StreamStdio": self._stdio_stream}),
            handlers_of(
                health_pb2.DESCRIPTOR.services_by_name["Health"],
                {"Check": self._health_check, "Watch": self._health_watch, "List": self._health_list},
            ),
        ]

    async def _controller_shutdown(self, request: Any, context: Any) -> goplugin_pb2.Empty:  # noqa: ANN401, ARG002
        # The host waits for this reply without limit, and then two seconds for our end (A6).
        await asyncio.shield(self.end("the host asked for it"))
        return goplugin_pb2.Empty()

    async def _broker_stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: ANN401, ARG002
        """Hold the broker's stream; nothing is brokered here, its end tells that the host is gone."""
        self._open_stream()
        try:
            async for _ in requests:
                pass
        finally:
            self._streams_open -= 1
        for each in NOTHING:
            yield each

    async def _stdio_stream(self, request: empty_pb2.Empty, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401, ARG002
        """Hold the stream of what the plugin prints; what it prints goes to its log instead."""
        self._open_stream()
        try:
            await self._ended.wait()
        finally:
            self._streams_open -= 1
        for each in NOTHING:
            yield each

    def _open_stream(self) -> None:
        self._streams_open += 1
        self._streams_seen += 1

    async def _health_check(self, request: Any, context: Any) -> Any:  # noqa: ANN401
        if request.service not in ("", "plugin"):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service!r} here.")
        return health_pb2.HealthCheckResponse(status=self._health())

    async def _health_watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401, ARG002
        yield health_pb2.HealthCheckResponse(status=self._health())
        await self._ended.wait()
        yield health_pb2.HealthCheckResponse(status=self._health())

    async def _health_list(self, request: Any, context: Any) -> Any:  # noqa: ANN401, ARG002
        return health_pb2.HealthListResponse(statuses={"plugin": health_pb2.HealthCheckResponse(status=self._health())})

    def _health(self) -> Any:  # noqa: ANN401 - an enum's value
        serving = health_pb2.HealthCheckResponse.ServingStatus
        return serving.Value("SERVING" if self._ending is None else "NOT_SERVING")


_PORTS = {"MIN": 10000, "MAX": 25000}
"""go-plugin's own defaults."""


def _clear_dead(root: Path) -> None:
    """Remove the socket folders of plugins that were killed."""
    for folder in root.glob(f"{FOLDER}*-*"):
        pid = folder.name.removeprefix(FOLDER).partition("-")[0]
        if not pid.isdigit():
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
