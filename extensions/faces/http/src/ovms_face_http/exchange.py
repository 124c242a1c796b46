"""One request and its answer, between uvicorn and the endpoints."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import anyio
import msgspec.json

from ovms_face_http.guard import Denied
from ovms_kernel.api.faces import Cancelled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from ovms_face_http.guard import Headers

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = b"application/json"
EVENTS = b"text/event-stream"
encode = msgspec.json.Encoder().encode


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "caller", "headers", "id", "max_body", "method", "path", "query", "receive", "scope", "send", "started",
        "status", "streams", "with_answer",
    )  # fmt: skip

    def __init__(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, max_body: int, streams: set[Stream]
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.max_body = max_body
        self.streams = streams
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.id = request_id(self.headers.get(b"x-request-id"))
        self.caller = ""
        """Name of the key."""
        self.with_answer: Headers = [(b"x-request-id", self.id.encode())]
        """Headers of whatever the answer will be."""
        self.started = False
        self.status = 0

    @property
    def trace(self) -> str:
        """The caller's trace context, such as ``00-…-…-01``; empty if it sends none."""
        return self.headers.get(b"traceparent", b"").decode("latin-1")

    # -- the request -----------------------------------------------------------------------------------------------

    async def body(self) -> bytes:
        """Return the whole body.

        :raises Denied: it is too large.
        :raises Cancelled: the client is gone.
        """
        self._check_head()
        message = await self._next()
        parts: bytes | bytearray = message.get("body", b"")
        while message.get("more_body") and len(parts) <= self.max_body:
            message = await self._next()
            parts = bytearray(parts) if isinstance(parts, bytes) else parts
            parts += message.get("body", b"")
        if len(parts) > self.max_body:
            raise self._too_large()
        return bytes(parts)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives; raises as ``body`` does."""
        self._check_head()
        size, more = 0, True
        while more:
            message = await self._next()
            piece = message.get("body", b"")
            size += len(piece)
            if size > self.max_body:
                raise self._too_large()
            yield piece
            more = bool(message.get("more_body"))

    async def _next(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("The client closed the connection before its request was complete.")
        return message

    def _check_head(self) -> None:
        encoding = self.headers.get(b"content-encoding", b"identity").lower()
        if encoding != b"identity":
            name = encoding.decode("latin-1")[:40]
            raise Denied(415, f"The request is encoded as {name!r}; send it plain.", "unsupported_content_encoding")
        declared = self.headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.max_body:
            raise self._too_large()

    def _too_large(self) -> Denied:
        size = f"{self.max_body >> 20} MiB" if self.max_body >= 1 << 20 else f"{self.max_body} bytes"
        return Denied(
            413,
            f"The request is larger than {size}; send less, or raise faces.http.max_body.",
            "request_too_large",
            [(b"connection", b"close")],
        )

    # -- the answer ------------------------------------------------------------------------------------------------

    async def answer(
        self, body: bytes, status: int = 200, content_type: bytes = JSON, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """Send an answer in one piece."""
        await self.start(status, content_type, [(b"content-length", b"%d" % len(body)), *headers])
        await self.send({"type": "http.response.body", "body": body})

    async def json(self, value: Any, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:  # noqa: ANN401 - any JSON value
        """Send a JSON value."""
        await self.answer(encode(value), status, headers=headers)

    async def start(self, status: int, content_type: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Send the head of an answer; its body follows in pieces."""
        self.started, self.status = True, status
        head = [(b"content-type", content_type), *headers, *self.with_answer]
        await self.send({"type": "http.response.start", "status": status, "headers": head})

    async def stream(
        self,
        chunks: AsyncGenerator[bytes, None],
        failed: Callable[[Exception], bytes],
        content_type: bytes = EVENTS,
        ping: bytes = b": the model is at work\n\n",
    ) -> None:
        """Send an answer piece by piece, beginning with its first piece, so that an error before it has a status.

        :param failed: makes the last piece of an error that comes later.
        :param ping: what is sent while nothing arrives, so that the client does not give up; empty = nothing.
        """
        stream = Stream(self, content_type, ping)
        self.streams.add(stream)
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await stream.write(chunk)
        except Exception as error:
            if not self.started:
                raise
            await stream.write(failed(error))
        finally:
            self.streams.discard(stream)
        await stream.end()


class Stream:
    """An answer in pieces that is kept alive."""

    __slots__ = ("_busy", "_content_type", "_exchange", "_ping", "_send", "last")

    def __init__(self, exchange: Exchange, content_type: bytes, ping: bytes) -> None:
        self._exchange = exchange
        self._content_type = content_type
        self._ping = ping
        self._send = exchange.send
        self._busy = False
        self.last = time.monotonic()
        """When something was sent last."""

    async def write(self, chunk: bytes) -> None:
        """Send a piece, and before the first one the head."""
        self._busy = True
        if not self._exchange.started:
            await self._exchange.start(200, self._content_type, ((b"cache-control", b"no-store"),))
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        self.last = time.monotonic()
        self._busy = False

    async def ping(self) -> None:
        """Show the client that its answer is still being made; a client that reads nothing needs no such sign."""
        if self._ping and not self._busy:
            with anyio.move_on_after(0.5):
                await self.write(self._ping)
            self._busy = False

    async def end(self) -> None:
        """End the answer; one without any piece has a head all the same."""
        if not self._exchange.started:
            await self._exchange.start(200, self._content_type)
        await self._send({"type": "http.response.body", "body": b""})


def request_id(given: bytes | None) -> str:
    """Return the client's own id of its request if that can stand in a log, else a new one."""
    if given and len(given) <= 128 and given.isascii() and given.decode().isprintable() and b" " not in given:
        return given.decode()
    return f"req_{secrets.token_hex(12)}"
