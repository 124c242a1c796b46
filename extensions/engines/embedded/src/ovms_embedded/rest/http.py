"""Requests and answers, between ASGI and the endpoints."""

from __future__ import annotations

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
LARGE = 1 << 18
"""Bytes from which reading or writing a body is left to a thread, so that nobody else waits for it."""
DEPTH_LIMIT = 100
FORM_FIELDS = 1000
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


class Disconnected(Exception):
    """The client is gone."""


async def read_body(receive: Receive, headers: dict[bytes, bytes]) -> bytes:
    """Return the body of a request.

    :raises HttpError: it is too large.
    :raises Disconnected: the client went away before its end.
    """
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > BODY_LIMIT:
        raise HttpError(413, "Request body is too large.", ((b"connection", b"close"),))
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        return bytes(message.get("body", b""))
    body = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > BODY_LIMIT:
            raise HttpError(413, "Request body is too large.", ((b"connection", b"close"),))
        if not message.get("more_body"):
            return bytes(body)
        message = await receive()


def read_json(body: bytes) -> dict[str, Any]:
    """Return a body that is a JSON object.

    :raises HttpError: it is none, or nested too deeply.
    """
    try:
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
