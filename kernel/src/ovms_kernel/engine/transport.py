"""HTTP/1.1 for httpx over asyncio and httptools, to one engine.

httpx's own transport costs more time per request than everything else that the plugin does;
``bench/services_overhead.py transports`` compares them. What is not needed towards an engine is not here: redirects,
proxies, HTTP/2, compression.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

import anyio
import httptools
import httpx

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, AsyncIterator, Iterable

HIGH_WATER = 256 * 1024
"""Bytes of an answer that wait for a slow reader before the engine is made to wait."""
CONNECT_LIMIT = 10.0
"""Seconds in which a connection must stand."""
IDLE_LIMIT = 4.0
"""Seconds after which an unused connection is not used again: before the engine drops it, which some do after 5 s.

A request that meets a connection just being dropped would fail, as it is never sent twice.
"""
IDLE_COUNT = 64
"""Unused connections that are kept."""


def head_of(method: str, url: httpx.URL, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a request's first lines, without the empty one that ends them."""
    lines = b"".join(b"%s: %s\r\n" % each for each in headers)
    return b"%s %s HTTP/1.1\r\n%s" % (method.encode(), url.raw_path, lines)


class EngineTransport(httpx.AsyncBaseTransport):
    """Connections to one origin, each used for one request at a time and then again.

    :param tls: for ``https``.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request, wait for the head of the answer, and hand the body over as it arrives."""
        assert isinstance(request.stream, httpx.AsyncByteStream)  # noqa: S101 - an AsyncClient sends no other
        head = head_of(request.method, request.url, request.headers.raw)
        status, headers, body = await self.exchange(request.url, head + b"\r\n", request.stream)
        return httpx.Response(status, headers=headers, stream=body)

    async def exchange(
        self, url: httpx.URL, head: bytes, content: bytes | AsyncIterable[bytes]
    ) -> tuple[int, list[tuple[bytes, bytes]], Body]:
        """Do the same for a caller that has the bytes; the body has to be read to its end or closed.

        :param url: where to connect to.
        :param head: all before the content.
        """
        connection = self._reuse() or await self._connect(url)
        self._busy.add(connection)
        try:
            await connection.send(head, content)
            status, headers = await connection.head()
        except BaseException:
            self.release(connection)
            raise
        return status, headers, Body(connection, self)

    async def aclose(self) -> None:
        """Close all connections; answers that are under way break off."""
        for connection in [*self._idle, *self._busy]:
            connection.transport.abort()
        self._idle.clear()

    def release(self, connection: _Connection) -> None:
        """Keep a connection for the next request if its answer was read to the end, else close it."""
        self._busy.discard(connection)
        if connection.reusable and len(self._idle) < IDLE_COUNT:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.transport.abort()

    def _reuse(self) -> _Connection | None:
        oldest = time.monotonic() - IDLE_LIMIT
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.transport.abort()
        return None

    async def _connect(self, url: httpx.URL) -> _Connection:
        loop = asyncio.get_running_loop()
        port = url.port or (443 if url.scheme == "https" else 80)
        tls = self._tls if url.scheme == "https" else None
        try:
            with anyio.fail_after(CONNECT_LIMIT):
                _, connection = await loop.create_connection(_Connection, url.host, port, ssl=tls)
        except OSError as error:  # TimeoutError is one
            raise httpx.ConnectError(str(error) or "timed out") from error
        return connection


class Body(httpx.AsyncByteStream):
    """The body of an answer; closing it before its end closes the connection, which stops the generation."""

    def __init__(self, connection: _Connection, owner: EngineTransport) -> None:
        self._connection: _Connection | None = connection
        self._owner = owner

    async def read(self) -> bytes:
        """Return all of it."""
        try:
            return b"".join([part async for part in self])
        finally:
            await self.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection and (data := await self._connection.read()):
            yield data
        await self.aclose()

    async def aclose(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._owner.release(connection)


class _Connection(asyncio.Protocol):
    """One connection, and the answer that is arriving on it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._lost: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._waiting_bytes = 0
        self._paused = False
        self._has_head = False
        self._complete = False
        self._sent = False
        self._keep_alive = False

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent."""
        done = self._sent and self._complete and not self._body
        return done and self._lost is None and self._keep_alive and not self.transport.is_closing()

    # -- what we do ------------------------------------------------------------------------------------------------

    async def send(self, head: bytes, content: bytes | AsyncIterable[bytes]) -> None:
        """Send a request; ends early when the engine answers before it has read everything."""
        self._reset()
        if isinstance(content, bytes):
            self._sent = await self._write(head, content)
            return
        async for part in content:
            if not await self._write(head, part):
                return
            head = b""
        self._sent = not head or await self._write(head)

    async def _write(self, *parts: bytes) -> bool:
        """Return false if no more is wanted: something is missing then, so this connection is not used again."""
        self.transport.writelines(parts)
        if not self._may_write.is_set():
            await self._may_write.wait()
        # A write that fails closes the transport at once, while `connection_lost` waits for its turn in the loop.
        return not self._has_head and not self.transport.is_closing()

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Wait for the status and the headers."""
        while not self._has_head:
            await self._wait()
        return self._parser.get_status_code(), self._headers

    async def read(self) -> bytes:
        """Wait for the next part of the body: everything that has arrived; empty at its end."""
        while not self._body:
            if self._complete:
                return b""
            await self._wait()
        data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._waiting_bytes = 0
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        return data

    async def _wait(self) -> None:
        if self._lost:
            raise httpx.ReadError(str(self._lost)) from self._lost
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    # -- what asyncio tells ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Of a stream protocol, but uvloop's does not derive from asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._complete:  # nobody asked for this
            self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.connection_lost(error)
            self.transport.abort()
        self._wake()
        if self._waiting_bytes > HIGH_WATER and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost is None:
            self._lost = exc or ConnectionResetError("the engine closed the connection")
        if self._has_head and self._ends_with_connection() and exc is None:
            self._complete = True
        self._may_write.set()
        self._wake()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def _ends_with_connection(self) -> bool:
        return not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._headers)

    # -- what httptools tells --------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._has_head = True
        self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._waiting_bytes += len(body)

    def on_message_complete(self) -> None:
        self._complete = True
