"""What the engine serves: the only writer of ``config.json`` and the only reader of ``/v1/config``.

An entry is added, the engine is asked to reload, and then only ``GET /v1/config`` is believed for that name: answers of
the reload name no culprit and may say 200 although a graph is broken. What does not load is
removed again, so that it neither hides other entries nor comes back with the next start of the engine.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from ovms_kernel.errors import EngineFailed, OvmsError, TimedOut, Unavailable
from ovms_kernel.models.config_json import ConfigFile, Entry
from ovms_kernel.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from ovms_kernel.settings import Settings
    from ovms_kernel.values import LocalModel

log = logging.getLogger(__name__)

AVAILABLE, LOADING, FAILED, GONE = "available", "loading", "failed", "gone"

POLL = 0.05
"""Seconds between two looks at a model that is still loading after the reload has returned."""
PATIENCE = 3
"""Looks at an entry that hides a later one before it is removed; the process that added it may do that, too."""
NOISE = ("JSON schema parse error:", "Mediapipe graph subconfig file is not in valid configuration format")
"""Errors that OVMS logs on every load of a model with a ``config.json`` of its own; they mean nothing."""


class ModelServer(Protocol):
    """The engine as far as its models are concerned; ``engine/client.py`` is one."""

    async def config(self) -> dict[str, Any]:
        """Return what ``GET /v1/config`` says."""
        ...

    async def reload(self) -> dict[str, Any]:
        """Do ``POST /v1/config/reload``, which returns when loading has ended."""
        ...

    async def model_ready(self, name: str) -> bool:
        """Tell whether it serves a model."""
        ...

    async def model_problem(self, name: str) -> str:
        """Return what it found wrong with a model that it serves."""
        ...


class EngineLog(Protocol):
    """The engine's log, for the causes of loads that failed."""

    def position(self) -> int:
        """Return where the log ends now."""
        ...

    def about(self, subject: str, since: int = 0) -> str:
        """Return the last lines after that position that tell of errors, those that name the subject first."""
        ...


def states_of(config: dict[str, Any]) -> dict[str, str]:
    """Return what ``/v1/config`` says of each name."""
    states = {}
    for name, entry in config.items():
        versions = entry.get("model_version_status") if isinstance(entry, dict) else None
        last = versions[-1] if isinstance(versions, list) and versions else {}
        state, code = last.get("state"), (last.get("status") or {}).get("error_code", "OK")
        if state == "AVAILABLE":
            states[name] = AVAILABLE
        elif state in ("END", "UNLOADING", None):
            states[name] = GONE
        else:
            states[name] = LOADING if code == "OK" else FAILED
    return states


