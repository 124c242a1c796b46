"""Many connections at once, over a stub of the engine that holds its streams open."""

import asyncio
import math
import os
from contextlib import suppress
from typing import Any

import psutil
import pytest

IDLE, STREAMS = 1000, 300
EVENT = b'data: {"id":"x","model":"m","choices":[{"index":0,"delta":{"content":"w"},"finish_reason":null}]}\n\n'
ANSWER = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "model": "m"}
ASKED = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture
def room() -> None:
    if os.name != "posix":
        return  # no limit of open files
    import resource

    need = 2 * (IDLE + 2 * STREAMS) + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < need:
        pytest.skip(f"this system allows {hard} open files, the test needs {need}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, need), hard))


class Client:
    """One connection."""

    def __init__(self, served: Any) -> None:
        self.served = served

    async def ask(self, fields: dict[str, Any] | None = None) -> bytes:
        """Send a request and return the head of its answer."""
        if not hasattr(self, "reader"):
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.served.port)
        health = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        self.writer.write(self.served.request(fields) if fields else health)
        return await self.reader.readuntil(b"\r\n\r\n")

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


async def test_idle_connections_and_open_streams_keep_nobody_out(
    stubbed: Any, room: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovms_kernel.models.residency.FOREIGN_PERIOD", math.inf)  # a slow machine asks once, too
    release = asyncio.Event()

    async def answer(request: Any, reply: Any) -> None:
        if b'"stream":true' not in request.body.replace(b" ", b""):
            await reply.json(ANSWER)
            return
        await reply.events()
        await reply.piece(EVENT)
        await release.wait()
        await reply.piece(b"data: [DONE]\n\n")
        await reply.end()

    async with stubbed({"/v3/chat/completions": answer}) as served:

        async def round_of() -> int:
            idle = [Client(served) for _ in range(IDLE)]
            for each in idle:
                assert b" 200 " in await each.ask()
            streams = [Client(served) for _ in range(STREAMS)]
            heads = await asyncio.gather(*(each.ask(ASKED | {"stream": True}) for each in streams))
            assert [head for head in heads if b" 200 " not in head] == []
            late = Client(served)
            for each in (late, idle[0], idle[-1]):
                if hasattr(each, "reader"):
                    await each.reader.read(1000)  # the body of its first answer
                async with asyncio.timeout(5):
                    assert b" 200 " in await each.ask(ASKED)
            release.set()
            for each in streams:
                assert b"[DONE]" in await each.reader.readuntil(b"0\r\n\r\n")
            release.clear()
            for each in (late, *idle, *streams):
                await each.close()
            return psutil.Process().memory_info().rss

        first = await round_of()
        asked = [each for each in served.engine.requests if each.path.endswith("/m/ready")]
        assert len(asked) < 10, "one answer serves all but those that ask at the same moment"
        second = await round_of()
        assert second - first < 20 << 20, "what connections take is given back"
