"""Anthropic's Messages API over the chat service: ``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ovms_dialect_anthropic import answers, requests
from ovms_kernel.api.faces import (
    EngineFailed,
    NotFound,
    OvmsError,
    Request,
    StreamedAnswer,
    decode_request,
    read_events,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request as HttpRequest
    from starlette.routing import BaseRoute
    from starlette.types import Receive, Scope, Send

    from ovms_dialect_anthropic.requests import Fields
    from ovms_kernel.api.faces import KernelApi

__all__ = ["Anthropic"]

SERVICE = "chat"


class Anthropic:
    """The dialect."""

    name = "anthropic"

    def routes(self, kernel: KernelApi) -> list[BaseRoute]:
        """Return the API's routes."""
        api = _Api(kernel)
        return [
            Route("/v1/messages", api.create, methods=["POST"]),
            Route("/v1/messages/count_tokens", api.count, methods=["POST"]),
            Route("/v1/messages/{rest:path}", api.unknown, methods=["GET", "POST", "DELETE"], include_in_schema=False),
        ]

    def error(self, status: int, message: str, code: str) -> Fields:
        """Return the body of an error."""
        del code
        return answers.error_of(status, message)


class _Api:
    def __init__(self, kernel: KernelApi) -> None:
        self._kernel = kernel

    async def create(self, http: HttpRequest) -> Response:
        """Answer a request, whole or streamed."""
        fields = decode_request(await http.body())
        chat = requests.to_chat(fields)
        thoughts = requests.thinking(fields) is not False and "thinking" in fields
        stops, model = requests.stops_of(fields), str(chat.get("model") or "")
        if fields.get("stream"):
            return _Stream(self._events(chat, http, answers.Events(model, thoughts=thoughts, stops=stops)))
        return JSONResponse(answers.from_chat(await self._ask(chat, http), thoughts=thoughts, stops=stops))

    async def count(self, http: HttpRequest) -> Response:
        """Count the tokens of a request: the model's own template and tokenizer do, for an answer of one token."""
        chat = requests.to_chat(decode_request(await http.body()), count=True)
        answer = await self._ask(chat, http)
        return JSONResponse({"input_tokens": (answer.get("usage") or {}).get("prompt_tokens", 0)})

    async def unknown(self, http: HttpRequest) -> Response:
        """What Anthropic has and nothing here does, such as batches."""
        raise NotFound(f"There is no {http.method} {http.url.path} here; send each message to /v1/messages.")

    async def _ask(self, chat: Fields, http: HttpRequest) -> Fields:
        answer = await self._kernel.invoke(SERVICE, _request(chat, http))
        found = json.loads(answer.body)
        if not isinstance(found, dict) or not found.get("choices"):
            raise EngineFailed("The engine's answer is not a chat completion.")
        return found

    async def _events(self, chat: Fields, http: HttpRequest, events: answers.Events) -> AsyncGenerator[bytes, None]:
        chat = chat | {"stream": True, "stream_options": {"include_usage": True}}
        chunks = read_events(self._kernel.stream(SERVICE, _request(chat, http)))
        async with aclosing(chunks):
            async for chunk in chunks:
                for each in events.chunk(chunk):
                    yield each
        for each in events.end():
            yield each


class _Stream(Response):
    """A streamed answer; the face keeps it alive and ends it when the client leaves."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        del receive, send
        streamed: StreamedAnswer = scope["ovms.stream"]
        await streamed(self._events, _failed, b"text/event-stream", answers.event("ping"))


def _request(chat: Fields, http: HttpRequest) -> Request:
    trace = http.headers.get("traceparent", "")
    return Request(fields=chat, caller=Anthropic.name, id=http.scope["ovms.request"], trace=trace)


def _failed(error: Exception) -> bytes:
    message = error.message if isinstance(error, OvmsError) else "Internal error; the log has the details."
    body = answers.error_of(500, message)
    return answers.event("error", error=body["error"])
