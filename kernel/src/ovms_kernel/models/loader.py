"""Loads and unloads single models in the engine, and keeps the table of them true to what the engine says."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import anyio
import anyio.to_thread
from msgspec.structs import replace

from ovms_kernel.errors import OvmsError
from ovms_kernel.files import disk_errors
from ovms_kernel.models.model_record import GRAPH, read_record, write_record
from ovms_kernel.models.plan import Resident, State, unload_at
from ovms_kernel.models.report import ResidentModel
from ovms_kernel.models.servables import AVAILABLE
from ovms_kernel.single_flight import SingleFlight
from ovms_kernel.values import LoadedModel, LocalModel

if TYPE_CHECKING:
    from ovms_kernel.events import Events
    from ovms_kernel.models.graph_writer import GraphWriter
    from ovms_kernel.models.memory import Memory
    from ovms_kernel.models.plan import Table, Wanted
    from ovms_kernel.models.servables import Servables
    from ovms_kernel.models.store import Store
    from ovms_kernel.settings import Settings

log = logging.getLogger(__name__)

NOISE = 0.1
"""Share by which the memory of two loads of a model may differ without being noted."""
SHOWN: dict[State, Literal["failed", "waiting", "loading", "loaded", "unloading"]] = {
    State.ABSENT: "failed",
    State.WAITING: "waiting",
    State.LOADING: "loading",
    State.LOADED: "loaded",
    State.UNLOADING: "unloading",
}
"""What a state is called outside; an absent model is listed only if it failed to load."""

Write: TypeAlias = Callable[[str], Awaitable[str]]
Serve: TypeAlias = Callable[[], Awaitable[None]]
Place: TypeAlias = Callable[[LocalModel, Write, Serve], Awaitable[str]]


async def as_usual(model: LocalModel, write: Write, serve: Serve) -> str:
    """Load a model on its usual device, whatever it answers there."""
    del model
    await write("")
    await serve()
    return ""


class Loader:
    """Changes what is loaded; ``residency.py`` says when, and sees that there is one change at a time.

    :param table: every model that was used or loaded, by id.
    :param engine_memory: returns the bytes that the engine holds, 0 if that cannot be seen.
    :param owns_engine: tells whether no other process runs the engine.
    :param place: chooses the device and loads; returns what is wrong with the usual one.
    :param live: returns the settings that hold now; ``None`` = those of the start.
    """

    def __init__(
        self,
        settings: Settings,
        events: Events,
        store: Store,
        graphs: GraphWriter,
        servables: Servables,
        memory: Memory,
        table: Table,
        *,
        engine_memory: Callable[[], int] = lambda: 0,
        owns_engine: Callable[[], bool] = lambda: True,
        place: Place = as_usual,
        live: Callable[[], Settings] | None = None,
    ) -> None:
        self._settings = settings
        self._events = events
        self._store = store
        self._graphs = graphs
        self._servables = servables
        self._memory = memory
        self._engine_memory = engine_memory
        self.owns_engine = owns_engine
        self._place = place
        self.live = live or (lambda: settings)
        """Returns the settings that hold now."""
        self.table = table
        """Every model that was used or loaded, by id. Read by others, written here and in ``residency.py`` alone."""
        self.loads: SingleFlight[LoadedModel, None] = SingleFlight(cancel_abandoned=False)
        """Those under way, which a look at the engine leaves alone."""
        self.stale = True
        """The engine may serve something else than the table says."""
        self._engine: object = None
        self._synchronising = anyio.Lock()
        self.device = ""
        """Of models that name none: what the engine was started for; empty means that the engine chooses."""
        self.default_idle = 0.0
        """Seconds after which an idle model is unloaded where no setting says so; 0 = never."""

    # -- changes ---------------------------------------------------------------------------------------------------

    async def prepare(self, model: LocalModel) -> LocalModel:
        """Return a model whose files and graph are there, by which its memory is told; the caller holds its lock."""
        if model.profile is None:
            return model
        with disk_errors(f"Making the profile {model.id}"):
            model = await anyio.to_thread.run_sync(self._store.prepare, model.id)
            await self._graphs.refresh(model)
        return model

    def is_outdated(self, resident: Resident) -> bool:
        """Tell whether a profile is loaded with other settings than it has now, or is none any more."""
        model = resident.model
        return model is not None and model.profile is not None and model.profile != self._store.profile(model.id)

    async def load(self, resident: Resident, wanted: Wanted) -> LoadedModel:
        """Load a model whose memory is there; the caller holds its lock.

        :raises EngineFailed: the engine cannot load it; the sentence has the engine's own words.
        """
        model = resident.model
        if model is None or model.profile is None:  # else what was prepared
            model = await anyio.to_thread.run_sync(self._store.find, resident.id)
        resident.state, resident.model = State.LOADING, model
        resident.bytes = wanted.bytes
        began, before = time.monotonic(), await self._measure_engine()
        known = resident.graph

        async def write(device: str) -> str:
            await self._graphs.refresh(model, device=device or self.device, forced=bool(device))
            return await anyio.to_thread.run_sync(self._memory.device_of, model)

        async def serve() -> None:
            nonlocal known
            written = await anyio.to_thread.run_sync(graph_of, model)
            await self._servables.add(model, anew=known not in (0, written))
            known = written

        try:
            with disk_errors(f"Loading {model.id}"):
                suspect = await self._place(model, write, serve)
        except OvmsError as error:
            resident.failure, resident.failed_at = error, time.monotonic()
            log.error("Model %s did not load: %s", model.id, error.message)
            await self._events.tell("ovms_load_failed", model=model, cause=error.message)
            raise
        if before and (took := await self._measure_engine() - before) > 0:
            await anyio.to_thread.run_sync(_note_memory, model, took)
        now = await anyio.to_thread.run_sync(self._memory.wanted, model)
        self._mark_loaded(resident, model, wanted if wanted.measured and now.runs_on == wanted.runs_on else now)
        resident.suspect = suspect
        resident.load_seconds = time.monotonic() - began
        log.info("Model %s is loaded, after %.2f s", model.id, resident.load_seconds)
        if problem := await self._servables.problem(model.id):
            log.warning("%s: %s", model.id, problem)
        await anyio.to_thread.run_sync(_note, model, {"problem": problem})
        return LoadedModel(model, resident.load_seconds)

    async def _measure_engine(self) -> int:
        """Return the bytes that the engine holds; 0 if that cannot be seen."""
        return await anyio.to_thread.run_sync(self._engine_memory)

    async def unload(self, model_id: str) -> list[LocalModel]:
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
        return [(resident and resident.model) or foreign(model_id)] if gone else []

    async def tell_unloaded(self, models: list[LocalModel], reason: str) -> None:
        """Log and tell the event."""
        for model in models:
            log.info("Model %s is unloaded: %s", model.id, reason)
            await self._events.tell("ovms_unloaded", model=model, reason=reason)

    async def synchronise(self, engine: object = None) -> None:
        """See what another process, such as a command line, has loaded or unloaded in the same engine.

        :param engine: the one that is asked next; what an earlier one served says nothing of it.
        """
        if engine is not None and engine != self._engine:
            self._engine, self.stale = engine, True
        self.stale |= self._servables.was_changed()
        if not self.stale:
            return
        async with self._synchronising:
            if self.stale:  # no other request has done it in the meantime
                await self._look()
                self.stale = False

    def engine_is_ready(self) -> bool:
        """Tell whether there is an engine that need not be started to be asked."""
        return self._servables.is_running()

    async def _look(self) -> None:
        """Bring the table in line with what the engine serves, by whichever process loaded."""
        states, entries = await self._servables.states(), await self._servables.entries()
        installed = {model.id: model for model in await anyio.to_thread.run_sync(self._store.served)}
        for name, entry in entries.items():
            if states.get(name) == AVAILABLE and (model := installed.get(name)) and name not in self.loads:
                resident = self.resident(model)
                resident.by_hand = entry.by_hand
                if resident.state is State.ABSENT:
                    wanted = await anyio.to_thread.run_sync(self._memory.wanted, model)
                    self._mark_loaded(resident, model, wanted)
        await self.read_records()
        for resident in self.loaded():
            if resident.id not in entries or states.get(resident.id) != AVAILABLE:
                resident.state, resident.graph = State.ABSENT, 0

    # -- the table -------------------------------------------------------------------------------------------------

    def loaded(self) -> list[Resident]:
        """Return the installed models that are loaded."""
        return [each for each in self.table.values() if each.state is State.LOADED and not each.foreign]

    def shown(self) -> list[ResidentModel]:
        """Return what is loaded, being loaded or failed to load, by id."""
        ahead = time.time() - time.monotonic()
        found = []
        for each in sorted(self.table.values(), key=lambda each: each.id):
            if each.state is State.ABSENT and each.failure is None:
                continue
            due = math.inf if each.users else unload_at(each, self.idle_unload(each.id))
            found.append(
                ResidentModel(
                    model_of(each),
                    SHOWN[each.state],
                    users=each.users,
                    last_used=each.last_used and each.last_used + ahead,
                    loaded_at=each.loaded_at + ahead if each.state is State.LOADED else 0.0,
                    memory=each.bytes,
                    device=each.runs_on,
                    pinned=each.stays,
                    unload_at=due + ahead if due < math.inf else None,
                    failure=each.failure.message if each.failure else "",
                    suspect=each.suspect,
                )
            )
        return found

    def idle_unload(self, model_id: str) -> float:
        """Return after how many idle seconds a model is unloaded; 0 = never."""
        settings = self.live()
        own, general = settings.model(model_id).idle_unload, settings.idle_unload
        if own is not None:
            return own
        return general if general >= 0 else self.default_idle

    def resident(self, model: LocalModel) -> Resident:
        """Return a model's row of the table, made if there is none."""
        resident = self.table.get(model.id)
        if resident is None:
            resident = self.table[model.id] = Resident(model.id, model, pinned=self._is_pinned(model.id))
        elif resident.state is State.ABSENT:
            resident.model = model
        return resident

    def _mark_loaded(self, resident: Resident, model: LocalModel, wanted: Wanted) -> None:
        resident.state, resident.model = State.LOADED, model
        resident.loaded_at = time.monotonic()
        resident.note_use(resident.loaded_at)
        resident.last_used = resident.loaded_at
        resident.graph = graph_of(model)
        resident.failure, resident.closing, resident.hinted = None, False, False
        resident.bytes, resident.device, resident.runs_on = wanted.bytes, wanted.device, wanted.runs_on

    async def read_records(self) -> None:
        """Look which of the loaded models people have pinned or said how long to keep, here or in another process."""
        loaded = {each.id: each for each in self.loaded()}
        if loaded:
            records = await anyio.to_thread.run_sync(self._store.records, list(loaded))
            for name, record in records.items():
                loaded[name].pinned = record.pinned or self._is_pinned(name)
                if record.keep is not None and self.owns_engine():
                    # Another process said so; it is taken from there, so that a later request may say otherwise.
                    loaded[name].keep = kept(record.keep)
                    try:
                        await self._store.note(name, keep=None)
                    except OvmsError as error:
                        log.info("%s", error.message)  # it is taken once more at the next look

    def _is_pinned(self, model_id: str) -> bool:
        settings = self.live()
        return model_id in settings.pinned or settings.model(model_id).pinned


