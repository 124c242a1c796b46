"""OpenAI's chat and text completions over an engine that answers one prompt with one text.

OpenAI's API takes ``n`` and lists of prompts, plain and streamed, and gives every answer an ``id``. The engine does
none of that: such a request becomes several to the engine, whose answers are merged under the right ``index`` with one
``usage``.
"""

from __future__ import annotations

import os
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from ovms_kernel.errors import BadRequest, EngineFailed
from ovms_kernel.services import (
    Fields,
    add_fields,
    body_of,
    check,
    decode_answer,
    encode,
    present,
    served_model,
)
from ovms_kernel.streams import yielded
from ovms_kernel.values import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from anyio.streams.memory import MemoryObjectSendStream

    from ovms_kernel.drivers import Engine
    from ovms_kernel.values import Call, ServiceDefinition

MOST_CHOICES = 128
"""Choices of one request: OpenAI's limit of ``n``."""
AT_ONCE = 16
"""Requests to the engine that are under way for one request of a client."""
SEEDS = 1 << 32
"""The engine's seeds are whole numbers below this."""
DONE = b"data: [DONE]\n\n"


class Completions(msgspec.Struct, frozen=True):
    """What differs between chat and text completions."""

    definition: ServiceDefinition
    prefix: str
    """How ids begin, such as ``chatcmpl``."""
    event: str
    """The ``object`` of a streamed event."""
    prepare: Callable[[Fields], list[Fields]]
    """Makes the engine's request for each prompt. Pure; raises ``BadRequest`` for what the engine cannot answer."""
    pieces: Callable[[Fields], list[Fields]]
    """Makes the streamed choices of a whole one, without ``index``."""


@dataclass(slots=True)
class Usage:
    """The tokens of several answers: those of a prompt count once, however many answers it has."""

    per_prompt: int
    """Answers to each prompt."""
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt_tokens": 0, "completion_tokens": 0})

    def add(self, number: int, usage: object) -> None:
        """Count what the answer of that number used."""
        given = usage if isinstance(usage, dict) else {}
        if number % self.per_prompt == 0:
            self.tokens["prompt_tokens"] += given.get("prompt_tokens") or 0
        self.tokens["completion_tokens"] += given.get("completion_tokens") or 0

    def fields(self) -> Fields:
        """Return it as OpenAI writes it."""
        return self.tokens | {"total_tokens": sum(self.tokens.values())}


class Plan(msgspec.Struct, frozen=True):
    """What the engine is asked for one request of a client."""

    requests: Sequence[Fields]
    per_prompt: int


def plan(kind: Completions, call: Call, *, streaming: bool) -> Plan:
    """Return the engine's requests.

    :raises BadRequest: the engine cannot answer this.
    """
    fields = _common(present(call))
    n = check(fields, "n", int, "a whole number")
    best_of = check(fields, "best_of", int, "a whole number")
    n = 1 if n is None else n
    if not 1 <= n <= MOST_CHOICES:
        raise BadRequest(f"The field n must be at least 1 and at most {MOST_CHOICES}.")
    if best_of is not None and best_of < n:
        raise BadRequest("The field best_of must be at least n.")
    if streaming:
        if (best_of or 1) > n:
            raise BadRequest("A stream cannot choose the best of several answers; leave best_of out.")
        fields["stream"] = True
    else:
        fields = {name: value for name, value in fields.items() if name not in ("stream", "stream_options")}
    chosen = best_of is not None and best_of > n
    if not chosen:
        fields = {name: value for name, value in fields.items() if name not in ("n", "best_of")}
    prompts = kind.prepare(fields)
    if len(prompts) * n > MOST_CHOICES:
        raise BadRequest(f"One request can have at most {MOST_CHOICES} answers, not {len(prompts) * n}; send several.")
    if chosen or n == 1:
        return Plan(prompts, 1)
    return Plan([_seeded(each, number) for each in prompts for number in range(n)], n)


def _common(fields: Fields) -> Fields:
    """Return a request's fields without what the engine refuses and what asks for nothing."""
    seed = check(fields, "seed", int, "a whole number")
    if seed is not None:
        # Front ends write -1 for a random seed, and seeds of 64 bits.
        fields = {name: value for name, value in fields.items() if name != "seed"} | (
            {} if seed < 0 else {"seed": seed % SEEDS}
        )
    if isinstance(options := fields.get("stream_options"), dict):
        kept = {name: value for name, value in options.items() if name == "include_usage" and value is not None}
        fields = {name: value for name, value in fields.items() if name != "stream_options"} | (
            {"stream_options": kept} if kept else {}
        )
    wanted = fields.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") == "text":
        del fields["response_format"]
    return fields


