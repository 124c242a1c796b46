"""A request whose engine was replaced while it waited for it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ovms_kernel.engine.client import EngineClient, NotServed
from ovms_kernel.errors import NotFound, Unavailable
from ovms_kernel.request_engine import RequestEngine
from ovms_kernel.values import Answer, Endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator


class Replaced:
    """An engine that serves nothing until a model is loaded, as one does that was started again; and its residency."""

    def __init__(self) -> None:
        self.served: set[str] = set()
        self.loads: list[str] = []

    async def connect(self) -> Replaced:
        return self

    @asynccontextmanager
    async def use(self, model_type: str, name: str, **more: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(id=name)

    async def load(self, model_id: str) -> None:
        self.loads.append(model_id)
        self.served.add(model_id)

    def check(self) -> None:
        if not self.served:
            raise NotServed("The engine says: Mediapipe graph definition with requested name is not found")

    async def post(self, path: str, body: bytes, **more: Any) -> Answer:
        self.check()
        return Answer(b"done")

    async def stream(self, path: str, body: bytes, **more: Any) -> AsyncGenerator[bytes, None]:
        self.check()
        yield b"done"


@pytest.fixture
def replaced() -> Replaced:
    return Replaced()


@pytest.fixture
def engine(replaced: Replaced) -> RequestEngine:
    residency: Any = replaced
    connect: Any = replaced.connect
    return RequestEngine(connect, residency, None, {})


async def test_its_model_is_loaded_again_and_it_is_answered(replaced: Replaced, engine: RequestEngine) -> None:
    async with engine.model("me/m", "text_generation"):
        assert (await engine.post("/v3/x", b"{}")).body == b"done"
    assert replaced.loads == ["me/m"]


async def test_so_is_a_stream(replaced: Replaced, engine: RequestEngine) -> None:
    async with engine.model("me/m", "text_generation"):
        assert [each async for each in engine.stream("/v3/x", b"{}")] == [b"done"]
    assert replaced.loads == ["me/m"]


async def test_a_request_in_the_moment_of_the_engine_s_end_is_sent_to_the_next_engine(replaced: Replaced) -> None:
    ended: Any = EngineClient(Endpoint("http://127.0.0.1:1", ""))  # nobody listens there
    replaced.served.add("me/m")
    engines: list[Any] = [ended, ended, replaced]  # the supervisor notices after two tries

    async def connect() -> Any:
        return engines.pop(0)

    engine = RequestEngine(connect, replaced, None, {})  # type: ignore[arg-type]
    assert (await engine.post("/v3/x", b"{}")).body == b"done"
    assert not engines


async def test_a_stream_without_anything_in_it_is_an_error(replaced: Replaced, engine: RequestEngine) -> None:
    async def nothing(path: str, body: bytes, **more: Any) -> AsyncGenerator[bytes, None]:
        return
        yield b""

    replaced.stream = nothing  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="before it said anything"):
        _ = [each async for each in engine.stream("/v3/x", b"{}")]


async def test_an_engine_that_nobody_starts_again_is_told_soon(replaced: Replaced) -> None:
    ended: Any = EngineClient(Endpoint("http://127.0.0.1:1", ""))  # nobody listens there

    async def connect() -> Any:
        return ended

    engine = RequestEngine(connect, replaced, None, {}, 3600.0)  # type: ignore[arg-type]
    with anyio.fail_after(10), pytest.raises(Unavailable, match="does not answer"):
        await engine.post("/v3/x", b"{}")


async def test_a_request_without_a_model_is_refused(replaced: Replaced, engine: RequestEngine) -> None:
    with pytest.raises(NotFound):
        await engine.post("/v3/x", b"{}")
    assert replaced.loads == []