def _note_memory(model: LocalModel, took: int) -> None:
    """Note in a model's record what its load took, averaged with earlier loads; the caller holds its lock.

    Requests to other models that are answered meanwhile take memory, too.
    """
    record = read_record(model.directory)
    if record is not None and abs(record.load_bytes - took) > took * NOISE:
        _note(model, {"load_bytes": (record.load_bytes + took) // 2 if record.load_bytes else took})


def _note(model: LocalModel, found: dict[str, Any]) -> None:
    """Write what a load found into a model's record; the caller holds its lock."""
    record = read_record(model.directory)
    if record is None or all(getattr(record, name) == value for name, value in found.items()):
        return
    try:
        write_record(model.directory, replace(record, **found))
    except OSError as error:
        log.info("What the load of %s found cannot be noted: %s", model.id, error)  # the next load finds it again


def kept(keep_alive: float) -> float:
    """Return for how long a model stays, of what a request says of it."""
    return keep_alive if keep_alive >= 0 else math.inf


def model_of(resident: Resident) -> LocalModel:
    """Return the model of a row."""
    return resident.model or foreign(resident.id)


@lru_cache
def foreign(name: str) -> LocalModel:
    """Return a model that the engine has from elsewhere."""
    return LocalModel(name, Path(), "", 0, "", datetime.now(UTC))


def graph_of(model: LocalModel) -> int:
    """Return when a model's graph was written; 0 if there is none."""
    try:
        return (model.directory / GRAPH).stat().st_mtime_ns
    except OSError:
        return 0
