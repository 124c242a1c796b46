"""What services over HTTP share, as data and two functions.

A :class:`Route` says where a request goes and what is changed on the way; :func:`forward` and :func:`forward_stream`
carry it there and back.
"""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from ovms_kernel.errors import BadRequest, EngineFailed
from ovms_kernel.values import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from ovms_kernel.drivers import Engine
    from ovms_kernel.values import Call, ServiceDefinition

Fields = dict[str, Any]

MAX_BODY = 1 << 30
"""Bytes of a request that the engine takes."""


def unchanged(fields: Fields) -> Fields:
    """Change nothing."""
    return fields


class Route(msgspec.Struct, frozen=True):
    """How requests of one service reach the engine's endpoint."""

    definition: ServiceDefinition
    prepare: Callable[[Fields], Fields] = unchanged
    """Makes the engine's request of the caller's fields; those that were null are gone already.

    Where the service streams, ``stream`` is there and true if the host asked for a stream, and else it is not there.
    A pure function; raises ``BadRequest`` for what the engine must not be asked.
    """
    adds: Callable[[str], Fields] | None = None
    """Given the model's id, returns fields that the engine leaves out of its answer; where it has them, its own count.

    The answer is not decoded for it, as embeddings may have megabytes.
    """
    finish: Callable[[Fields, str], Fields] | None = None
    """Makes the answer of the engine's answer and the model's id, where adding is not enough."""


async def forward(route: Route, call: Call, engine: Engine) -> Answer:
    """Answer a call with what the engine answers.

    :raises OvmsError: whatever the model, the request or the engine deserves.
    """
    fields = _prepared(route, call, streaming=False)
    async with served_model(route.definition, call, engine) as model:
        answer = await engine.post(route.definition.endpoint, body_of(call, fields, model))
    body = answer.body
    if route.finish is not None:
        body = encode(route.finish(decode_answer(body), model))
    return Answer(body if route.adds is None else add_fields(body, route.adds(model)), model=model)


async def forward_stream(route: Route, call: Call, engine: Engine) -> AsyncGenerator[bytes, None]:
    """Yield the engine's events as they arrive, byte for byte; closing the iterator stops the generation."""
    fields = _prepared(route, call, streaming=True)
    async with served_model(route.definition, call, engine) as model:
        body = body_of(call, fields, model)
        async with aclosing(engine.stream(route.definition.endpoint, body)) as events:
            async for event in events:
                yield event


def _prepared(route: Route, call: Call, *, streaming: bool) -> Fields:
    """Return the engine's fields but for the model; checked before it is looked for, as it may have to be loaded."""
    fields = present(call)
    if route.definition.streaming:
        # How the caller asked decides, not what the body says: a host's conversion may lose or invent the field.
        if streaming:
            fields["stream"] = True
        else:
            fields = {name: value for name, value in fields.items() if name not in ("stream", "stream_options")}
    return route.prepare(fields)


def body_of(call: Call, fields: Fields, model: str) -> bytes:
    """Return the body to send: the caller's own bytes if nothing in them has to change."""
    fields = {**fields, "model": model}
    return call.raw if call.raw and fields == call.fields else encode(fields)


def present(call: Call) -> Fields:
    """Return the fields of a request; one that is null counts as absent.

    :raises BadRequest: the request is larger than the engine takes.
    """
    if len(call.raw) > MAX_BODY:
        raise BadRequest(f"The request has {len(call.raw)} bytes; the engine takes at most {MAX_BODY}.")
    return {name: value for name, value in call.fields.items() if value is not None}


def served_model(definition: ServiceDefinition, call: Call, engine: Engine) -> AbstractAsyncContextManager[str]:
    """Hold the model for a call, loaded: the one it names, else the default, else the only sensible one.

    :raises NotFound: it is not installed; the sentence lists what is, and how to pull it.
    :raises BadRequest: it is a model of another type.
    """
    return engine.model(call.model, definition.model_type, default=definition.default_model)


def need(fields: Mapping[str, Any], name: str, kinds: type | tuple[type, ...], what: str) -> Any:  # noqa: ANN401 - any field
    """Return a field that has to be there and may not be empty.

    :param what: what it has to be, such as ``a list of messages``.
    :raises BadRequest: it is missing, empty or something else.
    """
    value = fields.get(name)
    if value is None:
        raise BadRequest(f"The request needs the field {name}: {what}.")
    if not isinstance(value, kinds) or isinstance(value, bool) or value in ("", []):
        raise BadRequest(f"The field {name} must be {what}.")
    return value


def check(fields: Mapping[str, Any], name: str, kinds: type | tuple[type, ...], what: str) -> Any:  # noqa: ANN401 - any field
    """Return a field that may be absent, then ``None``.

    :raises BadRequest: it is there and of another type.
    """
    value = fields.get(name)
    wrong_bool = isinstance(value, bool) and kinds is not bool
    if value is not None and (wrong_bool or not isinstance(value, kinds)):
        raise BadRequest(f"The field {name} must be {what}.")
    return value


def encode(fields: Fields) -> bytes:
    """Return compact JSON."""
    try:
        return msgspec.json.encode(fields)
    except OverflowError:  # a whole number of more than 64 bits
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def decode_answer(body: bytes) -> Fields:
    """Return the JSON object that the engine answered.

    :raises EngineFailed: it is something else.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError):
        value = _decode_slowly(body)
    if not isinstance(value, dict):
        raise EngineFailed("The engine's answer is not a JSON object.")
    return value


def _decode_slowly(body: bytes) -> object:
    """Decode what msgspec refuses, such as the NaN that some engines write."""
    try:
        return json.loads(body)
    except ValueError as error:
        raise EngineFailed("The engine's answer is not valid JSON.") from error


def add_fields(body: bytes, fields: Fields) -> bytes:
    """Return a JSON object with fields put before its own; those that it has itself are left as they are.

    :raises EngineFailed: the body is no JSON object.
    """
    inner = body.strip()
    if not inner.startswith(b"{") or not inner.endswith(b"}"):
        decode_answer(body)
    # A name that is nowhere in the text is no field of it. The other way round it may be, so it has to be looked at.
    if any(f'"{name}"'.encode() in inner for name in fields):
        own = decode_answer(body)
        fields = {name: value for name, value in fields.items() if name not in own}
    rest = inner[1:].lstrip()
    if not fields:
        return body
    return encode(fields)[:-1] + (b"" if rest == b"}" else b",") + rest


def with_model(model: str) -> Fields:
    """Add ``model``; an ``adds``."""
    return {"model": model}
