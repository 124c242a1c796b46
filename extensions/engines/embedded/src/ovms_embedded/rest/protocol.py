"""HTTP of one connection, with bounds on what comes before a request: uvicorn has none with httptools."""

from __future__ import annotations

import http
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

HEAD_LIMIT = 1 << 16
"""Bytes of a request's first line and headers."""
HEADERS = 100
HEAD_PATIENCE = 10.0
"""Seconds in which a request's head must arrive once the connection is open, or once its first byte is there."""


class BoundedProtocol(HttpToolsProtocol):
    """Refuses heads that are too long, have too many headers, or do not arrive."""

    _reading_head = True
    _head = 0
    _timer: asyncio.TimerHandle | None = None
    _fault = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrives, no more of a head than is allowed."""
        if self._reading_head:
            self._await_head()
            part, data = data[: HEAD_LIMIT - self._head], data[HEAD_LIMIT - self._head :]
            self._head += len(part)
            super().data_received(part)
            if self._reading_head and self._head >= HEAD_LIMIT:
                self._refuse(431, f"The head of the request has more than {HEAD_LIMIT} bytes.")
        if data and not self.transport.is_closing():
            super().data_received(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count headers."""
        if len(self.headers) >= HEADERS:
            self._fault = f"The request has more than {HEADERS} headers."
            raise ValueError(self._fault)  # the parser stops, and the answer below is sent
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the request."""
        self._reading_head = False
        self._stop_waiting()
        super().on_headers_complete()

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
