"""Many connections at once, over a stub of the engine that holds its streams open."""

import asyncio
import json
import resource
from contextlib import AsyncExitStack, suppress
from typing import Any

import psutil
import pytest

from ovms_face_http import HttpFace, config
from ovms_kernel.compose import compose_kernel
from ovms_kernel.settings import read_settings
from ovms_kernel.testing.stub import StubEngine

IDLE, STREAMS = 1000, 300
EVENT = b'data: {"id":"x","model":"m","choices":[{"index":0,"delta":{"content":"w"},"finish_reason":null}]}\n\n'


@pytest.fixture
def room() -> None:
    need = 2 * (IDLE + 2 * STREAMS) + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < need:
        pytest.skip(f"this system allows {hard} open files, the test needs {need}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, need), hard))


class Client:
    """One connection."""

    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self.key = key

    async def ask(self, fields: dict[str, Any] | None = None) -> bytes:
        """Send a request and return the head of its answer."""
        if not hasattr(self, "reader"):
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        body = json.dumps(fields).encode() if fields else b""
        line = "POST /v1/chat/completions" if fields else "GET /health"
        head = f"{line} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {self.key}\r\ncontent-length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        return await self.reader.readuntil(b"\r\n\r\n")

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


async def test_idle_connections_and_open_streams_keep_nobody_out(tmp_path: Any, room: None) -> None:
    release = asyncio.Event()

    async def answer(request: Any, reply: Any) -> None:
        if b'"stream":true' not in request.body.replace(b" ", b""):
            await reply.json({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "model": "m"})
            return
        await reply.events()
        await reply.piece(EVENT)
        await release.wait()
        await reply.piece(b"data: [DONE]\n\n")
        await reply.end()

    ready: dict[str, Any] = {"/v2/health/live": {}, "/v2/health/ready": {}, "/v2/models/m/ready": {}, "/v1/config": {}}
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(StubEngine(ready | {"/v3/chat/completions": answer}))
        remote = {"url": engine.endpoint.rest, "api_key": engine.endpoint.api_key}
        kernel = compose_kernel(read_settings({}, data_dir=tmp_path, platforms={"remote": remote}))
        await stack.enter_async_context(kernel)
        await kernel.install_engine()
        composed = asyncio.get_running_loop().create_future()
        composed.set_result(kernel)
        where = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(HttpFace(config.read({"port": 0})).serve(composed, ready=where.set_result))
        port = int((await where).url.rpartition(":")[2])
        key = (tmp_path / "http" / "key").read_text().strip()

        first_of_all = Client(port, key)
        assert b" 200 " in await first_of_all.ask(asked)  # what the engine serves is known from here on
        await first_of_all.close()

        async def round_of() -> int:
            idle = [Client(port, key) for _ in range(IDLE)]
            for each in idle:
                assert b" 200 " in await each.ask()
            streams = [Client(port, key) for _ in range(STREAMS)]
            heads = await asyncio.gather(*(each.ask(asked | {"stream": True}) for each in streams))
            assert [head for head in heads if b" 200 " not in head] == []
            late = Client(port, key)
            for each in (late, idle[0], idle[-1]):
                if hasattr(each, "reader"):
                    await each.reader.read(1000)  # the body of its first answer
                async with asyncio.timeout(5):
                    assert b" 200 " in await each.ask(asked)
            release.set()
            for each in streams:
                assert b"[DONE]" in await each.reader.readuntil(b"0\r\n\r\n")
            release.clear()
            for each in (late, *idle, *streams):
                await each.close()
            return psutil.Process().memory_info().rss

        first = await round_of()
        second = await round_of()
        assert second - first < 20 << 20, "what connections take is given back"
        serving.cancel()
        await asyncio.wait([serving])
