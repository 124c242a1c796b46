"""What needs no key: heads without end, connections that say nothing, and bodies that never arrive."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from ovms_embedded.rest import http, protocol
from ovms_embedded.rest.errors import HttpError
from tests.attack.conftest import attacked
from tests.engines.conftest import Engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.attack.conftest import Watch

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine without models."""
    made = Engine(tmp_path_factory.mktemp("target"))
    made.list()
    with attacked(made):
        yield made


def dial(target: Engine) -> socket.socket:
    return socket.create_connection(("127.0.0.1", target.port), timeout=20)


def answer_of(line: socket.socket) -> bytes:
    """Read to the end; a client that still sends may find the connection reset instead."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := line.recv(1 << 16):
            data += piece
    return data


HEADS: dict[str, Callable[[], bytes]] = {
    "one long line": lambda: LIVE + b"X: " + b"a" * (64 << 20),
    "many lines": lambda: LIVE + b"".join(b"X-%d: a\r\n" % at for at in range(1 << 20)),
    "nothing but blank lines": lambda: b"\r\n" * (8 << 20),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_without_end_is_cut_off(target: Engine, watch: Callable[[], Watch], kind: str) -> None:
    head = HEADS[kind]()
    with watch() as seen, dial(target) as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(head)
        answer = answer_of(line)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    assert seen.front < 30
    assert seen.seconds < 10
    assert target.http.get("/v2/health/live").status_code == 200


def test_as_many_headers_as_anybody_sends_are_taken_and_more_are_refused_in_words(target: Engine) -> None:
    for count, status in ((90, b"200"), (200, b"431")):
        with dial(target) as line:
            line.sendall(LIVE + b"".join(b"X-%d: a\r\n" % i for i in range(count)) + b"Connection: close\r\n\r\n")
            answer = answer_of(line)
        assert answer.startswith(b"HTTP/1.1 " + status), answer
    assert b"more than 100 headers" in answer


@pytest.mark.parametrize("size", [b"2147483648", b"9" * 4000], ids=["2 GB", "4000 digits"])
def test_a_body_that_is_too_large_is_refused_by_its_length(target: Engine, size: bytes) -> None:
    request = (
        b"POST /v3/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %s\r\n\r\n"
    )
    with dial(target) as line:
        line.sendall(request % size)
        answer = answer_of(line)
    assert answer.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 ")), answer


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[int]:
    config = uvicorn.Config(app, http=protocol.BoundedProtocol, port=0, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


@pytest.mark.anyio
@pytest.mark.parametrize("sent", [b"", b"\r\n", b"G", LIVE])
async def test_a_connection_that_says_nothing_or_half_is_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(protocol, "HEAD_PATIENCE", 0.3)
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        began = time.monotonic()
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 5
        writer.close()


@pytest.mark.anyio
async def test_a_second_request_has_as_long_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patience begins anew with each head, not with the connection."""
    monkeypatch.setattr(protocol, "HEAD_PATIENCE", 0.5)
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(4):
            writer.write(LIVE + b"\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.3)
        writer.write(LIVE)
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 408 ")
        writer.close()


@pytest.mark.anyio
async def test_a_body_that_stops_half_way_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_PATIENCE", 0.2)
    pieces = [{"type": "http.request", "body": b"half", "more_body": True}]

    async def receive() -> dict[str, Any]:
        return pieces.pop() if pieces else await asyncio.get_running_loop().create_future()

    with http.Held().request() as take, pytest.raises(HttpError) as refused:
        await http.read_body(receive, {}, 100, take)
    assert refused.value.status == 408


def test_bodies_are_counted_before_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HELD_LIMIT", 100)
    held = http.Held()
    with held.request() as one, held.request() as other:
        one(60)
        with pytest.raises(HttpError) as refused:
            other(60)
        assert refused.value.status == 503
        assert (b"retry-after", b"1") in refused.value.headers
        other(40)
    with held.request() as later:
        later(100)
