"""A go-plugin host in Python that does what AOG does: for tests, and for a person to see the plugin work.

docs/protocols/go-plugin.md says how a plugin is started, spoken to and ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self

import anyio
import grpc.aio
from google.protobuf import empty_pb2, message_factory
from grpc_health.v1 import health_pb2

from ovms_face_aog.protos import aog_provider_pb2, goplugin_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

HANDSHAKE_LIMIT = 10.0
"""Seconds that AOG gives a plugin to print its line."""
EXIT_LIMIT = 2.0
"""Seconds from the reply to Shutdown to the end of the process and of its pipes, before the host kills."""
AOG = {
    "AOG_PLUGIN": "aog-provider-plugin-v1",
    "AOG_VERSION": "v0.7",
    "PLUGIN_MIN_PORT": "10000",
    "PLUGIN_MAX_PORT": "25000",
    "PLUGIN_PROTOCOL_VERSIONS": "1",
}
"""What AOG adds to its environment."""


class PluginFailed(Exception):
    """The plugin did not do what a host demands of it."""


def connect(address: str) -> grpc.aio.Channel:
    """Return a connection like the one of go-plugin hosts: no limits, no proxy, and a name that says nothing."""
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.default_authority", "unused"),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0),
        ],
    )


class ProviderClient:
    """What a host asks over a connection, by the rpcs' names."""

    channel: grpc.aio.Channel

    async def ping(self) -> bool:
        """Return whether the plugin says over gRPC's health service that it serves."""
        check = self.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        answer = await check(health_pb2.HealthCheckRequest(service="plugin"))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def call(self, method: str, *, timeout: float | None = None, **fields: Any) -> Any:
        """Call a unary rpc of ProviderService and return its response, whatever its code."""
        descriptor, make = self._method(method)
        return await make(self.channel.unary_unary)(_request(descriptor, fields), timeout=timeout)

    def stream(self, method: str, *, timeout: float | None = None, **fields: Any) -> Any:
        """Call an rpc of ProviderService that answers with a stream; iterate over it, or ``cancel()`` it."""
        descriptor, make = self._method(method)
        return make(self.channel.unary_stream)(_request(descriptor, fields), timeout=timeout)

    def converse(self, requests: AsyncIterator[Any]) -> Any:
        """Call InvokeServiceBidi."""
        _, make = self._method("InvokeServiceBidi")
        return make(self.channel.stream_stream)(requests)

    def _method(self, name: str) -> tuple[Any, Any]:
        descriptor = aog_provider_pb2.DESCRIPTOR.services_by_name["ProviderService"].methods_by_name[name]
        request = message_factory.GetMessageClass(descriptor.input_type)
        response = message_factory.GetMessageClass(descriptor.output_type)
        path = f"/protocol.ProviderService/{name}"
        return descriptor, lambda kind: kind(path, request.SerializeToString, response.FromString)


