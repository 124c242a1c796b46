"""Connections: used again when that is safe, closed when it is not, and never a burden to a slow reader or engine."""

import socket
import struct

import anyio
import httpx
import pytest

from ovms_kernel.engine.client import EngineClient
from ovms_kernel.engine.transport import EngineTransport
from ovms_kernel.errors import BadRequest, Unavailable


async def ask(client, count=1):
    for _ in range(count):
        await client.post("/v3/x", b"{}")


async def test_one_connection_serves_many_requests(engine, client):
    engine.answers["/v3/x"] = {"a": 1}
    await ask(client, 20)
    assert engine.accepted == 1


async def test_32_callers_share_32_connections(engine, client):
    engine.answers["/v3/x"] = {"a": 1}
    async with anyio.create_task_group() as group:
        for _ in range(32):
            group.start_soon(ask, client, 10)
    assert len(engine.requests) == 320
    assert engine.accepted <= 32


async def test_a_connection_that_the_engine_will_close_is_not_used_again(engine, client):
    async def last(request, reply):
        await reply.raw(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")

    engine.answers["/v3/x"] = last
    await ask(client, 3)
    assert engine.accepted == 3


async def test_a_connection_that_was_unused_for_long_is_not_used_again(engine, client, monkeypatch):
    engine.answers["/v3/x"] = {}
    await ask(client)
    monkeypatch.setattr("ovms_kernel.engine.transport.IDLE_LIMIT", 0.0)
    await ask(client)
    assert engine.accepted == 2


async def test_a_connection_that_the_engine_has_dropped_is_not_used_again(engine, client):
    async def answer_and_drop(request, reply):
        await reply.json({})
        reply._writer.close()

    engine.answers["/v3/x"] = answer_and_drop
    await ask(client)
    with anyio.fail_after(2):
        while engine.connections:  # noqa: ASYNC110 - it is the kernel that tells the stub
            await anyio.sleep(0.001)
    await anyio.sleep(0.01)
    await ask(client)
    assert engine.accepted == 2


async def test_an_answer_that_ends_with_its_connection(engine, client):
    async def old(request, reply):
        await reply.raw(b'HTTP/1.0 200 OK\r\n\r\n{"old": ')
        await reply.raw(b"true}")
        reply._writer.close()

    engine.answers["/v3/x"] = old
    assert (await client.post("/v3/x", b"{}")).body == b'{"old": true}'


async def test_an_engine_that_answers_before_it_has_read_everything(engine, client):
    """OVMS refuses a body that is too large without reading it."""
    import asyncio

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 413 Too Large\r\ncontent-length: 20\r\n\r\n{"error":"too large"}'[:-1])
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.close()

    from ovms_kernel.values import Endpoint, Upload

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    client = EngineClient(Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", ""))
    with pytest.raises(BadRequest):
        await client.upload("/v3/x", {}, {"file": Upload("big", bytes(30_000_000))})
    await client.aclose()
    server.close()


async def test_cancelling_closes_the_connection(engine, client):
    began, ended = anyio.Event(), anyio.Event()

    async def hang(request, reply):
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    engine.answers["/v3/x"] = hang
    async with anyio.create_task_group() as group:
        group.start_soon(client.post, "/v3/x", b"{}")
        await began.wait()
        group.cancel_scope.cancel()
    with anyio.fail_after(2):
        await ended.wait()


async def test_closing_the_client_ends_what_is_under_way(engine, client):
    began = anyio.Event()

    async def hang(request, reply):
        began.set()
        await anyio.sleep_forever()

    engine.answers["/v3/x"] = hang
    caught = []

    async def post():
        with pytest.raises(Unavailable):
            await client.post("/v3/x", b"{}")
        caught.append(True)

    async with anyio.create_task_group() as group:
        group.start_soon(post)
        await began.wait()
        await client.aclose()
    assert caught


async def test_nothing_is_left_open(engine, client):
    engine.answers["/v3/x"] = {}
    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(ask, client)
    await client.aclose()
    with anyio.fail_after(2):
        while engine.connections:  # noqa: ASYNC110 - it is the kernel that tells the stub
            await anyio.sleep(0.001)


async def test_an_engine_that_dies_under_an_upload_is_one_error_and_no_noise(caplog):
    """What is left of the upload is not written to a connection that is gone, which asyncio would log each time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def upload():
            yield b"the first part"
            accepted, _ = listener.accept()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # dead, not closed
            accepted.close()
            for _ in range(20):
                yield b"another part"

        url = httpx.URL(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(httpx.ReadError):
            await EngineTransport().exchange(url, b"POST /v3/x HTTP/1.1\r\ncontent-length: 254\r\n\r\n", upload())
    assert [record.message for record in caplog.records] == []
