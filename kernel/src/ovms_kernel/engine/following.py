"""The engine as services are given it: each request goes to the one that runs then.

None need run before the first, and one that was restarted has another key, and perhaps another port.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from ovms_kernel.engine.client import EngineClient
    from ovms_kernel.values import Answer, Upload


class FollowingEngine:
    """Asks for the connection anew with each request; see ``drivers.Engine``.

    :param client: returns the connection to the running engine, starting or awaiting it if need be.
    :param ready: makes sure that a model, given with its type, is served, and returns its id.
    """

    def __init__(
        self, client: Callable[[], Awaitable[EngineClient]], ready: Callable[[str, str], Awaitable[str]]
    ) -> None:
        self._client = client
        self._ready = ready

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

    async def ready(self, model: str, model_type: str) -> str:
        """Make sure that the model is served, and return its id."""
        return await self._ready(model, model_type)
