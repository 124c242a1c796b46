"""Work that several callers want at the same time and that is done once."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

T = TypeVar("T")
P = TypeVar("P")

log = logging.getLogger(__name__)


class Conflict(Exception):
    """Something else is being done under the same key."""


@dataclass(eq=False)
class _Flight(Generic[T, P]):
    wanted: object
    task: asyncio.Task[T]
    listeners: dict[object, Callable[[P], None]] = field(default_factory=dict)
    last: P | None = None
    abandoned: bool = False

    def report(self, progress: P) -> None:
        self.last = progress
        for listener in list(self.listeners.values()):
            try:
                listener(progress)
            except Exception:
                log.exception("A progress listener failed")


def _ignore(_: object) -> None:
    """Report to nobody."""


class SingleFlight(Generic[T, P]):
    """Runs one piece of work per key; callers that come later join it and get the same result or error.

    The work runs in a task of its own: it outlives the caller that began it, and its error is its callers' alone, where
    a task group would end all other work too. ``aclose`` ends and awaits every piece.

    :param cancel_abandoned: cancel work once its last caller has left, instead of letting it finish.
    """

    def __init__(self, *, cancel_abandoned: bool) -> None:
        self._cancel_abandoned = cancel_abandoned
        self._flights: dict[Hashable, _Flight[T, P]] = {}
        self._tasks: set[asyncio.Task[T]] = set()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    async def join(
        self,
        key: Hashable,
        work: Callable[[Callable[[P], None]], Awaitable[T]],
        *,
        wanted: object = None,
        report: Callable[[P], None] = _ignore,
    ) -> T:
        """Start the work, or join it if it runs, and return its result.

        :param work: is given a function that reports progress to every caller.
        :param wanted: two callers with the same key join only if this is equal.
        :param report: called with the last progress at once, and with each one that follows.
        :raises Conflict: work with the same key and another ``wanted`` runs.
        """
        while (flight := self._flights.get(key)) is not None and flight.abandoned:
            await asyncio.wait([flight.task])
        if flight is None:
            flight = self._start(key, work, wanted)
        elif flight.wanted != wanted:
            raise Conflict(str(key))
        elif flight.last is not None:
            report(flight.last)
        caller = object()
        flight.listeners[caller] = report
        try:
            return await asyncio.shield(flight.task)
        finally:
            del flight.listeners[caller]
            if self._cancel_abandoned and not flight.listeners and not flight.task.done():
                flight.abandoned = True
                flight.task.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([flight.task])

    async def aclose(self) -> None:
        """Cancel all work and return when it has ended."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _start(
        self, key: Hashable, work: Callable[[Callable[[P], None]], Awaitable[T]], wanted: object
    ) -> _Flight[T, P]:
        async def run() -> T:
            try:
                return await work(flight.report)
            finally:
                del self._flights[key]

        flight = _Flight[T, P](wanted, asyncio.create_task(run()))  # noqa: TID251 - this is their owner
        self._flights[key] = flight
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._ended)
        return flight

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # callers have it; there may be none left
