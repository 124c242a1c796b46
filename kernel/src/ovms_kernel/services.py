"""What services over HTTP share, as data and two functions.

A :class:`Route` says where a request goes and what is changed on the way; :func:`forward` and :func:`forward_stream`
carry it there and back.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovms_kernel.errors import EngineFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ovms_kernel.drivers import Engine
    from ovms_kernel.values import Call, ServiceDefinition

Fields = dict[str, Any]


def unchanged(fields: Fields) -> Fields:
    """Change nothing."""
    return fields


@dataclass(frozen=True, slots=True)
class Route:
    """How requests of one service reach the engine's endpoint."""

    definition: ServiceDefinition
    prepare: Callable[[Fields], Fields] = unchanged
    """Makes the engine's request of the caller's fields; those that were null are gone already.

    A pure function; raises ``BadRequest`` for what the engine must not be asked.
    """
    finish: Callable[[Fields, str], Fields] | None = None
    """Makes the answer of the engine's answer and the model's id; ``None`` hands the engine's bytes on as they are."""


async def forward(route: Route, call: Call, engine: Engine) -> bytes:
    """Answer a call with what the engine answers.

    :raises OvmsError: whatever the model, the request or the engine deserves.
    """
    model, body = await _request(route, call, engine, streaming=False)
    answer = await engine.post(route.definition.endpoint, body, timeout=call.timeout)
    if route.finish is None:
        return answer.body
    return encode(route.finish(decode_answer(answer.body), model))


async def forward_stream(route: Route, call: Call, engine: Engine) -> AsyncIterator[bytes]:
    """Yield the engine's events as they arrive, byte for byte; closing the iterator stops the generation."""
    _, body = await _request(route, call, engine, streaming=True)
    events = engine.stream(route.definition.endpoint, body, timeout=call.timeout)
    try:
        async for event in events:
            yield event
    finally:
        await events.aclose()  # type: ignore[attr-defined]


async def _request(route: Route, call: Call, engine: Engine, *, streaming: bool) -> tuple[str, bytes]:
    """Return the model's id and the body to send: the caller's own bytes if nothing in them has to change."""
    model = await engine.ready(call.model, route.definition.model_type)
    fields = {name: value for name, value in call.body.items() if value is not None}
    fields = route.prepare(fields) | {"model": model}
    if route.definition.streaming:
        # How the host asked decides, not what the body says: AOG's conversion may lose or invent the field.
        fields["stream"] = streaming
        if not streaming:
            fields.pop("stream_options", None)
            if "stream" not in call.body:
                del fields["stream"]
    return model, call.raw if fields == call.body else encode(fields)


def encode(fields: Fields) -> bytes:
    """Return compact JSON."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def decode_answer(body: bytes) -> Fields:
    """Return the JSON object that the engine answered.

    :raises EngineFailed: it is something else.
    """
    try:
        value = json.loads(body)
    except ValueError as error:
        raise EngineFailed("The engine's answer is not valid JSON.") from error
    if not isinstance(value, dict):
        raise EngineFailed("The engine's answer is not a JSON object.")
    return value


def with_id(prefix: str) -> Callable[[Fields, str], Fields]:
    """Return a ``finish`` that adds ``id`` and ``model`` where the engine sends none, as strict clients want them."""
    return lambda answer, model: {"id": f"{prefix}-{uuid.uuid4().hex}", "model": model} | answer


def with_model(answer: Fields, model: str) -> Fields:
    """Add ``model`` where the engine sends none; a ``finish``."""
    return {"model": model} | answer
