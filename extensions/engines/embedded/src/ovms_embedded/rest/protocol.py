"""HTTP of one connection, with bounds on what comes before a request: uvicorn has none with httptools.

An exchange spares the application ASGI's messages where they cost much: a body that is there already, an answer in one
piece, the pieces of a stream, and a task that waits for the client to go away.
"""

from __future__ import annotations

import http
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

HEAD_LIMIT = 1 << 16
"""Bytes of a request's first line and headers."""
HEADERS = 100
HEAD_PATIENCE = 10.0
"""Seconds in which a request's head must arrive once the connection is open, or once its first byte is there."""
EXCHANGE = "ovms_embedded.exchange"
"""Where an exchange stands among the extensions of an ASGI scope."""


class Exchange:
    """One request and its answer."""

    __slots__ = ("_connection", "_cycle")

    def __init__(self, connection: BoundedProtocol, cycle: RequestResponseCycle) -> None:
        self._connection = connection
        self._cycle = cycle

    @property
    def disconnected(self) -> bool:
        """Whether the client is gone."""
        return self._cycle.disconnected

    @property
    def begun(self) -> bool:
        """Whether the head of the answer is sent."""
        return self._cycle.response_started

    def watch(self, leave: Callable[[], object] | None) -> None:
        """Have a function called when the client goes away, or none any more."""
        self._connection.leave = leave

    def take_body(self) -> bytes | None:
        """Return the whole body if it has arrived; else the application receives it."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected:
            return None
        cycle.flow.resume_reading()
        body = bytes(cycle.body)
        cycle.body = bytearray()
        return body

    async def reply(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Send an answer in one piece.

        :param headers: without the length.
        """
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        lines = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
            if name == b"connection" and value == b"close":
                cycle.keep_alive = False
        if not cycle.keep_alive and b"connection" not in lines:
            lines.append(b"connection: close\r\n")
        lines.append(b"content-length: %d\r\n\r\n" % len(body))
        if cycle.scope["method"] != "HEAD":
            lines.append(body)
        cycle.transport.write(b"".join(lines))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def abort(self) -> None:
        """Close the connection in the middle of an answer."""
        self._cycle.transport.close()

    async def write(self, piece: bytes) -> None:
        """Send a piece of an answer whose head is sent and names no length."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if piece and not cycle.disconnected:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))


class BoundedProtocol(HttpToolsProtocol):
    """Refuses heads that are too long, have too many headers, or do not arrive."""

    leave: Callable[[], object] | None = None
    """Called when the client goes away in the middle of a request."""
    _reading_head = True
    _head = 0
    _timer: asyncio.TimerHandle | None = None
    _fault = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting, and tell the request that runs."""
        self._stop_waiting()
        super().connection_lost(exc)
        if self.leave is not None:
            self.leave()

    def data_received(self, data: bytes) -> None:
        """Parse what arrives, no more of a head than is allowed."""
        if self._reading_head:
            part, data = data[: HEAD_LIMIT - self._head], data[HEAD_LIMIT - self._head :]
            self._head += len(part)
            super().data_received(part)
            if self._reading_head and self._head:
                self._await_head()
                if self._head >= HEAD_LIMIT:
                    self._refuse(431, f"The head of the request has more than {HEAD_LIMIT} bytes.")
        if data and not self.transport.is_closing():
            super().data_received(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count headers."""
        headers = self.headers
        if len(headers) >= HEADERS:
            self._fault = f"The request has more than {HEADERS} headers."
            raise ValueError(self._fault)  # the parser stops, and the answer below is sent
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin the request."""
        self._reading_head = False
        self._stop_waiting()
        super().on_headers_complete()
        self.scope["extensions"] = {EXCHANGE: Exchange(self, self.cycle)}  # type: ignore[dict-item]

    def on_message_complete(self) -> None:
        """Expect another head on the same connection."""
        self._reading_head = True
        self._head = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser does not take."""
        self._refuse(431 if self._fault else 400, self._fault or msg)

    def _await_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_PATIENCE, self._refuse, 408, "The request did not arrive in time.")

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, text: str) -> None:
        """Answer and close; what clients send after it is not read."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        line = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}"
        head = f"{line}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {len(text)}\r\nconnection: close"
        self.transport.write(f"{head}\r\n\r\n{text}".encode())
        self.transport.close()
