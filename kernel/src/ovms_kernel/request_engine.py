"""The engine as services are given it, for one request."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping

    from ovms_kernel.engine.client import EngineClient
    from ovms_kernel.models.residency import Residency
    from ovms_kernel.values import Answer, Upload


class RequestEngine:
    """Asks the engine that runs then, as one that was restarted has another key; see ``drivers.Engine``.

    :param client: returns the connection to the running engine, starting or awaiting it if need be.
    :param keep_alive: of the request.
    """

    def __init__(
        self, client: Callable[[], Awaitable[EngineClient]], residency: Residency, keep_alive: float | None = None
    ) -> None:
        self._client = client
        self._residency = residency
        self._keep_alive = keep_alive

    async def post(
        self, path: str, body: bytes, *, content_type: str = "application/json", timeout: float | None = None
    ) -> Answer:
        """Send one request and return the whole answer."""
        return await (await self._client()).post(path, body, content_type=content_type, timeout=timeout)

    async def upload(
        self,
        path: str,
        fields: Mapping[str, str | list[str]],
        files: Mapping[str, Upload],
        *,
        timeout: float | None = None,
    ) -> Answer:
        """Send one multipart request and return the whole answer."""
        return await (await self._client()).upload(path, fields, files, timeout=timeout)

    async def stream(
        self, path: str, body: bytes, *, content_type: str = "application/json", timeout: float | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Send one request and yield the events of the answer as they arrive."""
        client = await self._client()
        answer = client.stream(path, body, content_type=content_type, timeout=timeout)
        async with aclosing(answer) as events:
            async for event in events:
                yield event

    @asynccontextmanager
    async def model(self, name: str, model_type: str, *, default: str = "") -> AsyncIterator[str]:
        """Hold a model for as long as the block lasts."""
        async with self._residency.use(model_type, name, default=default, keep_alive=self._keep_alive) as model:
            yield model.id
