"""Slow clients, slow engines, too many requests, and clients that leave."""

import asyncio
import json
import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from ovms_face_http import app, server
from ovms_kernel.compose import compose_kernel
from ovms_kernel.settings import read_settings
from ovms_kernel.testing.hub import FakeHub

Stub = Callable[[dict[str, Any]], AbstractAsyncContextManager[Any]]

ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
EVENT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"w"},"finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"
CHAT, COMPLETIONS = "/v3/chat/completions", "/v3/completions"


async def connect(port: int, *parts: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
    return reader, writer


def test_a_client_sees_signs_of_life_while_its_model_loads(
    start: Callable[..., AbstractContextManager[Any]],
) -> None:
    """The engine is paused, so that the load lasts; OpenAI's own client takes no notice of the comments."""
    fields = {"model": "tiny/chat", "messages": [{"role": "user", "content": "What is OpenVINO?"}], "stream": True}
    with start() as served, served.client() as client:
        client.post("/v1/chat/completions", json=fields | {"model": "tiny/embeddings"})  # starts the engine
        engine = psutil.Process(json.loads((served.data_dir / "run" / "engine.json").read_text())["pid"])
        engine.suspend()
        try:
            with client.stream("POST", "/v1/chat/completions", json=fields) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                lines = answer.iter_lines()
                assert next(lines).startswith(":")
                engine.resume()
                rest = [line for line in lines if line and not line.startswith(":")]
        finally:
            engine.resume()
        assert rest[-1] == "data: [DONE]"
        assert all(line.startswith("data: ") for line in rest)


async def test_an_engine_too_busy_to_be_asked_for_a_model_does_not_make_it_unknown(
    stubbed: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """404 would tell a client to give up; what was served a moment ago is asked for all the same."""
    monkeypatch.setattr("ovms_kernel.engine.client.PROBE_LIMIT", 0.2)
    monkeypatch.setattr("ovms_kernel.models.residency.FOREIGN_PERIOD", 0.0)
    busy = asyncio.Event()

    async def ready(_request: Any, reply: Any) -> None:
        if busy.is_set():
            await asyncio.Event().wait()
        await reply.json({})

    answers = {CHAT: ANSWER, "/v2/models/m/ready": ready, "/v2/models/other/ready": ready}
    async with stubbed(answers) as served, served.client() as client:
        assert (await client.post("/v1/chat/completions", json=ASKED)).status_code == 200
        busy.set()
        assert (await client.post("/v1/chat/completions", json=ASKED)).status_code == 200
        unknown = await client.post("/v1/chat/completions", json=ASKED | {"model": "other"})
        assert unknown.status_code == 504


async def test_openais_client_reads_past_comments_and_a_late_error(stubbed: Stub, monkeypatch: Any) -> None:
    monkeypatch.setattr(app, "PING_PERIOD", 0.1)

    async def late(request: Any, reply: Any) -> None:
        await asyncio.sleep(2.5)  # comments are sent once a second
        if b"fail" in request.body:
            await reply.json({"error": "no memory is left"}, 500)
            return
        await reply.events()
        await reply.piece(EVENT + DONE)
        await reply.end()

    async with (
        stubbed({CHAT: late}) as served,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key=served.key, max_retries=0) as client,
    ):
        create: Any = client.chat.completions.create
        stream = await create(**ASKED, stream=True)
        assert [chunk.choices[0].delta.content async for chunk in stream] == ["w"]
        stream = await create(**ASKED | {"user": "fail"}, stream=True)
        with pytest.raises(openai.APIError, match="no memory is left"):
            [chunk async for chunk in stream]


@pytest.mark.parametrize(("status", "code"), [(503, 503), (429, 503)])
async def test_an_engine_that_is_full_makes_clients_try_later(stubbed: Stub, status: int, code: int) -> None:
    async def full(request: Any, reply: Any) -> None:
        await reply.json({"error": "queue is full"}, status)

    async with stubbed({CHAT: full}) as served, served.client() as client:
        for stream in (False, True):
            answer = await client.post("/v1/chat/completions", json=ASKED | {"stream": stream})
            assert answer.status_code == code
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "overloaded"


async def test_the_request_beyond_the_limit_is_told_to_come_back(stubbed: Stub, monkeypatch: Any) -> None:
    monkeypatch.setattr(app, "AT_ONCE", 2)
    asked, release = asyncio.Semaphore(0), asyncio.Event()

    async def hold(request: Any, reply: Any) -> None:
        asked.release()
        await release.wait()
        await reply.json(ANSWER)

    async with stubbed({CHAT: hold}) as served, served.client() as client:
        held = [asyncio.create_task(client.post("/v1/chat/completions", json=ASKED)) for _ in range(2)]
        for _ in held:
            await asked.acquire()
        refused = await client.post("/v1/chat/completions", json=ASKED)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert (await client.get("/health")).status_code == 200
        release.set()
        assert [(await each).status_code for each in held] == [200, 200]
        assert (await client.post("/v1/chat/completions", json=ASKED)).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", ASKED),
        ("/v1/chat/completions", ASKED | {"stream": True}),
        ("/v1/chat/completions", ASKED | {"stream": True, "n": 3}),
        ("/v1/completions", {"model": "m", "prompt": "x", "stream": True}),
        ("/v1/responses", {"model": "m", "input": "x", "stream": True}),
        ("/v1/messages", ASKED | {"max_tokens": 5, "stream": True}),
        ("/v1/messages", ASKED | {"max_tokens": 5}),
        ("/api/chat", ASKED),
        ("/api/generate", {"model": "m", "prompt": "x"}),
    ],
)
async def test_a_client_that_leaves_ends_its_generation(stubbed: Stub, path: str, fields: dict[str, Any]) -> None:
    begun, ended, wanted = asyncio.Event(), asyncio.Semaphore(0), fields.get("n", 1)

    async def endless(request: Any, reply: Any) -> None:
        try:
            if b'"stream":true' in request.body.replace(b" ", b""):
                await reply.events()
            begun.set()
            while b'"stream":true' in request.body.replace(b" ", b""):
                await reply.piece(EVENT)
                await asyncio.sleep(0.01)
            await asyncio.sleep(60)
        finally:
            ended.release()

    async with asyncio.timeout(20), stubbed({CHAT: endless, COMPLETIONS: endless}) as served:
        _, writer = await connect(served.port, served.request(fields, path))
        await begun.wait()
        writer.close()
        for _ in range(wanted):
            await ended.acquire()