def _seeded(fields: Fields, number: int) -> Fields:
    """Give each of several answers a seed of its own; without one the engine draws it."""
    return fields | {"seed": (fields["seed"] + number) % SEEDS} if "seed" in fields else fields


# -- whole answers -----------------------------------------------------------------------------------------------------


async def complete(kind: Completions, call: Call, engine: Engine) -> Answer:
    """Return OpenAI's whole answer.

    :raises OvmsError: for a wrong request, a model that is not there, or a failure of the engine.
    """
    wanted = plan(kind, call, streaming=False)
    async with served_model(kind.definition, call, engine) as model:
        answers = await _answers(kind, wanted, model, call, engine)
    identity = {"id": new_id(kind.prefix), "model": model}
    if len(answers) == 1:
        return Answer(add_fields(answers[0], identity), model=model)
    merged = _merged([decode_answer(each) for each in answers], wanted.per_prompt)
    return Answer(encode(identity | merged), model=model)


async def _answers(kind: Completions, wanted: Plan, model: str, call: Call, engine: Engine) -> list[bytes]:
    """Return the engine's answer to each request of a plan."""
    endpoint = kind.definition.endpoint
    if len(wanted.requests) == 1:
        body = body_of(call, wanted.requests[0], model)
        return [_known_reason((await engine.post(endpoint, body)).body)]
    answers = [b""] * len(wanted.requests)
    limiter = anyio.Semaphore(AT_ONCE)

    async def ask(number: int, fields: Fields) -> None:
        async with limiter:
            body = encode(fields | {"model": model})
            answer = await engine.post(endpoint, body)
            answers[number] = _known_reason(answer.body)

    try:
        async with anyio.create_task_group() as group:
            for number, fields in enumerate(wanted.requests):
                group.start_soon(ask, number, fields)
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    return answers


def _merged(answers: Sequence[Fields], per_prompt: int) -> Fields:
    """Return one answer of several, with choices in their order and one usage."""
    usage = Usage(per_prompt)
    choices: list[Fields] = []
    for number, answer in enumerate(answers):
        usage.add(number, answer.get("usage"))
        choices += [choice | {"index": len(choices) + at} for at, choice in enumerate(answer.get("choices") or ())]
    return answers[0] | {"choices": choices, "usage": usage.fields()}


def _known_reason(body: bytes) -> bytes:
    """Replace the one ``finish_reason`` of the engine that OpenAI's API does not have."""
    # A quote within a text is escaped, so that this is found in no text.
    return body.replace(b'"finish_reason":"unknown"', b'"finish_reason":"stop"')


def new_id(prefix: str) -> str:
    """Return an id for an answer."""
    return f"{prefix}-{os.urandom(16).hex()}"


# -- streams -----------------------------------------------------------------------------------------------------------


async def stream_completion(kind: Completions, call: Call, engine: Engine) -> AsyncGenerator[bytes, None]:
    """Yield OpenAI's events; closing the iterator stops every generation.

    One prompt with one answer is passed on event by event. Several go to the engine at the same time.
    """
    wanted = plan(kind, call, streaming=True)
    async with (
        served_model(kind.definition, call, engine) as model,
        aclosing(_events(kind, wanted, model, call, engine)) as events,
    ):
        async for event in events:
            yield event


def _events(kind: Completions, wanted: Plan, model: str, call: Call, engine: Engine) -> AsyncGenerator[bytes, None]:
    """Return the events of a plan's requests as one stream."""
    identity = new_id(kind.prefix)

    def ask(fields: Fields) -> AsyncGenerator[bytes, None]:
        if fields.get("logprobs") not in (None, False):
            return _with_logprobs(kind, call, fields, model, engine)
        return engine.stream(kind.definition.endpoint, body_of(call, fields, model))

    if len(wanted.requests) == 1:
        return _identified(ask(wanted.requests[0]), identity, model, kind.event)
    sources = [lambda fields=fields: ask(fields) for fields in wanted.requests]
    return _interleaved(sources, wanted, {"id": identity, "object": kind.event})


async def _identified(
    events: AsyncGenerator[bytes, None], identity: str, model: str, name: str
) -> AsyncGenerator[bytes, None]:
    """Yield events with the fields that the engine leaves out, without decoding more than the first of them."""
    head = b""
    wrong, right = b'"object":"text_completion.chunk"', b'"object":"' + name.encode() + b'"'
    async with aclosing(events):
        async for chunk in events:
            if not head and (first := chunk.find(b"data: {")) >= 0:
                head = b"\n\ndata: {" + _lacking(chunk[first + 6 : chunk.find(b"\n\n", first)], identity, model)
            # The borders of events are found in no text, as a line's end is escaped there.
            whole = (b"\n\n" + chunk).replace(b"\n\ndata: {", head) if head else b"\n\n" + chunk
            yield _known_reason(whole[2:]).replace(wrong, right)


