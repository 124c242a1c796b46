"""The engine as services are given it, for one request."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

import anyio

from ovms_kernel.aliases import target
from ovms_kernel.engine.client import NotLoadedYet, NotReached, NotServed
from ovms_kernel.errors import TimedOut, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from ovms_kernel.aliases import AliasSettings
    from ovms_kernel.engine.client import EngineClient
    from ovms_kernel.models.residency import Residency
    from ovms_kernel.values import Answer, LocalModel, Upload

T = TypeVar("T")

RELOAD_LIMIT = 60.0
"""Seconds that a request without a limit waits for an engine that loads its model again, as after a crash."""
NOTICE_LIMIT = 2.0
"""Seconds until the supervisor has noticed that its engine ended, from when on a request waits for the next engine."""
PAUSES = (0.05, 1.0)
"""Seconds between two tries: they double from the first to the last."""


class RequestEngine:
    """Asks the engine that runs then, as one that was restarted has another key; see ``drivers.Engine``.

    :param client: returns the connection to the running engine, starting or awaiting it if need be.
    :param keep_alive: of the request.
    :param aliases: names that stand for others.
    :param limit: the request's seconds, which the kernel keeps; ``None`` = no limit.
    """

    def __init__(
        self,
        client: Callable[[], Awaitable[EngineClient]],
        residency: Residency,
        keep_alive: float | None,
        aliases: Mapping[str, AliasSettings],
        limit: float | None = None,
    ) -> None:
        self._client = client
        self._residency = residency
        self._keep_alive = keep_alive
        self._aliases = aliases
        self.held: list[str] = []
        """Ids of the models that the request holds now."""
        self._limit = limit
        self.waits = False
        """For a model to be ready."""

    async def post(self, path: str, body: bytes, *, content_type: str = "application/json") -> Answer:
        """Send one request and return the whole answer."""

        async def send() -> Answer:
            return await (await self._client()).post(path, body, content_type=content_type)

        return await self._once_loaded(send)

    async def upload(self, path: str, fields: Mapping[str, str | list[str]], files: Mapping[str, Upload]) -> Answer:
        """Send one multipart request and return the whole answer."""

        async def send() -> Answer:
            return await (await self._client()).upload(path, fields, files)

        return await self._once_loaded(send)

    async def stream(
        self, path: str, body: bytes, *, content_type: str = "application/json"
    ) -> AsyncGenerator[bytes, None]:
        """Send one request and yield the events of the answer as they arrive."""

        async def send() -> tuple[AsyncGenerator[bytes, None], bytes | None]:
            answer = (await self._client()).stream(path, body, content_type=content_type)
            return answer, await anext(answer, None)

        answer, first = await self._once_loaded(send)
        if first is None:
            raise Unavailable("The engine ended its answer before it said anything; ask again.")
        async with aclosing(answer) as events:
            yield first
            async for event in events:
                yield event

    def model(self, name: str, model_type: str, *, default: str = "") -> AbstractAsyncContextManager[str]:
        """Hold a model for as long as the block lasts."""
        name, default = target(self._aliases, name), target(self._aliases, default)
        return _Hold(self, self._residency.use(model_type, name, default=default, keep_alive=self._keep_alive))

    def late(self) -> TimedOut:
        """Return the error for a request whose time is up."""
        what = "The model was not ready" if self.waits else "The request was not done"
        return TimedOut(f"{what} within its limit of {self._limit:g} s; ask again, or allow more time.")

    async def _once_loaded(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send a request, again for as long as the engine does not begin to work on it.

        It may have ended just now, be loading the model, or have been started again by another process since the model
        was loaded.
        """
        pause, began = PAUSES[0], 0.0
        while True:
            try:
                return await send()
            except (NotReached, NotLoadedYet, NotServed) as error:
                began = began or time.monotonic()
                longest = NOTICE_LIMIT if isinstance(error, NotReached) else self._limit or RELOAD_LIMIT
                late = time.monotonic() + pause > began + longest
                if late or (isinstance(error, NotServed) and not self.held):
                    raise
                if isinstance(error, NotServed):
                    for model in self.held:
                        await self._residency.load(model)
            await anyio.sleep(pause)
            pause = min(2 * pause, PAUSES[1])


class _Hold:
    """A block for which a request holds a model."""

    __slots__ = ("_engine", "_id", "_use")

    def __init__(self, engine: RequestEngine, use: AbstractAsyncContextManager[LocalModel]) -> None:
        self._engine = engine
        self._use = use

    async def __aenter__(self) -> str:
        self._engine.waits = True
        self._id = (await self._use.__aenter__()).id
        self._engine.waits = False
        self._engine.held.append(self._id)
        return self._id

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.held.remove(self._id)
        await self._use.__aexit__(kind, error, trace)
