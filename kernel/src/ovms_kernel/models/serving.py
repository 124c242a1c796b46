"""What the engine serves: the only writer of ``config.json``.

An entry is added, the engine is asked to reload, and then only ``GET /v1/config`` is believed for that name: answers of
the reload name no culprit and may say 200 although a graph is broken (spec/ovms.md C.6 to C.8). What does not load is
taken out again, so that it neither hides other entries nor comes back with the next start of the engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ovms_kernel.errors import EngineFailed, NotFound, OvmsError, TimedOut, Unavailable
from ovms_kernel.files import human
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.models.config_json import ConfigFile
from ovms_kernel.models.files import GRAPH
from ovms_kernel.models.idle import IdleWatch, is_wanted
from ovms_kernel.models.names import parse_model_id
from ovms_kernel.models.servables import AVAILABLE, FAILED, GONE, LOADING, Servables, available_memory, states_of
from ovms_kernel.values import LoadedModel, LocalModel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ovms_kernel.events import Events
    from ovms_kernel.models.library import Library
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import EngineExit, EngineInfo

log = logging.getLogger(__name__)

POLL = 0.05
"""Seconds between two looks at a model that is still loading after the reload has returned."""
RETRY_AFTER = 10.0
"""Seconds for which a failure is remembered, so that a load and the request behind it do not both try in vain."""
NOISE = ("JSON schema parse error:", "Mediapipe graph subconfig file is not in valid configuration format")
"""Errors that OVMS logs on every load of a model with a ``config.json`` of its own; they mean nothing."""
WEIGHT_OVERHEAD = 1.1
"""A loaded model's memory as a multiple of its weights, at least."""


