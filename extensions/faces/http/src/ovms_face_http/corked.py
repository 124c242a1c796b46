"""A transport that gathers what is written in one turn of the event loop, as system calls cost most here."""

from __future__ import annotations

import asyncio
from typing import Any

AT_ONCE = 64 << 10
"""Bytes that are gathered at most."""


class Corked(asyncio.Transport):
    """Writes to another transport once a turn: head and body of an answer together, and the events of one read."""

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._inner = inner
        self._loop = loop
        self._waiting: list[bytes] = []
        self._size = 0

    def write(self, data: Any) -> None:  # noqa: ANN401 - bytes of any kind
        """Write soon."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)
        self._size += len(data)
        if self._size > AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
            self._waiting.clear()
            self._size = 0
            if not self._inner.is_closing():
                self._inner.write(data)

    def close(self) -> None:
        """Close once everything is written."""
        self._flush()
        self._inner.close()

    def abort(self) -> None:
        """Close at once."""
        self._waiting.clear()
        self._inner.abort()

    def is_closing(self) -> bool:
        """Tell whether it closes."""
        return self._inner.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - as asyncio has it
        """Return what the other transport knows."""
        return self._inner.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Read nothing for a while."""
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._inner.resume_reading()

    def is_reading(self) -> bool:
        """Tell whether it reads."""
        return self._inner.is_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand what is read to another protocol."""
        self._inner.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return who is handed what is read."""
        return self._inner.get_protocol()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait for the other side to read."""
        return self._size + self._inner.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set from how many waiting bytes on the protocol is to pause."""
        self._inner.set_write_buffer_limits(high, low)

    def can_write_eof(self) -> bool:
        """Tell whether the writing side can be closed alone."""
        return self._inner.can_write_eof()

    def write_eof(self) -> None:
        """Close the writing side."""
        self._flush()
        self._inner.write_eof()