async def test_requests_that_do_not_arrive_are_given_up(stubbed: Stub, monkeypatch: Any) -> None:
    monkeypatch.setattr(server, "HEAD_LIMIT", 1.0)
    monkeypatch.setattr(server, "SILENCE_LIMIT", 1.0)
    async with stubbed({CHAT: ANSWER}) as served:
        whole = served.request(ASKED)
        head, _, body = whole.partition(b"\r\n\r\n")
        late = {
            "nothing": [],
            "half a head": [whole[:30]],
            "no body": [head + b"\r\n\r\n"],
            "half a body": [head + b"\r\n\r\n" + body[:10]],
            "half of a second head": [whole, whole[:30]],
        }
        opened = {name: await connect(served.port, *parts) for name, parts in late.items()}
        dripping = await connect(served.port, head + b"\r\n\r\n")
        began = time.monotonic()
        for byte in body[:8]:
            dripping[1].write(bytes([byte]))
            await asyncio.sleep(0.4)
        assert time.monotonic() - began > 2.5
        dripping[1].write(body[8:])
        async with asyncio.timeout(10):
            assert b" 200 " in await dripping[0].readuntil(b"\r\n\r\n"), "slow is not silent"
            for name, (reader, writer) in opened.items():
                left = await reader.read()
                assert (b" 200 " in left) == (name == "half of a second head")
                writer.close()
        dripping[1].close()


async def test_a_request_behind_another_waits_as_long_as_that_takes(stubbed: Stub, monkeypatch: Any) -> None:
    monkeypatch.setattr(server, "SILENCE_LIMIT", 0.5)

    async def slow(request: Any, reply: Any) -> None:
        await asyncio.sleep(3)
        await reply.json(ANSWER)

    async with stubbed({CHAT: slow}) as served:
        filled = served.request(ASKED | {"user": "x" * 300_000})
        reader, writer = await connect(served.port, served.request(ASKED))
        writer.write(filled)
        async with asyncio.timeout(20):
            for _ in range(2):
                head = await reader.readuntil(b"\r\n\r\n")
                assert b" 200 " in head
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        writer.close()


async def test_work_that_outlasts_the_end_is_told_that_the_server_stops(stubbed: Stub, monkeypatch: Any) -> None:
    monkeypatch.setattr(server, "DRAIN_LIMIT", 0.5)
    begun = asyncio.Semaphore(0)

    async def endless(request: Any, reply: Any) -> None:
        begun.release()
        await asyncio.sleep(60)

    async with asyncio.timeout(20), AsyncExitStack() as stack:
        served = await stack.enter_async_context(stubbed({CHAT: endless}))
        connections = [await connect(served.port, served.request(ASKED | {"stream": each})) for each in (True, False)]
        for _ in connections:
            await begun.acquire()
        await stack.aclose()
        for reader, writer in connections:
            answer = await reader.read()
            assert b" 503 " in answer.partition(b"\r\n")[0]
            assert b"The server is stopping." in answer
            writer.close()


async def test_a_pull_that_outlasts_the_end_is_kept_and_goes_on_after_it(
    stubbed: Callable[..., Any], monkeypatch: Any, fixtures: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "DRAIN_LIMIT", 0.5)
    with FakeHub(rate=200_000) as hub:
        hub.add("tiny/chat", fixtures / "text_generation")
        hubs = {"modelscope": {"endpoint": hub.url}}
        async with asyncio.timeout(30), AsyncExitStack() as stack:
            served = await stack.enter_async_context(stubbed({}, hubs=hubs))
            asked = served.request({"model": "tiny/chat"}, "/v2/repository/pull")
            reader, writer = await connect(served.port, asked)
            while hub.sent < 150_000:  # noqa: ASYNC110 - a hub tells of no event
                await asyncio.sleep(0.01)
            await stack.aclose()
            assert b'{"model":' not in await reader.read()
            writer.close()
        sent, hub.rate = hub.sent, 0
        async with compose_kernel(read_settings({}, data_dir=tmp_path, hubs=hubs)) as kernel:
            assert await kernel.list_models() == [], "nothing half written is listed"
            await kernel.pull_model("tiny/chat")
            assert await kernel.store.verify("tiny/chat") == []
        assert hub.sent - sent < 1_200_000, "what had arrived was not fetched again"


@pytest.mark.needs_posix  # Windows has no SIGTERM to drain at
async def test_signals_end_a_server_with_connections_that_do_nothing(
    start: Callable[..., AbstractContextManager[Any]],
) -> None:
    with start() as served:
        port = int(served.url.rpartition(":")[2])
        connections = [await connect(port), await connect(port, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")]
        connections.append(await connect(port, b"POST /v1/models HTTP/1.1\r\n"))
        began = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(served.process.wait, 15) == 143
        assert time.monotonic() - began < 15
        for _, writer in connections:
            writer.close()
