"""Endpoints of the installed services, at the paths that their definitions name: OpenAI's requests, handed on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec

from ovms_face_http.errors import problem_of
from ovms_face_http.exchange import encode
from ovms_face_http.forms import read_form
from ovms_kernel.api.faces import BadRequest, OvmsError, Request, decode_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ovms_face_http.app import Endpoint
    from ovms_face_http.exchange import Exchange
    from ovms_kernel.api.faces import KernelApi, Service

log = logging.getLogger(__name__)

NAME = "http"
"""The face's name, as requests carry it."""
DONE = b"data: [DONE]\n\n"


class Head(msgspec.Struct):
    """What the face itself needs of a request, which it otherwise hands on as it came."""

    stream: bool | None = None


_head = msgspec.json.Decoder(Head)


def endpoints(kernel: KernelApi) -> Iterator[tuple[str, Endpoint]]:
    """Yield the path and the endpoint of every service that has paths."""
    for service in kernel.services.values():
        for path in service.definition.paths:
            endpoint = endpoint_of(kernel, service, path)
            yield path, endpoint
            if path.startswith("/v1/"):
                yield f"/v3/{path.removeprefix('/v1/')}", endpoint


def endpoint_of(kernel: KernelApi, service: Service, path: str) -> Endpoint:
    """Return the endpoint of one service at one path."""
    definition = service.definition
    name = definition.name
    sound: Callable[[Mapping[str, Any]], str] | None = getattr(service, "stream_content_type", None)
    # Two of OpenAI's paths lead to one service, which is told the difference by a field.
    added = {"task": "translate"} if path.endswith("/audio/translations") else {}

    async def answer(exchange: Exchange) -> None:
        request = await read_request(exchange, added)
        if path.endswith("/images/edits"):
            need_image(request)
        if sound and (content_type := speech_type(request, sound)):
            await exchange.stream(kernel.stream(name, request), failed, content_type, b"")
        elif definition.streaming and wants_stream(request):
            await exchange.stream(kernel.stream(name, request), failed)
        else:
            answer = await kernel.invoke(name, request)
            await exchange.answer(answer.body, content_type=answer.content_type.encode())

    return answer


async def read_request(exchange: Exchange, added: dict[str, Any] | None = None) -> Request:
    """Return the request as the kernel takes it: JSON as it came, a form as fields and files.

    :param added: fields that the path stands for.
    """
    content_type = exchange.headers.get(b"content-type", b"")
    if content_type.startswith(b"multipart/form-data"):
        fields, files = await read_form(content_type, exchange.pieces())
        return Request(fields=fields | (added or {}), files=files, caller=NAME, id=exchange.id, trace=exchange.trace)
    body = await exchange.body()
    if not body.strip():
        raise BadRequest("The request is empty; send one JSON object.")
    if added:
        return Request(fields=decode_request(body) | added, caller=NAME, id=exchange.id, trace=exchange.trace)
    return Request(body, caller=NAME, id=exchange.id, trace=exchange.trace)


def need_image(request: Request) -> None:
    """Refuse a change of no image, as without one the service would paint a new one.

    :raises BadRequest: there is none.
    """
    fields = request.fields if request.fields is not None else decode_request(request.body)
    if not fields.get("image") and not any(name.startswith("image") for name in request.files):
        raise BadRequest("The field image is missing; upload the image that is to be changed.")


def speech_type(request: Request, content_type: Callable[[Mapping[str, Any]], str]) -> bytes:
    """Return the content type of speech that is sent as it is spoken; empty if it is to be sent as a whole.

    OpenAI sends speech in pieces unless told otherwise. Of WAV only the whole has a right head.
    """
    fields = request.fields if request.fields is not None else decode_request(request.body)
    if fields.get("response_format") == "wav" and not fields.get("stream_format"):
        return b""
    return content_type(fields).encode()


def wants_stream(request: Request) -> bool:
    """Tell whether a request asks for its answer piece by piece.

    :raises BadRequest: it says so in a way that could mean either.
    """
    if request.fields is not None:
        stream = request.fields.get("stream")
    elif b'"stream"' not in request.body:
        return False
    else:
        try:
            stream = _head.decode(request.body).stream
        except msgspec.ValidationError as error:
            if "`$.stream`" not in str(error):
                return False  # it is no object, which admission says
            stream = ""
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            try:  # half of a character is no error
                stream = decode_request(request.body).get("stream")
            except BadRequest:
                return False  # admission says what is wrong with it
    if not isinstance(stream, bool | None):
        raise BadRequest("The field stream must be true or false.")
    return bool(stream)


def failed(error: Exception) -> bytes:
    """Return the event of an error in the middle of a stream, as OpenAI's clients understand it."""
    known = error if isinstance(error, OvmsError) else OvmsError(in_words(error))
    return b"data: " + encode(problem_of(known).as_dict()) + b"\n\n"


def in_words(error: Exception) -> str:
    """Return what a program reads of an error in the middle of its answer; one that nobody foresaw is logged."""
    if isinstance(error, OvmsError):
        return error.message
    log.error("An answer broke off", exc_info=error)
    return "Internal error; the log has the details."
