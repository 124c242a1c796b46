"""The engine as services are given it, for one request."""

from __future__ import annotations

import time
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio

from ovms_kernel.aliases import target
from ovms_kernel.engine.client import NotLoadedYet, NotServed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping

    from ovms_kernel.engine.client import EngineClient
    from ovms_kernel.models.residency import Residency
    from ovms_kernel.settings import AliasSettings
    from ovms_kernel.values import Answer, Upload

T = TypeVar("T")

RELOAD_LIMIT = 60.0
"""Seconds that a request without a limit waits for an engine that loads its model again, as after a crash."""
PAUSES = (0.05, 1.0)
"""Seconds between two tries: they double from the first to the last."""


class RequestEngine:
    """Asks the engine that runs then, as one that was restarted has another key; see ``drivers.Engine``.

    :param client: returns the connection to the running engine, starting or awaiting it if need be.
    :param keep_alive: of the request.
    :param aliases: names that stand for others.
    """

    def __init__(
        self,
        client: Callable[[], Awaitable[EngineClient]],
        residency: Residency,
        keep_alive: float | None,
        aliases: Mapping[str, AliasSettings],
    ) -> None:
        self._client = client
        self._residency = residency
        self._keep_alive = keep_alive
        self._aliases = aliases
        self._held: list[str] = []
        """Ids of the models that the request holds now."""

    async def post(
        self, path: str, body: bytes, *, content_type: str = "application/json", timeout: float | None = None
    ) -> Answer:
        """Send one request and return the whole answer."""

        async def send(left: float | None) -> Answer:
            return await (await self._client()).post(path, body, content_type=content_type, timeout=left)

        return await self._once_loaded(send, timeout)

    async def upload(
        self,
        path: str,
        fields: Mapping[str, str | list[str]],
        files: Mapping[str, Upload],
        *,
        timeout: float | None = None,
    ) -> Answer:
        """Send one multipart request and return the whole answer."""

        async def send(left: float | None) -> Answer:
            return await (await self._client()).upload(path, fields, files, timeout=left)

        return await self._once_loaded(send, timeout)

    async def stream(
        self, path: str, body: bytes, *, content_type: str = "application/json", timeout: float | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Send one request and yield the events of the answer as they arrive."""

        async def send(left: float | None) -> tuple[AsyncGenerator[bytes, None], bytes | None]:
            answer = (await self._client()).stream(path, body, content_type=content_type, timeout=left)
            return answer, await anext(answer, None)

        answer, first = await self._once_loaded(send, timeout)
        async with aclosing(answer) as events:
            if first is not None:
                yield first
            async for event in events:
                yield event

    @asynccontextmanager
    async def model(self, name: str, model_type: str, *, default: str = "") -> AsyncIterator[str]:
        """Hold a model for as long as the block lasts."""
        name, default = target(self._aliases, name), target(self._aliases, default)
        async with self._residency.use(model_type, name, default=default, keep_alive=self._keep_alive) as model:
            self._held.append(model.id)
            try:
                yield model.id
            finally:
                self._held.remove(model.id)

    async def _once_loaded(self, send: Callable[[float | None], Awaitable[T]], timeout: float | None) -> T:
        """Send a request, again for as long as the engine does not begin to work on it because it lacks the model.

        It may be loading it, or have been started again by another process since the model was loaded.
        """
        began, pause = time.monotonic(), PAUSES[0]
        limit = RELOAD_LIMIT if timeout is None else timeout
        while True:
            spent = time.monotonic() - began
            try:
                return await send(None if timeout is None else max(0.0, timeout - spent))
            except NotLoadedYet:
                if spent + pause > limit:
                    raise
            except NotServed:
                if spent + pause > limit or not self._held:
                    raise
                for model in self._held:
                    await self._residency.load(model)
            await anyio.sleep(pause)
            pause = min(2 * pause, PAUSES[1])
