"""Requests and answers, between ASGI and the endpoints."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec.json

from ovms_embedded.cli import Media
from ovms_embedded.rest.errors import HttpError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping

    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Pieces = AsyncGenerator[bytes, None]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_LIMIT = 1 << 30
"""Bytes of a form, with a recording in it."""
JSON_LIMIT = 1 << 28
"""Bytes of a JSON body, with images in it."""
HELD_LIMIT = 1 << 30
"""Bytes of all bodies of requests that are not answered yet."""
BODY_PATIENCE = 30.0
"""Seconds of silence in the middle of a body."""
CLOSE = ((b"connection", b"close"),)
LARGE = 1 << 18
"""Bytes from which reading or writing a body is left to a thread, so that nobody else waits for it."""
DEPTH_LIMIT = 100
HALF = re.compile(rb"\\u[dD][89a-fA-F]")
ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB]HH\\u[dD][c-fC-F]HH|(u[dD][89a-fA-F]HH)|.)".replace(b"H", rb"[0-9a-fA-F]"), re.DOTALL
)
"""An escape in JSON: both halves of a character, one half without the other (the group), or any other."""
FORM_FIELDS = 1000
RETRY_AFTER = ((b"retry-after", b"1"),)
JSON = b"application/json"
EVENTS = b"text/event-stream"

encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


@dataclass
class Upload:
    """A file of a multipart form."""

    name: str
    data: bytes


@dataclass
class Request:
    """A generative request, after what all endpoints have in common."""

    path: str
    """Without the version prefix: ``chat/completions``."""
    model: str
    fields: dict[str, Any] = field(default_factory=dict)
    """The JSON object, or the text fields of a form."""
    files: dict[str, Upload] = field(default_factory=dict)
    multipart: bool = False
    stream: bool = False
    media: Media = field(default_factory=Media)
    """Which images it may name."""


@dataclass
class Reply:
    """An answer in one piece."""

    body: bytes
    content_type: bytes = JSON


@dataclass
class Stream:
    """An answer piece by piece; the status is sent with the first."""

    pieces: Pieces
    first: bytes = b""
    """The piece that is there already."""
    node: str = ""
    """The graph's node, for errors."""


class Disconnected(Exception):
    """The client is gone."""


class Held:
    """Counts the bytes of bodies that requests hold, before they are taken in."""

    def __init__(self) -> None:
        self.size = 0

    def request(self) -> Share:
        """Return the share of one request, to be used until it is answered."""
        return Share(self)


class Share:
    """The bytes that one request holds; they are free again at its end."""

    __slots__ = ("_held", "_size")

    def __init__(self, held: Held) -> None:
        self._held = held
        self._size = 0

    def __enter__(self) -> Callable[[int], None]:
        """Return what takes so many bytes more."""
        return self._take

    def __exit__(self, *_: object) -> None:
        """Free them."""
        self._held.size -= self._size

    def _take(self, size: int) -> None:
        """Take so many bytes more.

        :raises HttpError: all requests together would hold too many.
        """
        if self._held.size + size > HELD_LIMIT:
            raise HttpError(503, "The server holds too many large requests, try again later.", RETRY_AFTER + CLOSE)
        self._held.size += size
        self._size += size


async def read_body(receive: Receive, headers: dict[bytes, bytes], limit: int, take: Callable[[int], None]) -> bytes:
    """Return the body of a request.

    :param take: called with the bytes of each piece, before it is kept.
    :raises HttpError: it is too large, or does not arrive.
    :raises Disconnected: the client went away before its end.
    """
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and (len(declared) > len(str(limit)) or int(declared) > limit):
        raise HttpError(413, f"Request body is too large: it may have {limit} bytes.", CLOSE)
    loop = asyncio.get_running_loop()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_PATIENCE) as patience:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                piece: bytes = message.get("body", b"")
                take(len(piece))
                if len(body) + len(piece) > limit:
                    raise HttpError(413, f"Request body is too large: it may have {limit} bytes.", CLOSE)
                if not body and not message.get("more_body"):
                    return piece
                body += piece
                if not message.get("more_body"):
                    return bytes(body)
                patience.reschedule(loop.time() + BODY_PATIENCE)
    except TimeoutError:
        raise HttpError(408, "The body of the request did not arrive in time.", CLOSE) from None


def read_json(body: bytes) -> dict[str, Any]:
    """Return a body that is a JSON object; half of a character without the other becomes U+FFFD.

    :raises HttpError: it is none, or nested too deeply.
    """
    try:
        if HALF.search(body):
            body = ESCAPE.sub(lambda match: rb"\ufffd" if match[1] else match[0], body)
        fields = _decode(body)
    except RecursionError:
        raise HttpError(412, "JSON body exceeds the nesting limit") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HttpError(412, f"Cannot parse JSON body: {error}") from error
    if not isinstance(fields, dict):
        raise HttpError(412, "JSON body must be an object")
    if body.count(b"[") + body.count(b"{") > DEPTH_LIMIT and _depth(fields) > DEPTH_LIMIT:
        raise HttpError(412, "JSON body exceeds the nesting limit")
    return fields


def _depth(value: object) -> int:
    depth = 0
    level: list[object] = [value]
    while level:
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ] if any(isinstance(each, (dict, list)) for each in level) else []  # fmt: skip
        depth += 1
    return depth - 1


async def read_form(body: bytes, content_type: bytes) -> tuple[dict[str, Any], dict[str, Upload]]:
    """Return the text fields and the files of a multipart form; a field that comes twice becomes a list.

    :raises HttpError: it is none.
    """
    from starlette.datastructures import Headers, UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield body

    headers = Headers(raw=[(b"content-type", content_type)])
    parser = MultiPartParser(headers, pieces(), max_files=FORM_FIELDS, max_fields=FORM_FIELDS, max_part_size=BODY_LIMIT)
    fields: dict[str, Any] = {}
    files: dict[str, Upload] = {}
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, LookupError) as error:
        raise HttpError(500, "Failed to parse multipart content") from error
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files[name] = Upload(value.filename or "", await value.read())
            elif name in fields:
                known = fields[name]
                fields[name] = [*known, value] if isinstance(known, list) else [known, value]
            else:
                fields[name] = value
    finally:
        await form.close()
    return fields, files