class PluginHost(ProviderClient):
    """One plugin process and the connection to it; ``async with PluginHost([path]) as host``.

    :param argv: the plugin; AOG gives no arguments.
    :param environment: added to what AOG sets; a value of ``None`` takes a variable away.
    """

    def __init__(
        self, argv: Sequence[str | Path], environment: Mapping[str, str | None] | None = None, cwd: Path | None = None
    ) -> None:
        self._argv = [str(each) for each in argv]
        values = {**os.environ, **AOG, **(environment or {})}
        self._environment = {name: value for name, value in values.items() if value is not None}
        self._cwd = cwd
        self.stdout = b""
        """Everything on stdout, the handshake line first."""
        self.stderr: list[str] = []
        """The lines on stderr."""
        self.handshake_seconds = 0.0
        """From the start of the process to its line."""
        self.address = ""
        """Target of the gRPC channel."""
        self._tasks: list[asyncio.Task[None]] = []
        self._held: list[Any] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self.process.returncode is None:
            try:
                with contextlib.suppress(PluginFailed):
                    await self.kill()
            finally:
                # A host that is cancelled meanwhile leaves no plugin behind.
                with contextlib.suppress(ProcessLookupError):
                    self.process.kill()

    @property
    def pid(self) -> int:
        """Process id of the plugin."""
        return self.process.pid

    async def start(self) -> None:
        """Start the plugin, read its line, connect and open the two long-lived streams.

        :raises PluginFailed: the line does not come in time or is not one.
        """
        began = time.perf_counter()
        self.process = await asyncio.create_subprocess_exec(
            *self._argv,
            env=self._environment,
            cwd=self._cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=1 << 20,
        )
        try:
            await self._connect(began)
        except BaseException:
            # A host that is cancelled meanwhile leaves no plugin behind, and no pipe of it.
            with anyio.CancelScope(shield=True):
                await self._end()
            raise

    async def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_LIMIT):
                await asyncio.gather(self.process.wait(), *self._tasks)

    async def _connect(self, began: float) -> None:
        assert self.process.stdout is not None  # noqa: S101 - they are pipes
        assert self.process.stderr is not None  # noqa: S101
        self._tasks.append(asyncio.create_task(self._keep_lines(self.process.stderr)))
        line = await self._first_line(self.process.stdout)
        self.handshake_seconds = time.perf_counter() - began
        self.stdout = line
        self._tasks.append(asyncio.create_task(self._keep_bytes(self.process.stdout)))
        parts = line.decode(errors="replace").strip().split("|")
        if len(parts) < 5 or parts[:2] != ["1", "1"] or parts[2] not in ("unix", "tcp") or parts[4] != "grpc":
            await self._end()
            said = " ".join(self.stderr[-3:]) or "nothing"
            raise PluginFailed(f"The plugin's first line is no handshake: {line!r}; on stderr it said: {said}")
        self.address = f"unix:{parts[3]}" if parts[2] == "unix" else parts[3]
        self.channel = connect(self.address)
        stdio = self.channel.unary_stream(
            "/plugin.GRPCStdio/StreamStdio", empty_pb2.Empty.SerializeToString, goplugin_pb2.StdioData.FromString
        )(empty_pb2.Empty())
        self._broker = self.channel.stream_stream(
            "/plugin.GRPCBroker/StartStream",
            goplugin_pb2.ConnInfo.SerializeToString,
            goplugin_pb2.ConnInfo.FromString,
        )()
        self._held = [asyncio.ensure_future(_read(stdio)), asyncio.ensure_future(_read(self._broker))]

    async def _first_line(self, stdout: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(HANDSHAKE_LIMIT):
                return await stdout.readline()
        except TimeoutError:
            raise PluginFailed(f"The plugin printed no handshake line within {HANDSHAKE_LIMIT:g} s.") from None

    async def shut_down(self, *, timeout: float | None = None) -> None:
        """Call the controller's Shutdown and return when it is answered."""
        call = self.channel.unary_unary(
            "/plugin.GRPCController/Shutdown",
            goplugin_pb2.Empty.SerializeToString,
            goplugin_pb2.Empty.FromString,
        )
        await call(goplugin_pb2.Empty(), timeout=timeout)

    async def kill(self) -> float:
        """End the plugin as go-plugin's Kill does and return the seconds from the reply to its end.

        :raises PluginFailed: it had to be killed, or something holds its pipes open.
        """
        for each in self._held:
            each.cancel()
        self._broker.cancel()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self.shut_down()
        replied = time.perf_counter()
        await self.channel.close()
        try:
            async with asyncio.timeout(EXIT_LIMIT):
                # A child that inherited the pipes would keep them open: the host waits for their ends too.
                await asyncio.gather(self.process.wait(), *self._tasks)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise PluginFailed(f"The plugin did not exit gracefully within {EXIT_LIMIT:g} s of its reply.") from None
        return time.perf_counter() - replied

    async def _keep_lines(self, pipe: asyncio.StreamReader) -> None:
        while line := await pipe.readline():
            self.stderr.append(line.decode(errors="replace").rstrip("\n"))

    async def _keep_bytes(self, pipe: asyncio.StreamReader) -> None:
        while data := await pipe.read(1 << 16):
            self.stdout += data


def _request(descriptor: Any, fields: Mapping[str, Any]) -> Any:
    return message_factory.GetMessageClass(descriptor.input_type)(**fields)


async def _read(stream: Any) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        async for _ in stream:
            pass


def plugin_command() -> list[str]:
    """Return how to start the plugin that is installed beside this Python."""
    return [sys.executable, "-m", "ovms_face_aog"]


def bidi_request(data: bytes, kind: str = "text", **fields: Any) -> Any:
    """Return one message of a session; the first one needs ``service_name`` and ``is_first``."""
    return aog_provider_pb2.InvokeServiceBidiRequest(data=data, message_type=kind, **fields)