class Servables:
    """Loads and unloads models in one engine, one change at a time; the caller sees to the order.

    :param connect: returns the running engine, starting it if need be.
    :param running: tells whether there is an engine, so that none is started only to unload from it.
    :param live: returns the settings that hold now; ``None`` = those given.
    :param known: name and folder of what is served, for making a damaged ``config.json`` anew.
    """

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[], Awaitable[ModelServer]],
        engine_log: EngineLog,
        *,
        running: Callable[[], bool],
        known: Callable[[], Mapping[str, Path]] = dict,
        live: Callable[[], Settings] | None = None,
    ) -> None:
        self._live = live or (lambda: settings)
        self._connect = connect
        self._log = engine_log
        self._running = running
        self._config = ConfigFile(settings.config_json, known)
        self._readiness: SingleFlight[bool, None] = SingleFlight(cancel_abandoned=True)

    async def prepare(self) -> None:
        """Make the engine's configuration file if there is none."""
        await self._config.prepare()

    async def strip(self) -> None:
        """Remove what we wrote into the configuration, as an engine that starts loads everything in it."""
        if gone := await self._config.strip():
            log.info("Not loaded again with the engine: %s", ", ".join(gone))

    def is_running(self) -> bool:
        """Tell whether there is an engine that answers."""
        return self._running()

    def was_changed(self) -> bool:
        """Tell whether another process has changed the configuration since it was last written or asked for here."""
        return self._config.was_changed()

    async def entries(self) -> dict[str, Entry]:
        """Return what is configured, by name."""
        return await self._config.entries()

    async def states(self) -> dict[str, str]:
        """Return the state of everything that the engine knows, by name."""
        return states_of(await (await self._connect()).config())

    async def is_ready(self, name: str) -> bool:
        """Tell whether the engine itself says that it serves a model; requests that ask at once are one question.

        :raises OvmsError: the engine cannot be asked.
        """

        async def ask(_: object) -> bool:
            return await (await self._connect()).model_ready(name)

        return await self._readiness.join(name, ask)

    async def problem(self, name: str) -> str:
        """Return what the engine found wrong with a model that it serves; empty if it says nothing."""
        try:
            return await (await self._connect()).model_problem(name)
        except OvmsError as error:
            log.debug("What is wrong with %s cannot be asked: %s", name, error)
            return ""

    async def add(self, model: LocalModel, *, anew: bool = False) -> None:
        """Load a model.

        :param anew: even if the engine serves it already, as its graph has changed.
        :raises EngineFailed: the engine cannot load it; the sentence has the engine's own words.
        :raises TimedOut: it is still loading after ``load_timeout``.
        :raises Unavailable: the engine is not there or ended meanwhile.
        """
        client = await self._connect()
        entry = (await self._config.entries()).get(model.id)
        listed = entry is not None and entry.folder == model.directory.absolute().as_posix()
        state = states_of(await client.config()).get(model.id)
        if listed and state == AVAILABLE and not anew:
            return
        began = self._log.position()
        try:
            if listed and state == FAILED:
                # A graph that failed is not tried again unless its entry was away.
                await self._config.take(model.id)
                await self._reload(client)
            await self._config.put(model.id, model.directory)
            await self._reload(client)
            while not await self._is_served(client, model.id, began):
                # The engine was started again meanwhile, without what we had added, so it has not tried this model.
                client, began = await self._connect(), self._log.position()
                await self._config.put(model.id, model.directory)
                await self._reload(client)
        except BaseException:
            if entry is None or not entry.by_hand:
                with anyio.CancelScope(shield=True):
                    await self._withdraw(model.id)
            raise

    async def remove(self, *names: str) -> bool:
        """Unload models once the requests that they work on have ended; return whether one was configured."""
        if not (await self._config.entries()).keys() & set(names):
            return False
        await self._config.take(*names)
        if self._running():
            await self._reload(await self._connect())
        return True

    @property
    def _load_timeout(self) -> float:
        return self._live().load_timeout

    async def _is_served(self, client: ModelServer, name: str, log_begin: int) -> bool:
        """Return when the engine says that it serves the model; false if another engine runs in its place."""
        deadline = time.monotonic() + self._load_timeout
        patience = PATIENCE
        while True:
            states = states_of(await client.config())
            state = states.get(name)
            if state == AVAILABLE:
                return True
            if state == FAILED:
                raise EngineFailed(self._failure(name, log_begin, "it gave no cause"))
            if state in (None, GONE):
                entries = [each for each, entry in (await self._config.entries()).items() if not entry.by_hand]
                earlier = next((each for each in entries if each == name or each not in states), name)
                if name not in entries and await self._connect() is not client:
                    return False
                if earlier == name:
                    raise EngineFailed(self._failure(name, log_begin, "it gave up on the graph without a word"))
                # Another entry that throws hides this one; the process that added it removes it, or else we do.
                patience -= 1
                if patience < 0:
                    log.warning("Model %s hides others from the engine; its entry was removed", earlier)
                    await self._config.take(earlier)
                else:
                    await anyio.sleep(POLL)
                    await self._config.take()
                await self._reload(client)
            elif time.monotonic() > deadline:
                raise TimedOut(
                    f"The engine is still loading {name} after {self._load_timeout:g} s; "
                    "raise the setting load_timeout if the model needs longer."
                )
            else:
                await anyio.sleep(POLL)

    async def _withdraw(self, name: str) -> None:
        await self._config.take(name)
        if not self._running():
            return  # it has ended, or is another process's and this one ends: nothing is to be waited for
        try:
            await self._reload(await self._connect())
        except OvmsError as error:
            # Mostly because it has ended; the next one reads the file without the entry.
            log.info("The engine did not reload after %s was removed: %s", name, error.message)

    async def _reload(self, client: ModelServer) -> None:
        """Ask for a reload; that it complains says nothing about any one model."""
        try:
            with anyio.fail_after(self._load_timeout):
                await client.reload()
        except Unavailable:
            raise
        except TimeoutError as error:
            raise TimedOut(
                f"The engine is still loading after {self._load_timeout:g} s; raise the setting load_timeout."
            ) from error
        except OvmsError as error:
            log.debug("The engine says of the reload: %s", error.message)

    def _failure(self, name: str, log_begin: int, otherwise: str) -> str:
        lines = (line.strip() for line in self._log.about(name, log_begin).splitlines())
        telling = [line for line in lines if line and not any(noise in line for noise in NOISE)]
        return f"The engine could not load {name}: {' | '.join(telling[-5:]) or otherwise}"
