"""What is loaded, by how many requests it is used, and what is unloaded for another model: one table, one owner.

``use`` is the only way to a model's answer. A request for a model that is not loaded joins the load of it; loads run
one after another in the order of arrival. Where memory is short, ``plan`` says what goes first. Models that are in use
are waited for, and after ``switch_patience`` they admit no new request, so that each model gets its turn.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import anyio
import anyio.to_thread

from ovms_kernel.errors import NotFound, OvmsError, PreconditionFailed, Unavailable
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.models.files import GRAPH
from ovms_kernel.models.names import parse_model_id
from ovms_kernel.models.plan import Decision, Resident, State, Table, Wanted, plan, unload_at
from ovms_kernel.models.publish import human
from ovms_kernel.models.resolution import check_type, choose, not_installed
from ovms_kernel.models.servables import AVAILABLE
from ovms_kernel.single_flight import SingleFlight
from ovms_kernel.values import LoadedModel, LocalModel, ResidentModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ovms_kernel.events import Events
    from ovms_kernel.models.library import Library
    from ovms_kernel.models.memory import Memory
    from ovms_kernel.models.plan import Budget
    from ovms_kernel.models.servables import Servables
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import EngineExit, EngineInfo

log = logging.getLogger(__name__)

RETRY_AFTER = 10.0
"""Seconds after a load that failed before a request tries it again."""
FOREIGN_PERIOD = 10.0
"""Seconds for which an engine is believed to serve a model that is not installed here."""

SHOWN: dict[State, Literal["failed", "waiting", "loading", "loaded", "unloading"]] = {
    State.ABSENT: "failed",
    State.WAITING: "waiting",
    State.LOADING: "loading",
    State.LOADED: "loaded",
    State.UNLOADING: "unloading",
}
"""What a state is called outside; an absent model is listed only if it failed to load."""


class _Abandoned(Exception):
    """All requests that waited for a load have gone before it began."""


@dataclass(eq=False)
class _Ticket:
    """One request that waits for a model."""

    admitted: bool = False


@dataclass(eq=False)
class _Want:
    """One model that waits for its turn to be loaded."""

    id: str
    since: float
    stays: bool
    """It is loaded even if nobody waits any more."""
    closed: dict[str, float] = field(default_factory=dict)
    """Models that admit no new request because of it, and since when."""


class Residency:
    """Owns the table of models in one engine.

    :param connect: waits until the engine answers, starting it if need be.
    :param engine_runs: tells whether there is an engine that need not be started to be asked.
    :param runs_elsewhere: tells whether another process runs the engine.
    """

    def __init__(
        self,
        settings: Settings,
        events: Events,
        library: Library,
        servables: Servables,
        memory: Memory,
        *,
        connect: Callable[[], Awaitable[object]],
        engine_runs: Callable[[], bool],
        runs_elsewhere: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._events = events
        self._library = library
        self._servables = servables
        self._memory = memory
        self._connect = connect
        self._engine_runs = engine_runs
        self._runs_elsewhere = runs_elsewhere
        self.table: Table = {}
        """Every model that was used or loaded, by id. Read by others, written here alone."""
        self._queue: list[_Want] = []
        self._tickets: defaultdict[str, list[_Ticket]] = defaultdict(list)
        self._loads: SingleFlight[LoadedModel, None] = SingleFlight(cancel_abandoned=False)
        self._changing = False
        self._changed = anyio.Event()
        self._stale = True
        self._synchronising = anyio.Lock()

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._unload_when_due, name="idle models")
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
        await self._loads.aclose()

    # -- requests --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def use(
        self, model_type: str, name: str = "", *, default: str = "", keep_alive: float | None = None
    ) -> AsyncIterator[LocalModel]:
        """Hold a model for a request: loaded when the block begins, and not unloaded before it ends.

        :param name: empty means the default, else the one of that type that was used last, else the only one.
        :param keep_alive: seconds that it stays loaded afterwards, negative = for ever; ``None`` = as before.
        :raises NotFound: it is not installed; the sentence lists what is, and how to pull it.
        :raises BadRequest: it is a model of another type.
        :raises Unavailable: its memory is in use, or does not suffice; the sentence says what holds it.
        :raises EngineFailed: it does not load.
        """
        model = await self._resolve(name, model_type, default)
        resident = await self._enter(model)
        try:
            yield model
        finally:
            self._leave(resident, keep_alive)

    async def _resolve(self, name: str, model_type: str, default: str) -> LocalModel:
        known = self.table.get(name or default)
        if known and known.state is State.LOADED:
            if known.foreign and time.monotonic() - known.loaded_at < FOREIGN_PERIOD:
                return _foreign(known.id)
            if known.model and known.model.model_type == model_type:
                return known.model
        installed = await anyio.to_thread.run_sync(self._library.list)
        model = choose(installed, self.table, name, model_type, default)
        if model is not None:
            check_type(model, installed, model_type)
            return model
        # Somebody else's engine serves models of their own; of what type, it does not say.
        may_serve = self._engine_runs() or name in await self._servables.entries()
        if may_serve and await self._servables.is_ready(name):
            self.table[name] = Resident(name, foreign=True, state=State.LOADED, loaded_at=time.monotonic())
            return _foreign(name)
        raise not_installed(installed, name, model_type)

    async def _enter(self, model: LocalModel) -> Resident:
        """Count a request as a user of a model once that is loaded."""
        await self._connect()
        await self._synchronise()
        resident = self._resident(model)
        while resident.state is not State.LOADED or resident.closing:
            recently = time.monotonic() - resident.failed_at < RETRY_AFTER
            if resident.failure is not None and recently and resident.id not in self._loads:
                raise resident.failure.again()
            ticket = _Ticket()
            self._tickets[resident.id].append(ticket)
            try:
                await self._loads.join(resident.id, lambda _: self._bring(resident, stays=False))
            except _Abandoned:
                continue  # it was given up just before this request came
            except BaseException:
                if ticket.admitted:
                    self._leave(resident, None)
                raise
            finally:
                self._withdraw(resident.id, ticket)
            if ticket.admitted:
                return resident
        resident.users += 1
        resident.hinted = False
        return resident

    def _leave(self, resident: Resident, keep_alive: float | None) -> None:
        resident.users -= 1
        resident.last_used = time.monotonic()
        if keep_alive is not None:
            resident.keep = _kept(keep_alive)
        if self._queue or resident.keep is not None:
            self._notify()

    def _withdraw(self, model_id: str, ticket: _Ticket) -> None:
        waiting = self._tickets[model_id]
        if ticket in waiting:
            waiting.remove(ticket)
        if not waiting:
            del self._tickets[model_id]
            self._notify()

    def _admit(self, resident: Resident) -> None:
        """Count every request that waits for a model as its user, before anything else can ask for its memory."""
        for ticket in self._tickets.get(resident.id, ()):
            if not ticket.admitted:
                ticket.admitted = True
                resident.users += 1

    # -- what people and hosts ask ---------------------------------------------------------------------------------

    async def load(self, model_id: str, *, keep_alive: float | None = None) -> LoadedModel:
        """Load a model, or find that it is loaded with the graph that is on disk now.

        A caller that goes away does not stop the load: the engine cannot stop it either.

        :raises OvmsError: as :meth:`use`; a load that failed before is tried again at once.
        """
        model_id = parse_model_id(model_id)
        try:
            model = await anyio.to_thread.run_sync(self._library.find, model_id)
        except NotFound:
            if self._engine_runs() and (await self._servables.states()).get(model_id) == AVAILABLE:
                return LoadedModel(_foreign(model_id), 0.0)
            raise
        await self._connect()
        await self._synchronise()
        resident = self._resident(model)
        if keep_alive is not None:
            resident.keep = _kept(keep_alive)
        if resident.state is State.LOADED and not resident.closing:
            if resident.graph == _graph_of(model) and (await self._servables.states()).get(model_id) == AVAILABLE:
                resident.last_used, resident.hinted = time.monotonic(), False
                self._notify()
                return LoadedModel(model, 0.0)
            if model_id not in self._loads:
                resident.state = State.ABSENT
        while True:
            try:
                return await self._loads.join(model_id, lambda _: self._bring(resident, stays=True))
            except _Abandoned:
                continue  # the requests that it was loaded for have gone

    async def unload(self, model_id: str, reason: str) -> None:
        """Unload a model after the requests that it works on; nothing happens if it is not loaded.

        :raises PreconditionFailed: a user listed it in ``config.json``.
        """
        model_id = parse_model_id(model_id)
        if (entry := (await self._servables.entries()).get(model_id)) and entry.by_hand:
            raise PreconditionFailed(f"{model_id} is listed by hand in {self._settings.config_json}; remove it there.")
        async with self._change():
            gone = await self._unload(model_id)
        await self._tell_unloaded(gone, reason)

    def hint(self, model_id: str) -> None:
        """Note that a host needs a model no longer: it goes first when memory is needed, or after a minute unused."""
        if resident := self.table.get(model_id):
            resident.hinted = True
            self._notify()

    async def running(self) -> list[LocalModel]:
        """Return what the engine says that it serves; a model that is not installed has a name and nothing more."""
        states = await self._servables.states()
        installed = {model.id: model for model in await anyio.to_thread.run_sync(self._library.list)}
        return [installed.get(name) or _foreign(name) for name, each in sorted(states.items()) if each == AVAILABLE]

    def loaded(self) -> list[Resident]:
        """Return the installed models that are loaded."""
        return [each for each in self.table.values() if each.state is State.LOADED and not each.foreign]

    def resident_models(self) -> list[ResidentModel]:
        """Return what is loaded, being loaded or failed to load, by id."""
        ahead = time.time() - time.monotonic()
        found = []
        for each in sorted(self.table.values(), key=lambda each: each.id):
            if each.state is State.ABSENT and each.failure is None:
                continue
            due = math.inf if each.users else unload_at(each, self._idle_unload(each.id))
            found.append(
                ResidentModel(
                    _model_of(each),
                    SHOWN[each.state],
                    users=each.users,
                    last_used=each.last_used and each.last_used + ahead,
                    loaded_at=each.loaded_at + ahead if each.state is State.LOADED else 0.0,
                    memory=each.bytes,
                    device=each.device,
                    pinned=each.stays,
                    unload_at=due + ahead if due < math.inf else None,
                    failure=each.failure.message if each.failure else "",
                )
            )
        return found

    # -- loads, one after another ----------------------------------------------------------------------------------

    async def _bring(self, resident: Resident, *, stays: bool) -> LoadedModel:
        """Wait for the turn of a model, make room for it and load it."""
        want = _Want(resident.id, time.monotonic(), stays)
        gone: list[LocalModel] = []
        async with self._library.hold(resident.id):
            self._queue.append(want)
            if resident.state is State.ABSENT:
                resident.state = State.WAITING
            taken = False
            try:
                decision = await self._turn(want, resident)
                if decision is None:
                    self._admit(resident)
                    return LoadedModel(_model_of(resident), 0.0)
                taken = True
                # An engine cannot stop a load, so it goes on without those who wanted it.
                with anyio.CancelScope(shield=True):
                    for victim in decision.unload:
                        gone += await self._unload(victim)
                    loaded = await self._load(resident)
            finally:
                self._queue.remove(want)
                for closed in want.closed:
                    self.table[closed].closing = False
                if taken:
                    self._changing = False
                if resident.state in (State.WAITING, State.LOADING):
                    resident.state = State.ABSENT
                self._notify()
                with anyio.CancelScope(shield=True):
                    await self._tell_unloaded(gone, f"its memory is needed for {resident.id}")
        if loaded.seconds:
            await self._events.tell("ovms_model_ready", model=loaded)
        return loaded

    async def _turn(self, want: _Want, resident: Resident) -> Decision | None:
        """Return what to unload when it is this model's turn; ``None`` if it is loaded by then."""
        while True:
            if resident.state is State.LOADED and not resident.closing:
                return None
            if not want.stays and want.id not in self._tickets:
                raise _Abandoned
            pause = math.inf
            if resident.state is State.WAITING and not self._changing:
                now = time.monotonic()
                budget = self._memory.budget(self.table)
                wanted = self._wanted(resident)
                decision = plan(self.table, wanted, budget, now)
                if decision.is_impossible:
                    raise Unavailable(self._no_room(wanted, budget))
                if decision.is_ready and self._may_pass(want, wanted, decision, budget, now):
                    self._changing = True
                    return decision
                if want is self._queue[0] and decision.wait_for:
                    pause = self._wait_for(want, decision, wanted, budget, now)
            elif resident.state is State.ABSENT:
                resident.state = State.WAITING
                continue
            with anyio.move_on_after(pause):
                await self._changed.wait()

    def _may_pass(self, want: _Want, wanted: Wanted, decision: Decision, budget: Budget, now: float) -> bool:
        """Tell whether a model may be loaded before those that wait longer: if that costs them nothing."""
        earlier = self._queue[: self._queue.index(want)]
        if not earlier:
            return True
        if decision.unload or budget.max_loaded:
            return False
        loaded = Resident(wanted.id, state=State.LOADED, pinned=True, bytes=wanted.bytes, device=wanted.device)
        ahead = self.table | {wanted.id: loaded}
        before = (plan(self.table, self._wanted(self.table[each.id]), budget, now) for each in earlier)
        after = (plan(ahead, self._wanted(self.table[each.id]), budget, now) for each in earlier)
        return all(one == other for one, other in zip(before, after, strict=True))

    def _wait_for(self, want: _Want, decision: Decision, wanted: Wanted, budget: Budget, now: float) -> float:
        """Close the models in the way once their time is up; return the seconds until something is due.

        :raises Unavailable: they have been closed for long and are in use still.
        """
        patience = self._settings.switch_patience
        # Several models that wait share the patience, so that each has its turn within it.
        share = patience / len(self._queue)
        due = []
        for each in (self.table[name] for name in decision.wait_for):
            closes = max(want.since, each.loaded_at) + share
            if each.id in want.closed:
                due.append(want.closed[each.id] + patience)
            elif now >= closes:
                each.closing = True
                want.closed[each.id] = now
                due.append(now)
            else:
                due += [closes, *([] if each.users else [each.last_used + min(each.load_seconds, budget.grace)])]
        if want.closed and now >= min(want.closed.values()) + patience:
            raise Unavailable(self._no_room(wanted, budget))
        return max(0.001, min(due, default=math.inf) - now)

    async def _load(self, resident: Resident) -> LoadedModel:
        model = await anyio.to_thread.run_sync(self._library.find, resident.id)
        resident.state, resident.model = State.LOADING, model
        began = time.monotonic()
        try:
            changed = await self._library.shaper.refresh(model)
            await self._servables.add(model, anew=changed or resident.graph not in (0, _graph_of(model)))
        except OvmsError as error:
            resident.failure, resident.failed_at = error, time.monotonic()
            log.error("Model %s did not load: %s", model.id, error.message)
            await self._events.tell("ovms_load_failed", model=model, cause=error.message)
            raise
        self._mark_loaded(resident, model)
        resident.load_seconds = time.monotonic() - began
        self._admit(resident)
        log.info("Model %s is loaded, after %.2f s", model.id, resident.load_seconds)
        return LoadedModel(model, resident.load_seconds)

    async def _unload(self, model_id: str) -> list[LocalModel]:
        """Unload a model that may go; the caller holds the right to change what is loaded."""
        resident = self.table.get(model_id)
        if resident is not None and resident.state is State.LOADED:
            resident.state = State.UNLOADING
        try:
            gone = await self._servables.remove(model_id)
        finally:
            if resident is not None and resident.state is State.UNLOADING:
                resident.state = State.ABSENT
                resident.closing = resident.hinted = False
                resident.graph, resident.failure = 0, None
        return [(resident and resident.model) or _foreign(model_id)] if gone else []

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """Have the right to change what is loaded."""
        while self._changing:
            await self._changed.wait()
        self._changing = True
        try:
            yield
        finally:
            self._changing = False
            self._notify()

    async def release(self, model: LocalModel) -> None:
        """Unload a model whose files are about to be replaced or removed."""
        async with self._change():
            gone = await self._unload(model.id)
            self.table.pop(model.id, None) if model.id not in self._loads else None
        await self._tell_unloaded(gone, "its files are replaced or removed")

    async def _tell_unloaded(self, models: list[LocalModel], reason: str) -> None:
        for model in models:
            log.info("Model %s is unloaded: %s", model.id, reason)
            await self._events.tell("ovms_unloaded", model=model, reason=reason)

    # -- time ------------------------------------------------------------------------------------------------------

    async def _unload_when_due(self) -> None:
        while True:
            now = time.monotonic()
            wake = math.inf
            for each in self.loaded():
                limit = self._idle_unload(each.id)
                due = unload_at(each, limit)
                if each.users:
                    # The end of a request is told only where a limit is its own.
                    wake = min(wake, math.inf if each.keep is not None else now + (limit or math.inf))
                elif due <= now:
                    await self._unload_idle(each)
                else:
                    wake = min(wake, due)
            with anyio.move_on_after(max(0.001, wake - time.monotonic())):
                await self._changed.wait()

    async def _unload_idle(self, resident: Resident) -> None:
        gone: list[LocalModel] = []
        try:
            async with self._change():
                # It may have been used while something else was loaded.
                if not resident.users and unload_at(resident, self._idle_unload(resident.id)) <= time.monotonic():
                    gone = await self._unload(resident.id)
        except OvmsError as error:
            log.warning("Model %s is idle and cannot be unloaded: %s", resident.id, error.message)
        await self._tell_unloaded(gone, f"idle for {time.monotonic() - resident.last_used:.0f} s")

    def _idle_unload(self, model_id: str) -> float:
        """Return after how many idle seconds a model is unloaded; 0 = never."""
        limit = self._settings.section("models", model_id).get("idle_unload", self._settings.idle_unload)
        try:
            return max(0.0, float(limit))
        except (TypeError, ValueError):
            log.warning("idle_unload of model %s is not a number of seconds, so it is never unloaded", model_id)
            return 0.0

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    # -- the engine's view -----------------------------------------------------------------------------------------

    async def _synchronise(self) -> None:
        """See what another process, such as a command line, has loaded or unloaded in the same engine."""
        self._stale |= self._servables.was_changed()
        if not self._stale:
            return
        async with self._synchronising:
            if self._stale:  # no other request has done it in the meantime
                await self._look()
                self._stale = False

    async def _look(self) -> None:
        states, entries = await self._servables.states(), await self._servables.entries()
        installed = {model.id: model for model in await anyio.to_thread.run_sync(self._library.list)}
        for name, entry in entries.items():
            if states.get(name) == AVAILABLE and (model := installed.get(name)) and name not in self._loads:
                resident = self._resident(model)
                resident.by_hand = entry.by_hand
                if resident.state is State.ABSENT:
                    self._mark_loaded(resident, model)
        for resident in self.loaded():
            if resident.id not in entries or states.get(resident.id) != AVAILABLE:
                resident.state, resident.graph = State.ABSENT, 0

    @hookimpl
    async def ovms_amend_launch(self) -> None:
        """See that an engine that is about to start loads nothing of an earlier one; it would load all at once."""
        if not self._runs_elsewhere():
            await self._servables.strip()

    @hookimpl
    async def ovms_engine_ready(self, engine: EngineInfo) -> None:  # noqa: ARG002 - the event's own word
        """Look at what the engine serves before the next request."""
        self._stale = True

    @hookimpl
    async def ovms_engine_exited(self, exit: EngineExit) -> None:  # noqa: A002, ARG002 - the event's own word
        """Forget what was loaded."""
        self._stale = True
        for resident in self.table.values():
            if resident.state is State.LOADED:
                resident.state, resident.closing, resident.graph = State.ABSENT, False, 0
        self._notify()

    # -- the table -------------------------------------------------------------------------------------------------

    def _resident(self, model: LocalModel) -> Resident:
        resident = self.table.get(model.id)
        if resident is None:
            resident = self.table[model.id] = Resident(model.id, model, pinned=self._is_pinned(model.id))
        elif resident.state is State.ABSENT:
            resident.model = model
        return resident

    def _is_pinned(self, model_id: str) -> bool:
        pinned = self._settings.section("models", model_id).get("pinned", False)
        return model_id in self._settings.pinned or str(pinned).lower() in ("true", "1", "yes", "on")

    def _mark_loaded(self, resident: Resident, model: LocalModel) -> None:
        resident.state, resident.model = State.LOADED, model
        resident.loaded_at = resident.last_used = time.monotonic()
        resident.graph = _graph_of(model)
        resident.failure, resident.closing, resident.hinted = None, False, False
        resident.bytes = self._wanted(resident).bytes

    def _wanted(self, resident: Resident) -> Wanted:
        return self._memory.wanted(_model_of(resident))

    def _no_room(self, wanted: Wanted, budget: Budget) -> str:
        """Say what holds the memory that a model needs."""
        holders = [each for each in self.loaded() if each.id != wanted.id and each.device == wanted.device]
        held = ", ".join(f"{each.id} ({_hold(each)})" for each in sorted(holders, key=lambda each: each.id))
        free = max(0, budget.memory.get(wanted.device, 0) - sum(each.bytes for each in holders))
        return (
            f"{wanted.id} needs about {human(wanted.bytes)} of memory and {human(free)} are free "
            f"(loaded models: {held or 'none'}); unload something, take a smaller model, or "
            "set force: true in this model's settings."
        )


def _hold(resident: Resident) -> str:
    if resident.users:
        return f"in use by {resident.users}"
    return "pinned" if resident.pinned else "idle"


def _kept(keep_alive: float) -> float:
    return keep_alive if keep_alive >= 0 else math.inf


def _model_of(resident: Resident) -> LocalModel:
    return resident.model or _foreign(resident.id)


def _foreign(name: str) -> LocalModel:
    """Return a model that the engine has from elsewhere."""
    return LocalModel(name, Path(), "", 0, "", datetime.now(UTC))


def _graph_of(model: LocalModel) -> int:
    """Return when a model's graph was written; 0 if there is none."""
    try:
        return (model.directory / GRAPH).stat().st_mtime_ns
    except OSError:
        return 0