class Serving:
    """The models of one engine.

    :param connect: returns the running engine, starting it if need be.
    :param engine_log: returns the engine's last log lines about a model.
    :param running: tells whether there is an engine, so that nothing is started only to unload from it.
    :param engine_runs: tells whether anybody runs one, so that none is started only to be asked for a model.
    """

    def __init__(
        self,
        settings: Settings,
        events: Events,
        library: Library,
        connect: Callable[[], Awaitable[Servables]],
        engine_log: Callable[[str], str] = lambda _: "",
        *,
        running: Callable[[], bool] = lambda: True,
        engine_runs: Callable[[], bool] = lambda: True,
        memory: Callable[[], int] = available_memory,
    ) -> None:
        self._settings = settings
        self._events = events
        self._library = library
        self._connect = connect
        self._engine_log = engine_log
        self._running = running
        self._engine_runs = engine_runs
        self._memory = memory
        self.served: dict[str, LocalModel] = {}
        """The models that are known to be served, by id."""
        self.last_used: dict[str, float] = {}
        """Monotonic time of the last request for a model, by id."""
        self._engine_was_ready = False
        self._graphs: dict[str, int] = {}
        self._failures: dict[str, tuple[float, OvmsError]] = {}
        self._loads: dict[str, asyncio.Task[LoadedModel]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._config = ConfigFile(settings.config_json, lambda: {m.id: m.directory for m in self.served.values()})
        library.release = self._release
        events.register(
            {"kernel.serving": self} | ({"kernel.idle": IdleWatch(settings, self)} if is_wanted(settings) else {})
        )

    async def prepare(self) -> None:
        """Make the engine's configuration file if there is none."""
        await self._config.prepare()

    # -- loading ---------------------------------------------------------------------------------------------------

    async def load(self, model_id: str, *, force: bool = False) -> LoadedModel:
        """Make the engine serve a model; whoever asks at the same time gets the same load.

        A caller that goes away does not stop the load: the engine cannot stop it either.

        :param force: even if its memory does not suffice.
        :raises NotFound: it is not installed.
        :raises EngineFailed: the engine cannot load it; the sentence has the engine's own words.
        """
        model_id = parse_model_id(model_id)
        if (model := self.served.get(model_id)) and await self._is_current(model):
            return LoadedModel(model, 0.0)
        task = self._loads.get(model_id)
        if task is None:
            task = self._loads[model_id] = self._spawn(self._load(model_id, force=force))
            task.add_done_callback(lambda _: self._loads.pop(model_id, None))
        return await asyncio.shield(task)

    async def ensure(self, model_id: str) -> None:
        """Make sure that a request for a model can be served, loading it once whoever asks.

        :raises OvmsError: as :meth:`load`; a failure of a moment ago is told again without another try.
        """
        self.last_used[model_id] = time.monotonic()
        if model_id in self.served:
            if not self._config.was_changed():
                return
            # Another process, such as a command line, has loaded or unloaded something in the same engine.
            entries = await self._config.entries()
            for gone in self.served.keys() - entries.keys():
                del self.served[gone]
            if model_id in self.served:
                return
        when, error = self._failures.get(model_id, (0.0, None))
        if error is not None and time.monotonic() - when < RETRY_AFTER:
            raise type(error)(error.message)
        await self.load(model_id)

    async def unload(self, model_id: str, reason: str) -> None:
        """Make the engine let go of a model, after the requests it works on; nothing happens if it is not served."""
        model_id = parse_model_id(model_id)
        async with self._library.hold(model_id):
            model = self.served.get(model_id) or LocalModel(model_id, Path(), "", 0, "", datetime.now(UTC))
            gone = await self._take_out(model_id)
        if gone:
            await self._events.tell("ovms_unloaded", model=model, reason=reason)

    async def running(self) -> list[LocalModel]:
        """Return what the engine serves now, in its own words; a model that is not ours has a name and nothing more."""
        states = states_of(await (await self._connect()).config())
        installed = {model.id: model for model in await anyio.to_thread.run_sync(self._library.list)}
        now = datetime.now(UTC)
        return [
            installed.get(name) or LocalModel(name, Path(), "", 0, "", now)
            for name, state in sorted(states.items())
            if state == AVAILABLE
        ]

    async def serves(self, model_id: str) -> bool:
        """Tell whether the engine itself says that it serves a model, be it ours or not."""
        return await self._may_serve(model_id) and await (await self._connect()).model_ready(model_id)

    async def _may_serve(self, model_id: str) -> bool:
        """Tell whether an engine may have a model that is not ours: one that runs, or by a user's own entry."""
        return self._engine_runs() or model_id in await self._config.entries()

    async def reconcile(self) -> None:
        """Look at what a started engine has made of ``config.json``, and take out what it could not load."""
        if not self._running():
            return
        client = await self._connect()
        self.served.clear()
        deadline = time.monotonic() + self._settings.load_timeout
        while entries := await self._our_entries():
            states = states_of(await client.config())
            if any(states.get(name) == LOADING for name in entries) and time.monotonic() < deadline:
                await anyio.sleep(POLL)
                continue
            installed = {model.id: model for model in await anyio.to_thread.run_sync(self._library.list)}
            culprit = next((name for name in entries if states.get(name) != AVAILABLE or name not in installed), None)
            if culprit is None:
                for name in entries:
                    self._mark_served(installed[name])
                return
            async with self._library.hold(culprit):
                # Another process may be loading it right now: it keeps this lock until the engine has decided.
                if culprit in installed and states_of(await client.config()).get(culprit) == AVAILABLE:
                    continue
                await self._config.take(culprit)
                log.warning("Model %s is not served after the engine's start; its entry was taken out", culprit)
                if culprit in installed:
                    cause = self._cause(culprit, "the engine could not load it when it started")
                    await self._events.tell("ovms_load_failed", model=installed[culprit], cause=cause)
                await self._reload(client)

    @hookimpl
    async def ovms_engine_exited(self, exit: EngineExit) -> None:  # noqa: A002 - the event's own word
        """Nothing is served any more; if it ended before it was ready, what it loaded at its start may be the cause."""
        self.served.clear()
        ready, self._engine_was_ready = self._engine_was_ready, False
        entries = await self._our_entries()
        if entries and not ready and not exit.expected:
            log.warning("The engine ended while it loaded %s; it is started again without", ", ".join(entries))
            await self._config.take(*entries)

    @hookimpl
    async def ovms_engine_ready(self, engine: EngineInfo) -> None:  # noqa: ARG002 - the event's own word
        """See what the new engine serves, beside the event, as that may take long."""
        self._engine_was_ready = True

        async def look() -> None:
            try:
                # Asking an engine that was stopped in the meantime would start it again.
                if self._running():
                    await self.reconcile()
            except OvmsError as error:
                log.warning("What the engine serves is not known: %s", error.message)

        self._spawn(look())

    @hookimpl
    async def ovms_kernel_stopping(self) -> None:
        """Stop looking at what the engine serves; loads end with the engine, and their callers hear of it."""
        looks = self._tasks - set(self._loads.values())
        for task in looks:
            task.cancel()
        await asyncio.gather(*looks, return_exceptions=True)

    # -- the steps -------------------------------------------------------------------------------------------------

    async def _load(self, model_id: str, *, force: bool) -> LoadedModel:
        if not await self._may_serve(model_id):
            await anyio.to_thread.run_sync(self._library.find, model_id)
        client = await self._connect()
        began = time.monotonic()
        async with self._library.hold(model_id):
            states = states_of(await client.config())
            try:
                model = await anyio.to_thread.run_sync(self._library.find, model_id)
            except NotFound:
                if states.get(model_id) != AVAILABLE:
                    raise
                # Somebody else runs this engine and gave it models of their own.
                model = LocalModel(model_id, Path(), "", 0, "", datetime.now(UTC))
                return LoadedModel(model, 0.0)
            entries = await self._config.entries()
            changed = await self._library.shaper.refresh(model)
            listed = entries.get(model_id) == model.directory.absolute().as_posix()
            if listed and states.get(model_id) == AVAILABLE and not changed and model_id not in self._graphs:
                self._mark_served(model)
                return LoadedModel(model, 0.0)
            self._check_memory(model, force=force)
            try:
                if listed and states.get(model_id) == FAILED:
                    # A graph that failed is not tried again unless its entry was away.
                    await self._config.take(model_id)
                    await self._reload(client)
                await self._config.put(model_id, model.directory)
                await self._reload(client)
                await self._await_served(client, model_id)
            except BaseException as error:
                self.served.pop(model_id, None)
                with anyio.CancelScope(shield=True):
                    await self._withdraw(client, model, error)
                raise
            self._mark_served(model)
        seconds = time.monotonic() - began
        self._failures.pop(model_id, None)
        loaded = LoadedModel(model, seconds)
        log.info("Model %s is served, after %.2f s", model_id, seconds)
        await self._events.tell("ovms_model_ready", model=loaded)
        return loaded

    async def _await_served(self, client: Servables, model_id: str) -> None:
        """Return when the engine says that it serves the model.

        :raises EngineFailed: it says that it cannot.
        :raises TimedOut: it says neither within the time for loading.
        """
        deadline = time.monotonic() + self._settings.load_timeout
        patience = 3
        while True:
            states = states_of(await client.config())
            state = states.get(model_id)
            if state == AVAILABLE:
                return
            if state == FAILED:
                raise EngineFailed(self._failure(model_id, "it gave no cause"))
            if state in (None, GONE):
                entries = await self._our_entries()
                earlier = next((name for name in entries if name == model_id or name not in states), model_id)
                if earlier == model_id:
                    raise EngineFailed(self._failure(model_id, "it gave up on the graph without a word"))
                # Another entry that throws hides this one; whoever added it will take it out, else we do.
                patience -= 1
                if patience < 0:
                    log.warning("Model %s hides others from the engine; its entry was taken out", earlier)
                    await self._config.take(earlier)
                else:
                    await anyio.sleep(POLL)
                    await self._config.take()
                await self._reload(client)
            elif time.monotonic() > deadline:
                raise TimedOut(
                    f"The engine is still loading {model_id} after {self._settings.load_timeout:g} s; "
                    "raise the setting load_timeout if the model needs longer."
                )
            else:
                await anyio.sleep(POLL)

    async def _withdraw(self, client: Servables, model: LocalModel, error: BaseException) -> None:
        """Take out the entry of a model that did not load, and tell."""
        await self._config.take(model.id)
        try:
            await self._reload(client)
        except OvmsError as second:
            # Mostly because it has ended; the next one reads the file without the entry.
            log.info("The engine did not hear that %s was taken out: %s", model.id, second.message)
        if isinstance(error, OvmsError):
            self._failures[model.id] = (time.monotonic(), error)
            log.error("Model %s did not load: %s", model.id, error.message)
            await self._events.tell("ovms_load_failed", model=model, cause=error.message)

    async def _our_entries(self) -> dict[str, str]:
        """Return the entries of models of this library; what else a user wrote into the file is left alone."""
        ours = self._settings.models_dir.absolute().as_posix() + "/"
        return {name: folder for name, folder in (await self._config.entries()).items() if folder.startswith(ours)}

    async def _release(self, model: LocalModel) -> None:
        """Let go of a model whose files are about to change; the caller holds its lock."""
        if await self._take_out(model.id):
            await self._events.tell("ovms_unloaded", model=model, reason="its files are replaced or removed")

    async def _take_out(self, model_id: str) -> bool:
        self.served.pop(model_id, None)
        self._graphs.pop(model_id, None)
        self._failures.pop(model_id, None)
        if model_id not in await self._config.entries():
            return False
        await self._config.take(model_id)
        if self._running():
            await self._reload(await self._connect())
        return True

    async def _reload(self, client: Servables) -> None:
        """Ask for a reload; that it complains says nothing about any one model."""
        try:
            with anyio.fail_after(self._settings.load_timeout):
                await client.reload()
        except Unavailable:
            raise
        except TimeoutError as error:
            raise TimedOut(f"The engine is still loading after {self._settings.load_timeout:g} s.") from error
        except OvmsError as error:
            log.debug("The engine says of the reload: %s", error.message)

    async def _is_current(self, model: LocalModel) -> bool:
        """Tell whether a model that was loaded is served still, with the graph that is on disk now."""
        try:
            written = (model.directory / GRAPH).stat().st_mtime_ns
        except OSError:
            return False
        if self._graphs.get(model.id) != written:
            return False
        return states_of(await (await self._connect()).config()).get(model.id) == AVAILABLE

    def _mark_served(self, model: LocalModel) -> None:
        self.served[model.id] = model
        self.last_used[model.id] = time.monotonic()
        try:
            self._graphs[model.id] = (model.directory / GRAPH).stat().st_mtime_ns
        except OSError:
            self._graphs.pop(model.id, None)

    def _check_memory(self, model: LocalModel, *, force: bool) -> None:
        if force or str(self._settings.section("models", model.id).get("force", "")).lower() in ("true", "1", "yes"):
            return
        needed = int(self._library.memory_needed(model) * WEIGHT_OVERHEAD)
        free = self._memory()
        if needed > free:
            loaded = ", ".join(sorted(self.served)) or "none"
            raise Unavailable(
                f"{model.id} needs about {human(needed)} of memory and {human(free)} are free "
                f"(loaded models: {loaded}); unload something, take a smaller model, or "
                "set force: true in this model's settings."
            )

    def _failure(self, model_id: str, otherwise: str) -> str:
        return f"The engine could not load {model_id}: {self._cause(model_id, otherwise)}"

    def _cause(self, model_id: str, otherwise: str) -> str:
        lines = (line.strip() for line in self._engine_log(model_id).splitlines())
        telling = [line for line in lines if line and not any(noise in line for noise in NOISE)]
        return " | ".join(telling[-5:]) or otherwise

    def _spawn(self, work: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - a coroutine of any result
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Its error reaches whoever awaits it; nobody may be left to.
        task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        return task
