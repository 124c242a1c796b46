"""Messages between the front process and a worker: MessagePack arrays, each behind its length in four bytes.

To a worker: ``[LOAD, spec]``, ``[CALL, id, operation, payload]``, ``[CANCEL, id]``. From a worker: ``[READY, info]``,
``[FAILED, sentence]``, ``[LOG, level, logger, text]``, ``[ITEMS, [[id, item], …]]``, ``[END, id, result]``,
``[ERROR, id, kind, sentence]``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgspec.msgpack

if TYPE_CHECKING:
    from collections.abc import Iterator

LOAD, CALL, CANCEL, READY, FAILED, LOG, ITEMS, END, ERROR = range(9)

INVALID = "INVALID_ARGUMENT"
"""The request is at fault; ends as HTTP 400."""
PRECONDITION = "FAILED_PRECONDITION"
"""The graph cannot do this; ends as HTTP 412."""
INTERNAL = "INTERNAL"
"""The engine is at fault; ends as HTTP 500."""

_LENGTH = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def pack(message: list[Any]) -> bytes:
    """Return a message as it goes over the pipe."""
    body = _encode(message)
    return _LENGTH.pack(len(body)) + body


class Unpacker:
    """Takes bytes as they arrive and gives whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[list[Any]]:
        """Yield every message that is complete now."""
        buffer = self._buffer
        if not buffer and len(data) > 4 and _LENGTH.unpack_from(data)[0] == len(data) - 4:
            yield _decode(memoryview(data)[4:])  # one message and no more, as nearly always
            return
        buffer += data
        start = 0
        end = len(buffer)
        while end - start >= 4:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if end - start - 4 < length:
                break
            yield _decode(bytes(buffer[start + 4 : start + 4 + length]))
            start += 4 + length
        if start:
            del buffer[:start]
