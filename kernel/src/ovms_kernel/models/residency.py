"""What is loaded, by how many requests it is used, and what is unloaded for another model: one table, one owner.

``use`` is the only way to a model's answer. A request for a model that is not loaded joins the load of it. Where memory
is short, ``plan`` says what goes first and ``turns`` who waits for whom.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

import anyio
import anyio.to_thread

from ovms_kernel.errors import NotFound, PreconditionFailed, TimedOut, Unavailable
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.models import report, upkeep
from ovms_kernel.models.loader import foreign, graph_of, kept, model_of
from ovms_kernel.models.memory import SYSTEM
from ovms_kernel.models.names import parse_model_id
from ovms_kernel.models.plan import Resident, State
from ovms_kernel.models.resolution import check_type, choose, not_installed
from ovms_kernel.models.servables import AVAILABLE
from ovms_kernel.models.turns import Abandoned, Turns, Want
from ovms_kernel.values import LoadedModel, LocalModel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from ovms_kernel.events import Events
    from ovms_kernel.models.loader import Loader
    from ovms_kernel.models.memory import Memory
    from ovms_kernel.models.report import ResidentModel
    from ovms_kernel.models.servables import Servables
    from ovms_kernel.models.store import Store
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import EngineExit, EngineInfo

RETRY_AFTER = 10.0
"""Seconds after a load that failed before a request tries it again."""
FOREIGN_PERIOD = 10.0
"""Seconds for which an engine is believed to serve a model that is not installed here."""


class Residency:
    """Owns the table of models in one engine.

    :param connect: waits until the engine answers, starting it if need be.
    :param engine_runs: tells whether there is an engine that need not be started to be asked.
    """

    def __init__(
        self,
        settings: Settings,
        events: Events,
        store: Store,
        servables: Servables,
        memory: Memory,
        loader: Loader,
        *,
        connect: Callable[[], Awaitable[object]],
        engine_runs: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._events = events
        self._store = store
        self._servables = servables
        self._memory = memory
        self._loader = loader
        self._connect = connect
        self._engine_runs = engine_runs
        self.table = loader.table
        self._turns = Turns(
            self.table, lambda: memory.budget(self.table), loader.read_records, lambda: loader.live().switch_patience
        )

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(upkeep.unload_idle_models, self._loader, self._turns, name="idle models")
        self._tasks.start_soon(upkeep.report_models, self._loader, self._turns, self._settings, name="report of models")
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
        await self._loader.loads.aclose()

    # -- requests --------------------------------------------------------------------------------------------------

    def use(
        self, model_type: str, name: str = "", *, default: str = "", keep_alive: float | None = None
    ) -> AbstractAsyncContextManager[LocalModel]:
        """Hold a model for a request: loaded when the block begins, and not unloaded before it ends.

        :param name: empty means the default, else the one of that type that was used last, else the only one.
        :param keep_alive: seconds that it stays loaded afterwards, negative = for ever; ``None`` = as before.
        :raises NotFound: it is not installed; the sentence lists what is, and how to pull it.
        :raises BadRequest: it is a model of another type.
        :raises Unavailable: its memory is in use, or does not suffice; the sentence says what holds it.
        :raises EngineFailed: it does not load.
        """
        return _Use(self, name, model_type, default, keep_alive)

    async def resolve(self, name: str, model_type: str, default: str) -> LocalModel:
        """Return the model that a request means, whether it is loaded or not; see :meth:`use`."""
        known = self.table.get(name or default)
        await upkeep.unload_outdated(known, self._loader, self._turns)
        if known and known.state is State.LOADED:
            if known.foreign and time.monotonic() - known.loaded_at < FOREIGN_PERIOD:
                return foreign(known.id)
            if known.model and known.model.model_type == model_type:
                return known.model
        installed = await anyio.to_thread.run_sync(self._store.served)
        model = choose(installed, self.table, name, model_type, default)
        if model is not None:
            check_type(model, installed, model_type)
            return model
        # Somebody else's engine serves models of their own; of what type, it does not say.
        may_serve = self._engine_runs() or name in await self._servables.entries()
        if may_serve and await self._is_served(name, known):
            self.table[name] = Resident(name, foreign=True, state=State.LOADED, loaded_at=time.monotonic())
            return foreign(name)
        raise not_installed(installed, name, model_type)

    async def _is_served(self, name: str, known: Resident | None) -> bool:
        try:
            return await self._servables.is_ready(name)
        except (Unavailable, TimedOut):
            if known is None or not known.foreign:
                raise
            return True  # it was served before; an engine too busy to say so tells it to the request itself

    async def enter(self, model: LocalModel) -> Resident:
        """Count a request as a user of a model once that is loaded."""
        await self._loader.synchronise(await self._connect())
        resident = self._loader.resident(model)
        while resident.state is not State.LOADED or resident.closing:
            recently = time.monotonic() - resident.failed_at < RETRY_AFTER
            if resident.failure is not None and recently and resident.id not in self._loader.loads:
                raise resident.failure.again()
            with self._turns.ticket(resident.id) as ticket:
                try:
                    await self._loader.loads.join(resident.id, lambda _: self._bring(resident, stays=False))
                except Abandoned:
                    continue  # it was given up just before this request came
                except BaseException:
                    if ticket.admitted:
                        self.leave(resident, None)
                    raise
            if ticket.admitted:
                return resident
        resident.note_use(time.monotonic())
        resident.users += 1
        resident.hinted = False
        return resident

    def leave(self, resident: Resident, keep_alive: float | None) -> None:
        """Count it as a user no more; see :meth:`use`."""
        resident.users -= 1
        resident.last_used = time.monotonic()
        if keep_alive is not None:
            resident.keep = kept(keep_alive)
        if resident.keep is not None:
            self._turns.notify()
        else:
            self._turns.notify_waiting()

    # -- what people and hosts ask ---------------------------------------------------------------------------------

    async def load(self, model_id: str, *, keep_alive: float | None = None) -> LoadedModel:
        """Load a model, or find that it is loaded with the graph that is on disk now.

        A caller that goes away does not stop the load: the engine cannot stop it either.

        :raises OvmsError: as :meth:`use`; a load that failed before is tried again at once.
        """
        model_id = parse_model_id(model_id)
        try:
            model = await anyio.to_thread.run_sync(self._store.find, model_id)
        except NotFound:
            if self._engine_runs() and (await self._servables.states()).get(model_id) == AVAILABLE:
                return LoadedModel(foreign(model_id), 0.0)
            raise
        await self._loader.synchronise(await self._connect())
        resident = self._loader.resident(model)
        await upkeep.unload_outdated(resident, self._loader, self._turns)
        if keep_alive is not None:
            resident.keep = kept(keep_alive)
            if not self._loader.owns_engine():
                await self._store.note(model_id, keep=keep_alive)
        if resident.state is State.LOADED and not resident.closing:
            if resident.graph == graph_of(model) and (await self._servables.states()).get(model_id) == AVAILABLE:
                resident.last_used, resident.hinted = time.monotonic(), False
                self._turns.notify()
                return LoadedModel(model, 0.0)
            if model_id not in self._loader.loads:
                resident.state = State.ABSENT
        while True:
            try:
                return await self._loader.loads.join(model_id, lambda _: self._bring(resident, stays=True))
            except Abandoned:
                continue  # the requests that it was loaded for have gone

    async def unload(self, model_id: str, reason: str) -> None:
        """Unload a model after the requests that it works on; nothing happens if it is not loaded.

        :raises PreconditionFailed: a user listed it in ``config.json``.
        """
        model_id = parse_model_id(model_id)
        if (entry := (await self._servables.entries()).get(model_id)) and entry.by_hand:
            raise PreconditionFailed(f"{model_id} is listed by hand in {self._settings.config_json}; remove it there.")
        async with self._turns.change():
            gone = await self._loader.unload(model_id)
        await self._loader.tell_unloaded(gone, reason)

    def hint(self, model_id: str) -> None:
        """Note that a host needs a model no longer: it goes first when memory is needed, or after a minute unused."""
        if resident := self.table.get(model_id):
            resident.hinted = True
            self._turns.notify()

    async def running(self) -> list[LocalModel]:
        """Return what the engine says that it serves; a model that is not installed has a name and nothing more."""
        states = await self._servables.states()
        installed = {model.id: model for model in await anyio.to_thread.run_sync(self._store.served)}
        return [installed.get(name) or foreign(name) for name, each in sorted(states.items()) if each == AVAILABLE]

    async def resident_models(self, *, elsewhere: bool = False) -> list[ResidentModel]:
        """Return what is loaded, being loaded or failed to load, by id.

        :param elsewhere: another process runs the engine, so that it knows who uses what.
        """
        if not elsewhere:
            return self._loader.shown()
        await self._loader.synchronise()
        await self._loader.read_records()
        return await anyio.to_thread.run_sync(report.completed, self._settings, self._loader.shown())

    async def pin(self, model_id: str, *, pinned: bool) -> LocalModel:
        """Keep a model loaded, once it is, until a person unpins or unloads it; this outlives a restart.

        :raises NotFound: it is not installed.
        """
        model = await self._store.note(parse_model_id(model_id), pinned=pinned)
        await self._loader.read_records()
        self._turns.notify()
        return model

    def choose_device(self, device: str) -> None:
        """Load models that name no device for this one from now on; empty means that the engine chooses."""
        self._loader.device = device

    def default_idle_unload(self, seconds: float) -> None:
        """Unload models that were idle for so long, where no setting says otherwise."""
        self._loader.default_idle = seconds
        self._turns.notify()

    def loaded(self) -> list[Resident]:
        """Return the installed models that are loaded."""
        return self._loader.loaded()

    # -- loads, one after another ----------------------------------------------------------------------------------

    async def _bring(self, resident: Resident, *, stays: bool) -> LoadedModel:
        """Wait for the turn of a model, make room for it and load it.

        :param stays: it is loaded even if nobody waits any more.
        """
        since = time.monotonic()
        gone: list[LocalModel] = []
        model = model_of(resident)
        async with self._store.hold(model.alias_of or model.id):
            resident.model = model = await self._loader.prepare(model)
            wanted = await anyio.to_thread.run_sync(self._memory.wanted, model)
            resident.device = wanted.device
            want = Want(resident, wanted, lambda: not stays and not self._turns.is_waited_for(resident.id), since)
            try:
                async with self._turns.turn(want) as decision:
                    if decision is None:
                        self._turns.admit(resident)
                        return LoadedModel(model_of(resident), 0.0)
                    # An engine cannot stop a load, so it goes on without those who wanted it.
                    with anyio.CancelScope(shield=True):
                        for victim in decision.unload:
                            gone += await self._loader.unload(victim)
                        loaded = await self._loader.load(resident, wanted)
                        self._turns.admit(resident)
            finally:
                if resident.state in (State.WAITING, State.LOADING):
                    resident.state = State.ABSENT
                self._turns.notify()
                with anyio.CancelScope(shield=True):
                    await self._loader.tell_unloaded(gone, f"its memory is needed for {resident.id}")
        await self._events.tell("ovms_model_ready", model=loaded)
        return loaded

    @hookimpl
    async def ovms_before_replace(self, model: LocalModel) -> None:
        """Unload a model and its profiles before its files change, whichever process runs the engine."""
        if self._engine_runs():
            await self._loader.synchronise(await self._connect())
        names = [model.id, *(each.id for each in self.table.values() if model_of(each).alias_of == model.id)]
        async with self._turns.change():
            gone = [each for name in names for each in await self._loader.unload(name)]
            for name in names:
                self.table.pop(name, None) if name not in self._loader.loads else None
        await self._loader.tell_unloaded(gone, "its files are replaced or removed")

    @hookimpl
    async def ovms_model_suspect(self, model: LocalModel, device: str, cause: str) -> None:
        """Unload a model that answers nonsense, so that its next request loads it on another device."""
        resident = self.table.get(model.id)
        if resident is None or resident.state is not State.LOADED:
            return  # it is being loaded, and the load knows
        resident.suspect = f"answers {cause} on {device}"
        if device != SYSTEM:
            await self.unload(model.id, f"it answers nonsense on {device}")

    # -- the engine's view -----------------------------------------------------------------------------------------

    @hookimpl
    async def ovms_amend_launch(self) -> None:
        """See that an engine that is about to start loads nothing of an earlier one; it would load all at once."""
        if self._loader.owns_engine():
            await self._servables.strip()

    @hookimpl
    async def ovms_engine_ready(self, engine: EngineInfo) -> None:  # noqa: ARG002 - the event's own word
        """Look at what the engine serves before the next request, and load what is to be preloaded."""
        self._loader.stale = True
        if self._settings.preload and self._loader.owns_engine():
            self._tasks.start_soon(upkeep.preload, self._settings.preload, self.load, name="preload")

    @hookimpl
    async def ovms_engine_exited(self, exit: EngineExit) -> None:  # noqa: A002, ARG002 - the event's own word
        """Forget what was loaded."""
        self._loader.stale = True
        for resident in self.table.values():
            if resident.state is State.LOADED:
                resident.state, resident.closing, resident.graph = State.ABSENT, False, 0
        self._turns.notify()


class _Use:
    """A request's hold on a model; a class rather than a generator, which would cost each request twice as much."""

    __slots__ = ("_keep_alive", "_residency", "_resident", "_wanted")

    def __init__(
        self, residency: Residency, name: str, model_type: str, default: str, keep_alive: float | None
    ) -> None:
        self._residency = residency
        self._wanted = name, model_type, default
        self._keep_alive = keep_alive

    async def __aenter__(self) -> LocalModel:
        model = await self._residency.resolve(*self._wanted)
        self._resident = await self._residency.enter(model)
        return model

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._residency.leave(self._resident, self._keep_alive)
