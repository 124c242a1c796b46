"""What is served: servables and their states, driven by config.json."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovms_embedded import log
from ovms_embedded.calculators.discovery import Calculators, find_calculators
from ovms_embedded.config import Config, ConfigError, Entry, read_config, single
from ovms_embedded.drafting import without_drafts
from ovms_embedded.entries import cache_folder, graph_of
from ovms_embedded.graphs import GraphInvalid, digest_of, marks_of
from ovms_embedded.guard import loading_limit, memory_limit, memory_of, weights_of
from ovms_embedded.servable import EXTERNAL, Servable, State
from ovms_embedded.templates import ChatTemplate
from ovms_embedded.workers import LoadFailed, Worker

if TYPE_CHECKING:
    from ovms_embedded.cli import Settings
    from ovms_embedded.graphs import Graph
    from ovms_embedded.workers import Spare

PARSE_TRIES = 3
PARSE_PAUSE = 0.01
RELOADING_PATIENCE = 0.5
"""Seconds that a request waits for a servable that is being reloaded."""
PAUSES = (1.0, 60.0)
"""Seconds before a worker that has crashed again and again is started: they double from the first to the last."""
CHAT = "chat/completions"
"""The endpoint that renders chat templates."""
STABLE = 5.0
"""Seconds after which a crash is the first again, and its worker started at once."""


class Manager:
    """Owns every servable; one change of the configuration at a time."""

    def __init__(self, config_path: Path | None, cache_dir: str | None, worker_memory: int, spare: Spare) -> None:
        self.servables: dict[str, Servable] = {}
        self.first_pass_done = False
        self._path = config_path
        self._cache_dir = cache_dir
        self._memory = worker_memory
        self._lock = asyncio.Lock()
        self._digest = ""
        self._failed = False
        self._calculators: Calculators | None = None
        """Found when the first graph is read, or before it while there is nothing else to do."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._spare = spare
        self._loads = asyncio.Semaphore(max(2, (os.cpu_count() or 2) // 2))

    def find(self, name: str) -> Servable | None:
        """Return the servable of a name or an alias."""
        if servable := self.servables.get(name):
            return servable
        return next((each for each in self.servables.values() if name in each.aliases()), None)

    @property
    def busy(self) -> bool:
        """Whether a request runs or a model loads."""
        return any(each.in_use or each.loading for each in self.servables.values())

    async def prepare(self) -> None:
        """Import what the first graph will need."""
        if self._calculators is None:
            self._calculators = await asyncio.to_thread(find_calculators)

    async def settle(self, servable: Servable) -> None:
        """Give a servable that is being reloaded a moment."""
        if servable.state in (State.RELOADING, State.BEGIN):
            try:
                async with asyncio.timeout(RELOADING_PATIENCE):
                    while servable.state in (State.RELOADING, State.BEGIN):
                        await servable.changed.wait()
            except TimeoutError:
                return

    def status(self) -> dict[str, Any]:
        """Return what ``GET /v1/config`` answers."""
        answer: dict[str, Any] = {}
        for name, servable in self.servables.items():
            state, code = EXTERNAL[servable.state]
            told = {"error_code": code, "error_message": servable.cause or code}
            answer[name] = {"model_version_status": [{"version": "1", "state": state, "status": told}]}
        return answer

    # -- the configuration -----------------------------------------------------------------------------------------

    async def first(self, settings: Settings) -> Config:
        """Return the configuration to start with.

        :raises ConfigError: the file cannot be used.
        """
        if self._path is not None:
            return await self._read(self._path)
        return single(settings)

    async def reload(self) -> None:
        """Bring what is served in line with the file, if its bytes have changed or the last pass failed.

        :raises ConfigError: the file cannot be used, or an entry did not load.
        """
        async with self._lock:
            if self._path is None:
                return
            config = await self._read(self._path)
            if config.digest == self._digest and not self._failed:
                return
            await self.apply(config)

    async def watch(self, period: float) -> None:
        """Look after the file, for ever."""
        log.manager.info("Started model manager thread")
        marks: tuple[int, ...] | None = None
        while self._path is not None:
            await asyncio.sleep(period)
            marks, before = marks_of(self._path), marks
            same = marks is not None and marks == before
            if same or await asyncio.to_thread(digest_of, self._path) == self._digest:
                continue
            try:
                async with self._lock:
                    await self.apply(await self._read(self._path))
            except ConfigError as error:
                log.manager.error("Reloading config file failed: %s", error)

    async def _read(self, path: Path) -> Config:
        for attempt in range(PARSE_TRIES):
            try:
                return await asyncio.to_thread(read_config, path)
            except ConfigError as error:
                if attempt == PARSE_TRIES - 1:
                    self._digest = await asyncio.to_thread(digest_of, path)
                    self._failed = True
                    log.manager.error("%s", error)
                    raise
                await asyncio.sleep(PARSE_PAUSE)
        raise AssertionError

    async def apply(self, config: Config) -> None:
        """Load, reload and retire; every entry is tried, whatever happens to the others.

        :raises ConfigError: something did not load.
        """
        listed = {entry.name for entry in config.entries}
        gone = [each for each in self.servables.values() if each.name not in listed and each.state is not State.RETIRED]
        different = [entry for entry in config.entries if self._differs(entry)]
        if different:
            await self.prepare()
        await asyncio.gather(*map(self._retire, gone), *map(self._bring, different))
        self._digest = config.digest
        states = [self.servables[entry.name].state for entry in different]
        self._failed = bool(config.duplicate) or State.FAILED in states
        if config.duplicate:
            log.manager.error("Model %s is configured twice", config.duplicate)
        if self._failed:
            raise ConfigError("Reloading config file failed. Check server logs for more info.", 500)

    def _differs(self, entry: Entry) -> bool:
        known = self.servables.get(entry.name)
        return (
            known is None
            or known.state is State.RETIRED
            or known.entry != entry
            or known.digest != digest_of(Path(entry.graph_path))
        )

    async def _bring(self, entry: Entry) -> None:
        servable = self.servables.get(entry.name)
        if servable is None:
            servable = self.servables[entry.name] = Servable(entry)
        else:
            servable.entry = entry
            servable.move(State.RELOADING, "ReloadEvent")
            await servable.drained()
        await self._load(servable)

    async def _load(self, servable: Servable) -> None:
        entry = servable.entry
        await self._close(servable)
        servable.digest = digest_of(Path(entry.graph_path))
        try:
            if entry.problem:
                raise GraphInvalid(entry.problem)
            graph = await asyncio.to_thread(graph_of, entry, self._calculators)
            self._check_names(servable, graph)
            servable.spec = {
                "worker": graph.calculator.worker,
                "options": graph.options,
                "base_path": entry.base_path,
                "cache_dir": cache_folder(self._cache_dir, entry.name),
            }
            weights = await asyncio.to_thread(weights_of, entry.base_path, graph.options)
            worker = await self._spare.take()
            worker.memory_limit = loading_limit(weights, graph.options, self._memory)
            servable.loading = worker
            template = ChatTemplate(entry.name)
            try:
                if CHAT in graph.calculator.endpoints:
                    await template.prepare()
                async with self._loads:  # its imports go on while others load
                    await worker.load(entry.name, servable.spec)
                    servable.worker = worker
                    await self._load_template(servable, worker, template)
            except BaseException:
                await asyncio.gather(worker.close(), template.close())
                raise
            finally:
                servable.loading = None
        except Exception as error:  # noqa: BLE001 - an entry fails alone, whatever is wrong with it
            expected = isinstance(error, (GraphInvalid, LoadFailed, OSError))
            log.manager.error("Mediapipe: %s failed to load: %s", entry.name, error, exc_info=not expected)
            servable.move(State.FAILED, "ValidationFailedEvent", str(error))
            return
        worker.memory_limit = memory_limit(memory_of(worker.pid), graph.options, self._memory)
        worker.on_exit = lambda cause: self._crashed(servable, cause)
        servable.graph = graph
        for alias in servable.aliases():
            log.manager.info("Registered LoRA alias: %s -> %s", alias, entry.name)
        servable.move(State.AVAILABLE, "ValidationPassedEvent")

    async def undrafted(self, servable: Servable) -> Worker:
        """Return a worker of the model without its drafts, which is started at the first request for it.

        :raises LoadFailed: it cannot load the model, or was ended meanwhile.
        """
        async with servable.starting:
            if servable.undrafted is None:
                options = without_drafts(servable.spec["options"])
                weights = await asyncio.to_thread(weights_of, servable.entry.base_path, options)
                worker = servable.undrafted = await self._spare.take()
                worker.memory_limit = loading_limit(weights, options, self._memory)
                try:
                    async with self._loads:
                        await worker.load(f"{servable.name}, without drafts", servable.spec | {"options": options})
                except BaseException:
                    servable.undrafted = None
                    await worker.close()
                    raise
                worker.memory_limit = memory_limit(memory_of(worker.pid), options, self._memory)
                worker.on_exit = lambda cause: servable.forget(worker, cause)
            return servable.undrafted

    async def _load_template(self, servable: Servable, worker: Worker, template: ChatTemplate) -> None:
        if (found := worker.info.get("chat_template")) is None:
            await template.close()
            return
        servable.template = template
        await template.load(found, calls_tools=bool(worker.info["tool_parser"]))
        if not worker.alive:
            message = "The worker ended while its chat template was loaded."
            raise LoadFailed(message)

    def _check_names(self, servable: Servable, graph: Graph) -> None:
        aliases = Servable(servable.entry, graph=graph).aliases()
        taken = {
            name for each in self.servables.values() if each is not servable for name in (each.name, *each.aliases())
        }
        if clash := (taken | {servable.name}) & set(aliases):
            message = f"LoRA alias {min(clash)} is the name of another servable"
            raise GraphInvalid(message)

    async def _retire(self, servable: Servable) -> None:
        servable.move(State.RETIRED, "RetireEvent")
        await servable.drained()
        await self._close(servable)

    async def unload_idle(self, seconds: float) -> None:
        """Unload models that nobody has used for so long; they stay AVAILABLE, and the next request loads them.

        Models of the group ``permanent`` stay loaded.
        """
        for each in self.servables.values():
            idle = each.worker is not None and each.state is State.AVAILABLE and not each.in_use
            if idle and each.entry.group != "permanent" and time.monotonic() - each.used >= seconds:
                log.manager.info("Mediapipe: %s is unloaded after %d s without a request", each.name, seconds)
                await self._close(each)

    async def wake(self, servable: Servable) -> None:
        """Load a model that was unloaded because it was idle; others that ask for it meanwhile wait with this one."""
        if servable.worker is None and servable.state is State.AVAILABLE:
            async with self._lock:
                if servable.worker is None and servable.state is State.AVAILABLE:
                    await self._load(servable)

    async def _close(self, servable: Servable) -> None:
        ended = [each for each in (servable.template, servable.worker, servable.undrafted) if each is not None]
        servable.template = servable.worker = servable.undrafted = None
        await asyncio.gather(*(each.close() for each in ended))

    def _crashed(self, servable: Servable, cause: str) -> None:
        log.manager.error("Mediapipe: %s crashed: %s", servable.name, cause)
        if time.monotonic() - servable.available_since > STABLE:
            servable.pause = 0.0
        servable.move(State.FAILED, "ValidationFailedEvent", cause)
        task = asyncio.create_task(self._revive(servable))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _revive(self, servable: Servable) -> None:
        tried = servable.digest
        while servable.state is State.FAILED and servable.digest == tried:
            pause = servable.pause
            servable.pause = min(max(2 * pause, PAUSES[0]), PAUSES[1])
            await asyncio.sleep(pause)
            async with self._lock:
                if servable.state is State.FAILED and servable.digest == tried:
                    servable.move(State.RELOADING, "ReloadEvent")
                    await self._load(servable)

    async def close(self) -> None:
        """Unload everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(self._close(each) for each in self.servables.values()))
