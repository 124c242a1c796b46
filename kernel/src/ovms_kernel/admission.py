"""A request from its admission to its end: decoded once, told to who listens, its outcome told too."""

from __future__ import annotations

import asyncio
import codecs
import json
import math
import os
import re
import time
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import msgspec

from ovms_kernel.errors import BadRequest, Cancelled, OvmsError
from ovms_kernel.values import Call, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from ovms_kernel.errors import TimedOut
    from ovms_kernel.events import Events
    from ovms_kernel.values import Request


T = TypeVar("T")


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


PROMPT_TOKENS = re.compile(rb'"(?:prompt|input)_tokens":\s*(\d+)')
COMPLETION_TOKENS = re.compile(rb'"(?:completion|output)_tokens":\s*(\d+)')
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB]HH\\u[dD][c-fC-F]HH|(u[dD][89a-fA-F]HH)|.)".replace(b"H", rb"[0-9a-fA-F]"), re.DOTALL
)
"""An escape in JSON: both halves of a character, one half without the other (the group), or any other."""
_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)
"""For what msgspec refuses: it decodes ten times slower, and says in more words what is wrong."""


def decode_request(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in a request, or in a text message of a session.

    Python would also take what no engine takes: NaN, numbers beyond a double, other encodings. Half of a character,
    which clients leave where they cut a text, becomes U+FFFD.

    :raises BadRequest: there is something else in it.
    """
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        body = _decode_slowly(raw)
    if not isinstance(body, dict):
        raise BadRequest(f"The request must be one JSON object, not {type(body).__name__}.")
    return body


def _decode_slowly(raw: bytes) -> object:
    try:
        if re.search(rb"\\u[dD]", raw):
            raw = _ESCAPE.sub(lambda match: rb"\ufffd" if match[1] else match[0], raw)
        return _DECODER.decode(raw.decode())
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The request is not valid JSON ({error}); send one JSON object.") from error


class Sent:
    """What was sent back for one request."""

    __slots__ = ("_usage", "bytes_out", "first", "model")

    def __init__(self) -> None:
        self.bytes_out = 0
        self.first = 0.0
        """When the first piece was there, by the monotonic clock; 0 = not yet."""
        self.model = ""
        """The model that answered, where the service says so."""
        self._usage = b""

    def add(self, piece: bytes) -> None:
        """Count a piece, before it is handed on."""
        if not self.first:
            self.first = time.monotonic()
        self.bytes_out += len(piece)
        if b'"usage":{' in piece:
            self._usage = piece

    def tokens(self) -> tuple[int, int]:
        """Return the tokens of the request and of the answer; 0 where the answer does not say."""
        usage = self._usage.rpartition(b'"usage":{')[2]
        given, made = PROMPT_TOKENS.search(usage), COMPLETION_TOKENS.search(usage)
        return int(given[1]) if given else 0, int(made[1]) if made else 0


class Admission:
    """Admits a request to a service for the length of a block, and tells of its beginning and its end.

    Entered, it gives the call, and what the pieces of the answer are added to. A class rather than a generator, which
    would cost each request twice as much.

    :raises BadRequest: it is not a request.
    :raises Refused: an extension does not want it.
    """

    __slots__ = ("_began", "_call", "_events", "_sent")

    def __init__(self, events: Events, service: str, request: Request, *, streaming: bool) -> None:
        self._events = events
        self._call = _call_of(service, request, streaming=streaming)
        self._sent = Sent()
        self._began = 0.0

    async def __aenter__(self) -> tuple[Call, Sent]:
        self._began = time.monotonic()
        if self._events.listens("ovms_before_request"):
            try:
                await self._events.ask("ovms_before_request", call=self._call)
            except BaseException as error:
                await self._finish(error)
                raise
        return self._call, self._sent

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._finish(error)

    async def _finish(self, error: BaseException | None) -> None:
        if not self._events.listens("ovms_request_finished"):
            return
        code, cause = _code_of(error)
        sent = self._sent
        first_byte = sent.first - self._began if sent.first else None
        model = sent.model or (self._call.model if code == 200 else "")
        seconds = time.monotonic() - self._began
        outcome = Outcome(code, seconds, sent.bytes_out, cause, first_byte, model, *sent.tokens())
        if error is None:
            await self._events.tell("ovms_request_finished", call=self._call, outcome=outcome)
            return
        with anyio.CancelScope(shield=True):  # it may have been cancelled
            await self._events.tell("ovms_request_finished", call=self._call, outcome=outcome)


def _code_of(error: BaseException | None) -> tuple[int, str]:
    """Return the code of what a request ended with, and its cause."""
    if error is None:
        return 200, ""
    if isinstance(error, OvmsError):
        return error.code, error.message
    if isinstance(error, (GeneratorExit, anyio.get_cancelled_exc_class())):
        return Cancelled.code, "cancelled"
    return 500, type(error).__name__


def _call_of(service: str, request: Request, *, streaming: bool) -> Call:
    # Editors on Windows write the mark, and engines refuse it.
    raw = request.body.removeprefix(codecs.BOM_UTF8) if request.fields is None else b""
    body = decode_request(raw) if request.fields is None else request.fields
    # A field that is null counts as absent.
    if not isinstance(body.get("model"), str | None):
        raise BadRequest("The field model must be a string; name an installed model or leave it out.")
    return Call(
        request.id or os.urandom(16).hex(),
        service,
        str(body.get("model") or ""),
        body,
        raw,
        request.files,
        streaming=streaming,
        timeout=request.timeout,
        caller=request.caller,
        keep_alive=request.keep_alive,
        trace=request.trace,
        local_files=request.local_files,
    )


def end_of(request: Request) -> float | None:
    """Return when a request's time is up, by the loop's clock; ``None`` if it has no limit."""
    return None if request.timeout is None else asyncio.get_running_loop().time() + request.timeout


async def in_time(work: Awaitable[T], end: float | None, late: Callable[[], TimedOut]) -> T:
    """Await what a service does for a request: the only place that keeps a request's limit.

    :param end: when its time is up, by the loop's clock; ``None`` = never.
    :param late: makes the error for it.
    """
    if end is None:
        return await work
    limit = asyncio.timeout_at(end)  # costs half of what anyio's does
    try:
        async with limit:
            return await work
    except TimeoutError as error:
        if limit.expired():
            raise late() from error
        raise


def checked(answer: object, kind: type[T], service: str) -> T:
    """Return what a service answered if it is of the kind that faces can send.

    :raises OvmsError: it is something else.
    """
    if isinstance(answer, kind):
        return answer
    found = type(answer).__name__
    raise OvmsError(f"The service {service} answered with {found}, not {kind.__name__}; update or disable it.")
