"""Whose turn it is to change what is loaded: one change at a time, in the order of arrival, fair where memory is short.

A model that is in use may keep another one waiting for ``switch_patience``. Then it admits no new request, so that it
becomes free, and the model that waits is loaded. Several that wait share the patience.
"""

from __future__ import annotations

import bisect
import math
import time
from collections import defaultdict
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from ovms_kernel.errors import Unavailable
from ovms_kernel.files import human
from ovms_kernel.models.plan import Decision, Resident, State, Wanted, plan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from ovms_kernel.models.plan import Budget, Table

SOON = 0.001


class Abandoned(Exception):
    """All requests that waited for a load have gone before it began."""


@dataclass(eq=False)
class Ticket:
    """One request that waits for a model."""

    admitted: bool = False
    """It is counted as a user of the model."""


@dataclass(eq=False)
class Want:
    """One model that waits for its turn to be loaded."""

    resident: Resident
    wanted: Wanted
    abandoned: Callable[[], bool]
    """Tells whether nobody waits for it any more."""
    since: float
    """When it was asked for: the order in which models get their turn."""
    closed: dict[str, float] = field(default_factory=dict)
    """Models that admit no new request because of it, and since when."""


class Turns:
    """Admits one change of what is loaded after the other.

    :param budget: returns what all models may take now.
    :param look: looks again which models are pinned.
    :param patience: returns the seconds that a model in use may keep another one waiting.
    """

    def __init__(
        self,
        table: Table,
        budget: Callable[[], Budget],
        look: Callable[[], Awaitable[None]],
        patience: Callable[[], float],
    ) -> None:
        self._table = table
        self._budget = budget
        self._look = look
        self._patience = patience
        self._waiting: list[Want] = []
        self._tickets: defaultdict[str, list[Ticket]] = defaultdict(list)
        self._changing = False
        self._changed = anyio.Event()

    def notify(self) -> None:
        """Wake all who wait for a change of the table."""
        self._changed.set()
        self._changed = anyio.Event()

    def notify_waiting(self) -> None:
        """Wake those who wait for memory, if there are any."""
        if self._waiting:
            self.notify()

    async def changed(self, limit: float) -> None:
        """Wait for a change of the table, but not longer than that many seconds."""
        with anyio.move_on_after(max(SOON, limit)):
            await self._changed.wait()

    @contextmanager
    def ticket(self, model_id: str) -> Iterator[Ticket]:
        """Wait for a model on behalf of a request, as long as the block lasts."""
        ticket = Ticket()
        waiting = self._tickets[model_id]
        waiting.append(ticket)
        try:
            yield ticket
        finally:
            if ticket in waiting:
                waiting.remove(ticket)
            if not waiting:
                self._tickets.pop(model_id, None)
                self.notify()

    def is_waited_for(self, model_id: str) -> bool:
        """Tell whether a request waits for a model."""
        return model_id in self._tickets

    def admit(self, resident: Resident) -> None:
        """Count every request that waits for a model as its user, before anything else can ask for its memory."""
        for ticket in self._tickets.get(resident.id, ()):
            if not ticket.admitted:
                ticket.admitted = True
                resident.users += 1

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Change what is loaded, for another reason than to load a model."""
        while self._changing:
            await self._changed.wait()
        self._changing = True
        try:
            yield
        finally:
            self._changing = False
            self.notify()

    @asynccontextmanager
    async def turn(self, want: Want) -> AsyncIterator[Decision | None]:
        """Wait for the turn of a model and give what to unload for it; ``None`` if it is loaded by then.

        :raises Abandoned: nobody waits for it any more.
        :raises Unavailable: its memory does not suffice, or is in use for too long.
        """
        bisect.insort(self._waiting, want, key=lambda each: each.since)
        decision = None
        try:
            decision = await self._await_turn(want)
            yield decision
        finally:
            self._waiting.remove(want)
            for closed in want.closed:
                if closed in self._table:
                    self._table[closed].closing = False
            if decision is not None:
                self._changing = False
            self.notify()

    async def _await_turn(self, want: Want) -> Decision | None:
        resident = want.resident
        while True:
            if resident.state is State.LOADED and not resident.closing:
                return None
            if want.abandoned():
                raise Abandoned
            if resident.state is State.ABSENT:
                resident.state = State.WAITING
            pause = math.inf
            if self._may_decide(resident):
                await self._look()
                if not self._may_decide(resident):
                    continue
                now, budget = time.monotonic(), self._budget()
                decision = plan(self._table, want.wanted, budget, now)
                if decision.is_impossible:
                    raise Unavailable(self._no_room(want.wanted, budget))
                if decision.is_ready and self._may_pass(want, decision, budget, now):
                    self._changing = True
                    return decision
                if want is self._waiting[0] and decision.wait_for:
                    pause = self._wait_for(want, decision, budget, now)
            await self.changed(pause)

    def _may_decide(self, resident: Resident) -> bool:
        return resident.state is State.WAITING and not self._changing

    def _may_pass(self, want: Want, decision: Decision, budget: Budget, now: float) -> bool:
        """Tell whether a model may be loaded before those that wait longer: if that costs them nothing."""
        earlier = self._waiting[: self._waiting.index(want)]
        if not earlier:
            return True
        if decision.unload or budget.max_loaded:
            return False
        wanted = want.wanted
        loaded = Resident(wanted.id, state=State.LOADED, pinned=True, bytes=wanted.bytes, device=wanted.device)
        ahead = self._table | {wanted.id: loaded}
        for each in earlier:
            before = plan(self._table, each.wanted, budget, now)
            if before.is_ready or plan(ahead, each.wanted, budget, now) != before:
                return False
        return True

    def _wait_for(self, want: Want, decision: Decision, budget: Budget, now: float) -> float:
        """Close the models in the way once their time is up; return the seconds until something is due.

        :raises Unavailable: they have been closed for long and are in use still.
        """
        patience = self._patience()
        share = patience / len(self._waiting)
        due = []
        for each in (self._table[name] for name in decision.wait_for):
            closes = max(want.since, each.loaded_at) + share
            if each.id in want.closed:
                due.append(want.closed[each.id] + patience)
            elif now >= closes:
                each.closing = True
                want.closed[each.id] = now
                due.append(now)
            else:
                due += [closes, *([] if each.users else [each.last_used + min(each.load_seconds, budget.grace)])]
        if want.closed and now > min(want.closed.values()) + patience:
            raise Unavailable(self._no_room(want.wanted, budget))
        return min(due, default=math.inf) - now

    def _no_room(self, wanted: Wanted, budget: Budget) -> str:
        """Say what holds the memory that a model needs."""
        loaded = [each for each in self._table.values() if each.state is State.LOADED and not each.foreign]
        holders = [each for each in loaded if each.id != wanted.id]
        held = ", ".join(f"{each.id} ({_hold(each)})" for each in sorted(holders, key=lambda each: each.id)) or "none"
        if budget.max_loaded and len(holders) >= budget.max_loaded:
            return (
                f"{wanted.id} cannot be loaded beside {held}, as max_loaded is {budget.max_loaded}; "
                "unpin or unload one, or raise that setting."
            )
        limit = budget.memory.get(wanted.device, 0)
        free = max(0, limit - sum(each.bytes for each in holders if each.device == wanted.device))
        return (
            f"{wanted.id} needs about {human(wanted.bytes)} of memory and {human(free)} are free "
            f"(loaded models: {held}); unload something, take a smaller model, or "
            "set force: true in this model's settings."
        )


def _hold(resident: Resident) -> str:
    if resident.users:
        return f"in use by {resident.users}"
    return "pinned" if resident.stays else "idle"
