"""Streams of events: whole, in order, at once, and ended by an error where they do not end well."""

import itertools
import json
import random
import tracemalloc
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from ovms_kernel.errors import EngineFailed


def event(text):
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False).encode() + b"\n\n"


EVENTS = [event("a"), event("你好 \\n\\n"), event('"error"'), event("x" * 5000), b"data: [DONE]\n\n"]


def pieces(*parts):
    async def answer(request, reply):
        await reply.events()
        for part in parts:
            await reply.piece(part)
        await reply.end()

    return answer


async def collect(client, *, into=None, arrived=None):
    got = [] if into is None else into
    async for each in client.stream("/v3/x", b"{}"):
        assert each.endswith(b"\n\n"), "events that have arrived share an item, and each is whole"
        got += [event + b"\n\n" for event in each[:-2].split(b"\n\n")]
        if arrived:
            arrived.set()
    return got


async def test_events_are_whole_however_they_are_cut(engine, client):
    data = b"".join(EVENTS)
    rng = random.Random(1)  # a fixed seed: the same cuts each time
    cuts = [rng.sample(range(1, len(data)), rng.randrange(30)) for _ in range(60)]
    blanks = [at for at in range(len(data)) if data[at : at + 2] == b"\n\n"]
    cuts += [[at + 1 for at in blanks], [at + 2 for at in blanks], list(range(1, 200))]
    for each in cuts:
        parts = [data[a:b] for a, b in itertools.pairwise([0, *sorted(set(each) - {len(data)}), len(data)])]
        engine.answers["/v3/x"] = pieces(*parts)
        assert await collect(client) == EVENTS


async def test_an_event_is_handed_on_before_the_next_one_exists(engine, client):
    seen = anyio.Event()

    async def answer(request, reply):
        await reply.events()
        await reply.piece(EVENTS[0])
        await seen.wait()
        await reply.piece(EVENTS[1])
        await reply.end()

    engine.answers["/v3/x"] = answer
    got: list[Any] = []
    with anyio.fail_after(3):
        async for each in client.stream("/v3/x", b"{}"):
            got.append(each)
            seen.set()
    assert got == EVENTS[:2]


@pytest.mark.parametrize("tail", [b'{"error": "%s"}', b'data: {"error": {"message": "%s"}}\n\n'])
async def test_an_error_in_the_stream_is_raised_after_what_came_before(engine, client, tail):
    cause = b'Calculator::Process() for node \\"LLM\\" failed: out of memory'
    engine.answers["/v3/x"] = pieces(EVENTS[0], tail % cause)
    got: list[Any] = []
    with pytest.raises(EngineFailed, match=r"^The engine says: out of memory$"):
        await collect(client, into=got)
    assert got == EVENTS[:1]


@pytest.mark.parametrize("how", ["cut", "end"])
async def test_half_an_event_is_an_error(engine, client, how):
    seen = anyio.Event()

    async def answer(request, reply):
        await reply.events()
        await reply.piece(EVENTS[0])
        await seen.wait()  # Windows drops what was not read when a connection breaks
        await reply.piece(EVENTS[1][:-9])
        if how == "cut":
            reply.cut()
        else:
            await reply.end()

    engine.answers["/v3/x"] = answer
    got: list[Any] = []
    with pytest.raises(EngineFailed, match="in the middle"):
        await collect(client, into=got, arrived=seen)
    assert got == EVENTS[:1]


async def test_a_last_event_may_lack_its_blank_line(engine, client):
    engine.answers["/v3/x"] = pieces(EVENTS[0], b"data: [DONE]")
    assert await collect(client) == [EVENTS[0], b"data: [DONE]\n\n"]


@pytest.mark.parametrize("way", ["close", "cancel"])
async def test_leaving_a_stream_stops_the_generation(engine, client, way):
    stopped = anyio.Event()

    async def answer(request, reply):
        await reply.events()
        try:
            while True:
                await reply.piece(EVENTS[0])
                await anyio.sleep(0.001)
        finally:
            stopped.set()

    engine.answers["/v3/x"] = answer

    async def read(then):
        async with aclosing(client.stream("/v3/x", b"{}")) as events:
            async for _ in events:
                if then():
                    break

    if way == "close":
        await read(lambda: True)
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(read, group.cancel_scope.cancel)
    with anyio.fail_after(2):
        await stopped.wait()


async def test_a_slow_reader_slows_the_engine_and_memory_stays_flat(engine, client):
    sent = 0
    piece = event("x" * 1000) * 50

    async def answer(request, reply):
        nonlocal sent
        await reply.events()
        for _ in range(2000):  # 100 MB in all
            await reply.piece(piece)
            sent += len(piece)
        await reply.end()

    engine.answers["/v3/x"] = answer
    tracemalloc.start()
    async with aclosing(client.stream("/v3/x", b"{}")) as events:
        before = None
        async for _ in events:
            if before is None:
                # Nothing is read now; the engine must come to a stop by itself.
                while before != sent:
                    before = sent
                    await anyio.sleep(0.1)
                break
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < sent < 20_000_000, "the engine was not slowed down"
    assert peak < 5_000_000