def _lacking(event: bytes, identity: str, model: str) -> bytes:
    """Return those fields of an event that it lacks, to be put before its own; the events of a stream are alike."""
    try:
        own = decode_answer(event)
    except EngineFailed:
        return b""
    lacks = {name: value for name, value in (("id", identity), ("model", model)) if name not in own}
    return encode(lacks)[1:-1] + (b"," if lacks and own else b"")


async def _with_logprobs(
    kind: Completions, call: Call, fields: Fields, model: str, engine: Engine
) -> AsyncGenerator[bytes, None]:
    """Yield events with the probabilities of their tokens; Intel's engine streams none, so it answers at the end."""
    options = {**(fields.get("stream_options") or {}), "include_logprobs": True}
    begun = False
    try:
        body = body_of(call, fields | {"stream_options": options}, model)
        async with aclosing(engine.stream(kind.definition.endpoint, body)) as events:
            async for event in events:
                begun = True
                yield event
    except BadRequest:
        if begun:
            raise
    if not begun:
        async for event in _streamed_late(kind, fields | {"model": model}, engine):
            yield event


async def _streamed_late(kind: Completions, fields: Fields, engine: Engine) -> AsyncGenerator[bytes, None]:
    """Yield a whole answer as a stream."""
    options = fields.get("stream_options") or {}
    asked = {name: value for name, value in fields.items() if name not in ("stream", "stream_options")}
    answer = decode_answer((await engine.post(kind.definition.endpoint, encode(asked))).body)
    head = {"created": answer.get("created") or int(time.time()), "model": fields["model"], "object": kind.event}
    with_usage = bool(options.get("include_usage"))
    for choice in answer.get("choices") or ():
        for piece in kind.pieces(choice):
            event = head | {"choices": [{"index": 0} | piece]} | ({"usage": None} if with_usage else {})
            yield b"data: " + encode(event) + b"\n\n"
    if with_usage:
        yield b"data: " + encode(head | {"choices": [], "usage": answer.get("usage")}) + b"\n\n"
    yield DONE


async def _interleaved(
    sources: Sequence[Callable[[], AsyncGenerator[bytes, None]]], wanted: Plan, identity: Fields
) -> AsyncGenerator[bytes, None]:
    """Yield the events of several streams as they arrive, each under the index of its stream, as one stream."""
    usage = Usage(wanted.per_prompt)
    last: Fields = {}
    with_usage = bool((wanted.requests[0].get("stream_options") or {}).get("include_usage"))
    async with aclosing(merged(sources)) as events:
        async for number, event in events:
            value = decode_answer(_known_reason(event))
            last = {name: value[name] for name in ("created", "model") if name in value}
            if value.get("usage"):
                usage.add(number, value["usage"])
            if not value.get("choices"):
                continue
            choices = [choice | {"index": number} for choice in value["choices"]]
            yield b"data: " + encode(value | identity | {"choices": choices}) + b"\n\n"
    if with_usage:
        yield b"data: " + encode(identity | {"choices": [], "usage": usage.fields()} | last) + b"\n\n"
    yield DONE


async def merged(
    sources: Sequence[Callable[[], AsyncGenerator[bytes, None]]],
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yield the JSON of what several generators stream as it arrives, with the number of each, without ``[DONE]``.

    The first error ends all of them.
    """
    limiter = anyio.Semaphore(AT_ONCE)

    async def read(number: int, send: MemoryObjectSendStream[tuple[int, bytes]]) -> None:
        async with limiter, aclosing(sources[number]()) as events:
            async for chunk in events:
                for event in chunk.split(b"\n\n"):
                    if event.startswith(b"data: {"):
                        await send.send((number, event[6:]))

    async def read_all(send: MemoryObjectSendStream[tuple[int, bytes]]) -> None:
        try:
            async with anyio.create_task_group() as group:
                for number in range(len(sources)):
                    group.start_soon(read, number, send)
        except BaseExceptionGroup as errors:
            raise first_of(errors) from errors

    async with aclosing(yielded(read_all)) as events:
        async for event in events:
            yield event


def first_of(errors: BaseExceptionGroup[Any]) -> BaseException:
    """Return the first error of a group that is no group."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
