"""Whether an engine answers, and whether it works: while it has nothing to do, it is asked for a little real work.

Its health says little about models: a servable may be AVAILABLE while every request to it hangs or fails until the
engine is restarted, or while its answers are nonsense. What to ask is said by the services, as
``ServiceDefinition.probes``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ovms_kernel.engine.client import EngineClient
    from ovms_kernel.values import LocalModel

READY_POLL = 0.01
"""Seconds between two looks at an engine that starts, at first; it grows to three times that."""
IDLE = 60.0
"""Seconds without a request after which the engine is probed, and again after each that went well."""


class Probed(Protocol):
    """What the probe needs to know of a loaded model."""

    id: str
    model: LocalModel | None
    users: int
    runs_on: str
    last_used: float
    """By the monotonic clock."""

    @property
    def state(self) -> str:
        """Is ``loaded`` if the engine serves it."""
        ...


LOADED = "loaded"


async def await_answers(client: EngineClient, is_it: Callable[[], bool], limit: float) -> bool:
    """Return true once REST and gRPC answer, false if that takes too long.

    :param is_it: tells, in a thread, whether what answers is the engine that was started.
    :param limit: seconds.
    """
    pause = READY_POLL
    with anyio.move_on_after(limit):
        while True:
            # gRPC is up before REST, so its channel connects at the first try.
            if await client.live() and await client.grpc_live() and await anyio.to_thread.run_sync(is_it):
                return True
            await anyio.sleep(pause)
            pause = min(pause * 1.2, READY_POLL * 3)
    return False


async def no_probe(client: EngineClient) -> bool:
    """Ask nothing."""
    del client
    return True


class IdleProbe:
    """Probes one loaded model after the other while there are no requests.

    :param ask: asks a model that runs on a device; returns false if it does not answer, ``None`` if there is nothing
        to ask it.
    :param table: the models that are known, with their users and when they were used last.
    """

    def __init__(
        self, ask: Callable[[LocalModel, str, EngineClient], Awaitable[bool | None]], table: Mapping[str, Probed]
    ) -> None:
        self._ask = ask
        self._table = table
        self._probed: dict[str, float] = {}

    async def __call__(self, client: EngineClient) -> bool:
        """Return false if a model that is loaded does not do its work; true also if nothing had to be asked."""
        loaded = [each for each in self._table.values() if each.state == LOADED]
        now = time.monotonic()
        last = max([0.0, *(each.last_used for each in loaded), *self._probed.values()])
        if any(each.users for each in loaded) or now - last < IDLE:
            return True
        for each in sorted(loaded, key=lambda each: self._probed.get(each.id, 0.0)):
            if each.model is None or (well := await self._ask(each.model, each.runs_on, client)) is None:
                continue
            if well:
                self._probed[each.id] = time.monotonic()
            return well
        return True
