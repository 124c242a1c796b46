"""A small HTTP engine that answers what a test tells it to, over a real socket, from the standard library."""

from __future__ import annotations

import asyncio
import email.parser
import email.policy
import json
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from ovms_kernel.engine.client import EngineClient
from ovms_kernel.errors import BadRequest, NotFound
from ovms_kernel.values import Endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@dataclass(frozen=True)
class StubRequest:
    """One request as the engine got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever was sent
        """The decoded body."""
        return json.loads(self.body)

    @property
    def form(self) -> dict[str, Any]:
        """The parts of a multipart body: texts as ``str``, files as ``bytes``, repeated names as lists."""
        head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + self.body)
        parts: dict[str, Any] = {}
        for part in message.iter_parts():
            name = part.get_param("name", header="content-disposition")
            payload = part.get_payload(decode=True)
            value = payload if part.get_filename() else payload.decode()  # type: ignore[union-attr]
            if name in parts:
                value = [*(parts[name] if isinstance(parts[name], list) else [parts[name]]), value]
            parts[str(name)] = value
        return parts


class StubReply:
    """What a handler answers with."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.gone = asyncio.Event()
        """Set when the client has closed the connection."""

    async def json(self, value: object, status: int = 200) -> None:
        """Answer with a JSON value."""
        await self.content(json.dumps(value).encode(), status)

    async def content(self, body: bytes, status: int = 200, content_type: str = "application/json") -> None:
        """Answer with bytes."""
        head = f"HTTP/1.1 {status} Stub\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
        await self.raw(head.encode() + body)

    async def events(self) -> None:
        """Begin a stream; then ``piece`` by piece, then ``end``."""
        await self.raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def piece(self, data: bytes) -> None:
        """Send some bytes of a stream; waits while the client does not read."""
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def end(self) -> None:
        """End a stream as it should end."""
        await self.raw(b"0\r\n\r\n")

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    def cut(self) -> None:
        """Break the connection."""
        self._writer.transport.abort()


@dataclass
class StubEngine:
    """A server on a free port; ``async with StubEngine() as engine``.

    What ``answers`` says for a path is a JSON value, bytes, or a handler ``async (request, reply) -> None``. A handler
    is cancelled when the client closes the connection.
    """

    answers: dict[str, Any] = field(default_factory=dict)
    requests: list[StubRequest] = field(default_factory=list)
    connections: int = 0
    """That are open now."""
    accepted: int = 0
    """In all."""
    endpoint: Endpoint = field(default_factory=lambda: Endpoint("", ""))

    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.endpoint = Endpoint(f"http://127.0.0.1:{port}", "", "secret")
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task  # noqa: S101 - this is one
        self._tasks.add(task)
        self.connections += 1
        self.accepted += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                first = await reader.read(1)
                while first:
                    request = await self._read(first, reader)
                    self.requests.append(request)
                    following = asyncio.create_task(reader.read(1))
                    handler = asyncio.create_task(self._answer(request, writer, following))
                    try:
                        await asyncio.wait([handler, following], return_when=asyncio.FIRST_COMPLETED)
                        if not handler.done():
                            handler.cancel()
                        with suppress(asyncio.CancelledError):
                            await handler
                        first = await following
                    finally:
                        handler.cancel()
                        following.cancel()
        finally:
            self.connections -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def _read(self, first: bytes, reader: asyncio.StreamReader) -> StubRequest:
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode()
        line, *rest = head.strip().split("\r\n")
        method, path, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return StubRequest(method, path, headers, body)

    async def _answer(self, request: StubRequest, writer: asyncio.StreamWriter, following: asyncio.Task[bytes]) -> None:
        reply = StubReply(writer)
        following.add_done_callback(lambda _: reply.gone.set())
        answer = self.answers.get(request.path)
        if callable(answer):
            handler: Callable[[StubRequest, StubReply], Awaitable[None]] = answer
            await handler(request, reply)
        elif isinstance(answer, bytes):
            await reply.content(answer)
        elif answer is None:
            await reply.json({"error": f"no answer for {request.path}"}, 404)
        else:
            await reply.json(answer)


class StubClient(EngineClient):
    """The engine as services are given it, over a stub: models are those that the test names, by id and type."""

    def __init__(self, endpoint: Endpoint, models: dict[str, str]) -> None:
        super().__init__(endpoint)
        self._models = models
        self.held: list[str] = []
        """Models that are in use now."""

    @asynccontextmanager
    async def model(self, name: str, model_type: str, *, default: str = "") -> AsyncIterator[str]:
        """Hold a model; the default or the only one of that type if none is named."""
        wanted = name or (default if default in self._models else "")
        wanted = wanted or next((each for each, kind in self._models.items() if kind == model_type), default)
        if wanted not in self._models:
            raise NotFound(f"Model {wanted} is not installed.")
        if self._models[wanted] != model_type:
            raise BadRequest(f"{wanted} is a {self._models[wanted]} model.")
        self.held.append(wanted)
        try:
            yield wanted
        finally:
            self.held.remove(wanted)
