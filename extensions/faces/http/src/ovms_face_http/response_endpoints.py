"""``/v1/responses``: answers, and the conversations that are kept so that a client can go on with them."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovms_face_http import responses
from ovms_face_http.errors import unknown_url
from ovms_face_http.exchange import encode
from ovms_face_http.guard import Denied
from ovms_face_http.response_events import Events
from ovms_face_http.services import NAME, in_words
from ovms_kernel.api.faces import BadRequest, EngineFailed, NotFound, Request, decode_request, read_events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ovms_face_http.exchange import Exchange
    from ovms_face_http.responses import Fields, Translated
    from ovms_kernel.api.faces import KernelApi

CHAT = "chat"
"""The service that answers."""
KEPT_SECONDS = 3600.0
KEPT_BYTES = 64 << 20
KEPT_COUNT = 1000


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer that a client may go on with."""

    response: Fields
    messages: list[Fields]
    owner: str
    """Name of the key."""
    until: float
    size: int


class Store:
    """The last answers, bounded in number, size and age; nothing of them is written to a disk."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._size = 0

    def keep(self, response: Fields, messages: list[Fields], owner: str) -> None:
        """Keep an answer, and drop the oldest ones beyond the limit."""
        size = len(encode(messages)) + len(encode(response))
        self._kept[response["id"]] = Kept(response, messages, owner, time.monotonic() + KEPT_SECONDS, size)
        self._size += size
        while self._size > KEPT_BYTES or len(self._kept) > KEPT_COUNT or self._oldest().until < time.monotonic():
            self.drop(next(iter(self._kept)))
            if not self._kept:
                break

    def find(self, name: Any, owner: str) -> Kept:  # noqa: ANN401 - as the caller sent it
        """Return an answer.

        :raises NotFound: it is not kept any more, or belongs to another key.
        """
        found = self._kept.get(name) if isinstance(name, str) else None
        if found is None or found.owner != owner or found.until < time.monotonic():
            raise NotFound(f"Response {name!s:.80} is not stored, or no longer; send the whole conversation as input.")
        return found

    def drop(self, name: str) -> None:
        """Forget an answer."""
        self._size -= self._kept.pop(name).size

    def _oldest(self) -> Kept:
        return next(iter(self._kept.values()))


class Responses:
    """The endpoints."""

    def __init__(self, kernel: KernelApi) -> None:
        self._kernel = kernel
        self._store = Store()

    async def create(self, exchange: Exchange) -> None:
        """Answer a request, whole or streamed."""
        fields = decode_request(await exchange.body())
        streams = fields.get("stream") or False
        if not isinstance(streams, bool):
            raise BadRequest("The field stream must be true or false.")
        before = fields.get("previous_response_id")
        made = responses.to_chat(fields, self._store.find(before, exchange.caller).messages if before else [])
        for each in sorted(set(made.skipped)):
            text = f'199 - "skipped {each.encode("ascii", "replace").decode()[:80]}: not supported"'
            exchange.with_answer.append((b"warning", text.replace("\n", " ").encode()))
        if streams:
            events = Events(made)

            def failed(error: Exception) -> bytes:
                return events.fail(in_words(error), "server_error")

            await exchange.stream(self._stream(made, events, exchange), failed)
        else:
            made.chat.pop("stream", None)
            answer = await self._kernel.invoke(
                CHAT, Request(fields=made.chat, caller=NAME, id=exchange.id, trace=exchange.trace)
            )
            try:
                response = responses.from_chat(json.loads(answer.body), made)
            except (ValueError, LookupError, TypeError) as error:
                raise EngineFailed("The engine's answer is not a chat completion.") from error
            self._keep(made, response, exchange)
            await exchange.json(response)

    async def retrieve(self, exchange: Exchange) -> None:
        """Return an answer that is kept."""
        await exchange.json(self._store.find(_id_in(exchange), exchange.caller).response)

    async def delete(self, exchange: Exchange) -> None:
        """Forget an answer."""
        name = _id_in(exchange)
        self._store.find(name, exchange.caller)
        self._store.drop(name)
        await exchange.json({"id": name, "object": "response", "deleted": True})

    async def _stream(self, made: Translated, events: Events, exchange: Exchange) -> AsyncGenerator[bytes, None]:
        chat = made.chat | {"stream": True, "stream_options": {"include_usage": True}}
        chunks = read_events(
            self._kernel.stream(CHAT, Request(fields=chat, caller=NAME, id=exchange.id, trace=exchange.trace))
        )
        begun = False
        async with aclosing(chunks):
            async for chunk in chunks:
                if not begun:  # what is wrong with the request is said with a status, so before the first event
                    begun = True
                    for event in events.begin():
                        yield event
                for event in events.chunk(chunk):
                    yield event
        if not begun:
            raise EngineFailed("The engine's answer is empty.")
        for event in events.end():
            yield event
        self._keep(made, events.response(), exchange)

    def _keep(self, made: Translated, response: Fields, exchange: Exchange) -> None:
        if made.echo["store"]:
            self._store.keep(response, made.history + responses.said(response["output"]), exchange.caller)


def _id_in(exchange: Exchange) -> str:
    """Return the id at the end of the path; OpenAI has more below it, such as ``/input_items``."""
    _, _, name = exchange.path.partition("/responses/")
    if "/" in name:
        raise Denied(404, unknown_url(exchange.method, exchange.path).message, "unknown_url")
    return name
