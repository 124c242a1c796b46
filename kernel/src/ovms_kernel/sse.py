"""Server-sent events of OpenAI's kind, as a face reads them that makes another API's events of them."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ovms_kernel.errors import EngineFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

DONE = b"[DONE]"


async def read_events(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the JSON object of each event that a service streams, until ``[DONE]``; closing this closes ``chunks``.

    :raises EngineFailed: an event holds no JSON object.
    """
    async with aclosing(chunks):
        async for chunk in chunks:
            for line in chunk.split(b"\n"):
                if not line.startswith(b"data:") or (data := line[5:].strip()) == DONE:
                    continue
                try:
                    event = json.loads(data)
                except ValueError as error:
                    raise EngineFailed("An event of the engine's answer is not valid JSON.") from error
                if isinstance(event, dict):
                    yield event
