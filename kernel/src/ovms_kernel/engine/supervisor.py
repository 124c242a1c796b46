"""The engine process as a state machine with one writer.

One task, :meth:`Supervisor._run`, owns the process and the state. Everybody else says what is wanted and waits for the
state to change, so that a start during a stop, two stops, or a crash during a start need no case of their own.

    stopped ──start──▶ starting ──answers──▶ ready ──exit──▶ starting … ──too often──▶ failed
       ▲                   │                   │                                          │
       └──────stop─────────┴───────stop────────┴───────────────────stop───────────────────┘

A second plugin on the same data folder attaches to the first one's engine, and takes over when that is gone.
"""

from __future__ import annotations

import logging
import random
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Self

import anyio.to_thread

from ovms_kernel.engine import launch
from ovms_kernel.engine.engine_log import EngineLog
from ovms_kernel.engine.exit_status import exit_of
from ovms_kernel.engine.group import connect_to
from ovms_kernel.engine.ownership import take_ownership
from ovms_kernel.engine.probe import await_answers, no_probe
from ovms_kernel.errors import EngineFailed, OvmsError, TimedOut, Unavailable
from ovms_kernel.files import disk_error
from ovms_kernel.values import EngineInfo

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ovms_kernel.drivers import Platform
    from ovms_kernel.engine.client import EngineClient
    from ovms_kernel.engine.process import EngineProcess
    from ovms_kernel.events import Events
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import EngineExit, Installation, LaunchPlan

log = logging.getLogger(__name__)

ATTACH_POLL = 0.1
"""Seconds between two looks for the engine that another plugin starts."""
ATTACHED_POLL = 1.0
"""Seconds between two looks at an engine that another plugin runs."""
WATCH_PERIOD = 10.0
"""Seconds between two questions to an engine that is ready."""
WATCH_MISSES = 3
"""Questions in a row without an answer after which an engine counts as hung."""
BACK_OFF = (0.1, 0.5, 2.0, 5.0, 15.0, 30.0)
"""Seconds before each restart in a row."""
GOOD_RUN = 60.0
"""Seconds of uptime after which earlier failures are forgotten."""


class State(StrEnum):
    """Where the engine is."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class Supervisor:
    """Keeps one engine as it is wanted, between entering and leaving it as an async context manager."""

    def __init__(
        self, settings: Settings, events: Events, probe: Callable[[EngineClient], Awaitable[bool]] = no_probe
    ) -> None:
        self._settings = settings
        self._events = events
        self.state = State.STOPPED
        self.info: EngineInfo | None = None
        """The engine, while it is ready."""
        self.last_exit: EngineExit | None = None
        self.probe = probe
        """Tells whether an engine that answers also works; asked now and then."""
        self._wanted: tuple[Platform, Installation] | None = None
        self._failure: OvmsError | None = None
        self._restarts = settings.restart_limit
        self.log = EngineLog(settings.logs_dir / "engine.log")
        self._process: EngineProcess | None = None
        self._changed = anyio.Event()
        self._closing = False

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._work, name="engine supervisor")
        return self

    async def __aexit__(self, *exception: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.stop("the plugin ends")
        self._closing = True
        self._notify()
        await self._tasks.__aexit__(None, None, None)

    # -- what others ask -------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether an engine is wanted; it may not be ready, or have failed."""
        return self._wanted is not None

    @property
    def owned_pid(self) -> int | None:
        """The engine's process, if this process started it."""
        return self._process.pid if self._process is not None else None

    async def start(self, platform: Platform, installation: Installation, *, trial: bool = False) -> None:
        """Want an engine; return at once. One that failed is tried anew, one that runs is left alone.

        :param trial: give up at the first failure, unless the engine has been ready.
        :raises Unavailable: this process ends, so that nobody would start it.
        """
        if self._closing:
            raise Unavailable("The plugin is stopping; start it again.")
        if self._wanted is None or self.state is State.FAILED:
            self._failure = None
            self._restarts = 0 if trial else self._settings.restart_limit
            self._wanted = (platform, installation)
            if self.state in (State.STOPPED, State.FAILED):
                self._set(State.STARTING)
            self._notify()

    async def ensure_ready(self, timeout: float | None = None) -> EngineInfo:
        """Return the engine once it is ready.

        :param timeout: seconds; ``None`` means the time that an engine has to start, and to restart.
        :raises Unavailable: no engine is wanted, or it failed for good; the sentence has the cause.
        :raises TimedOut: it is still starting.
        """
        if self.info is not None and not (self._process and self._process.has_ended()):
            return self.info
        limit = self._settings.start_timeout + BACK_OFF[0] if timeout is None else timeout
        try:
            with anyio.fail_after(limit):
                while True:
                    # A request must not go to an engine that has ended a moment ago.
                    if self.info is not None and not (self._process and self._process.has_ended()):
                        return self.info
                    if self._failure is not None:
                        raise self._failure.again()
                    if self._wanted is None:
                        raise Unavailable(f"The engine is {self.describe()}.")
                    await self._changed.wait()
        except TimeoutError as error:
            raise TimedOut(f"The engine is {self.describe()}: not ready within {limit:g} s; try again.") from error

    async def stop(self, reason: str) -> None:
        """Want no engine, and return when there is none, or when somebody wants one again."""
        if self._wanted is not None:
            log.info("The engine is stopped: %s", reason)
            self._wanted = None
            self._notify()
        while self.state is not State.STOPPED and self._wanted is None:
            await self._changed.wait()

    def describe(self) -> str:
        """Return the state in words, as the end of a sentence."""
        if self._failure is not None:
            return f"failed ({self._failure.message})"
        if self.state is State.STARTING and self.last_exit and not self.last_exit.expected:
            return f"being started again after it ended: {self.last_exit.cause}"
        return {State.STARTING: "starting", State.STOPPING: "stopping"}.get(self.state, str(self.state))

    # -- the one writer --------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        try:
            await self._run()
        finally:  # cancelled with everything else: what waits for the engine's end must not wait for ever
            self._closing, self._wanted = True, None
            self._set(State.STOPPED)

    async def _run(self) -> None:
        attempt = 0
        while not self._closing:
            if self._wanted is None or self.state is State.FAILED:
                attempt = 0
                if self._wanted is None:
                    self._failure = None
                    self._set(State.STOPPED)
                await self._changed.wait()
                continue
            self._set(State.STARTING)
            began = time.monotonic()
            try:
                await self._live_once(*self._wanted)
            except Exception as error:  # noqa: BLE001 - logged there
                # What an extension vetoes or the system forbids does not get better by itself.
                self._fail(_failure_of(error))
                continue
            if not self.started:
                continue
            attempt = 1 if time.monotonic() - began > GOOD_RUN else attempt + 1
            if attempt > self._restarts:
                self._fail(_given_up(attempt, self.last_exit))
                continue
            pause = BACK_OFF[min(attempt, len(BACK_OFF)) - 1]
            await self._wait_until(lambda: self._wanted is None or self._closing, pause * random.uniform(0.8, 1.2))  # noqa: S311

    async def _live_once(self, platform: Platform, installation: Installation) -> None:
        """Run one engine from its start to its end, or be the guest of another plugin's."""
        self._ports = launch.choose_ports(self._settings)
        plan = await launch.amended(platform.launch(installation, self._ports), self._events)
        if not plan.argv:
            await self._attend_remote(plan, installation)
        elif lock := await take_ownership(self._settings):
            try:
                await self._own(plan, installation)
            finally:
                lock.release()
        else:
            await self._attach()

    async def _own(self, plan: LaunchPlan, installation: Installation) -> None:
        settings, ports = self._settings, self._ports
        await anyio.to_thread.run_sync(self.log.open)
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
        endpoint = launch.endpoint_of(ports, launch.write_key(settings))
        began = time.monotonic()
        process = await launch.start(plan, launch.engine_arguments(settings, ports), self.log.path)
        hung, ended = False, list[int]()
        self._process = process
        try:
            running = launch.started_here(process.pid, installation.version, ports)
            launch.note_running(settings, running)
            log.info("Engine %s runs as process %d on port %d", running.version, running.pid, running.rest)
            async with anyio.create_task_group() as group:

                async def watch_exit() -> None:
                    ended.append(await process.wait())
                    group.cancel_scope.cancel()

                group.start_soon(watch_exit)
                info = EngineInfo(installation.version, endpoint, process.pid)
                # Two plugins may have chosen one port: what answers there must be our own process.
                hung = await self._attend(info, lambda: launch.listens(process.pid, ports.rest))
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                expected = not ended and not hung
                self._set(State.STOPPING if expected else State.STARTING)
                returncode = ended[0] if ended else await launch.end(process, 0 if hung else settings.stop_timeout)
                self._process = None
                await anyio.to_thread.run_sync(process.close)
                launch.forget_running(settings)
        uptime = time.monotonic() - began
        self.last_exit = exit_of(returncode, self.log.last_errors(), uptime, expected=expected, hung=hung)
        if not expected:
            log.error("The engine ended after %.1f s: %s", uptime, self.last_exit.cause)
        await self._events.tell("ovms_engine_exited", exit=self.last_exit, will_restart=self._wanted is not None)

    async def _attend(self, info: EngineInfo, is_it: Callable[[], bool] = lambda: True) -> bool:
        """Wait until an engine is ready, then as long as it is wanted; return whether it hangs."""
        client = connect_to(info.endpoint)
        try:
            if not await self._while_wanted(lambda: await_answers(client, is_it, self._settings.start_timeout)):
                return self._wanted is not None
            self.info, self._failure = info, None
            self._restarts = self._settings.restart_limit
            self._set(State.READY)
            log.info("The engine is ready at %s", info.endpoint.rest)
            await self._events.tell("ovms_engine_ready", engine=info)
            misses = 0

            async def works() -> bool:
                return await client.live() and await self.probe(client)

            while self._wanted is not None:
                await self._wait_until(lambda: self._wanted is None, WATCH_PERIOD)
                await anyio.to_thread.run_sync(self.log.cut)
                misses = 0 if await self._while_wanted(works) else misses + 1
                if misses >= WATCH_MISSES:
                    return True
            return False
        finally:
            self.info = None
            with anyio.CancelScope(shield=True):
                await client.aclose()

    async def _while_wanted(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """Do what tells whether the engine is well; a stop does not wait for the answer, which is false then."""
        result = False
        async with anyio.create_task_group() as group:

            async def run() -> None:
                nonlocal result
                result = await work()
                group.cancel_scope.cancel()

            group.start_soon(run)
            while self._wanted is not None:
                await self._changed.wait()
            group.cancel_scope.cancel()
        return result

    # -- engines that others run -----------------------------------------------------------------------------------

    async def _attach(self) -> None:
        """Use the engine of another plugin while that is there; return when it is gone."""
        deadline = time.monotonic() + self._settings.start_timeout
        while self._wanted is not None:
            running = launch.read_running(self._settings)
            if running and (endpoint := launch.noted_endpoint(self._settings, running)):
                await self._attend_foreign(EngineInfo(running.version, endpoint, running.pid), running)
                return
            if time.monotonic() > deadline:
                holder = f"process {running.owner}" if running else "another process"
                raise Unavailable(f"The data folder is in use by {holder}, whose engine does not run; end that first.")
            await self._wait_until(lambda: self._wanted is None, ATTACH_POLL)
            if running is None and (lock := await take_ownership(self._settings)):
                lock.release()  # the owner has gone without a word
                return

    async def _attend_foreign(self, info: EngineInfo, running: launch.RunningEngine) -> None:
        log.info("Using the engine of process %d", running.owner)
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while launch.is_alive(running):  # noqa: ASYNC110 - another process's life is no event of this process
                    await anyio.sleep(ATTACHED_POLL)
                group.cancel_scope.cancel()

            group.start_soon(watch)
            await self._attend(info)
            group.cancel_scope.cancel()

    async def _attend_remote(self, plan: LaunchPlan, installation: Installation) -> None:
        if plan.endpoint is None:
            raise EngineFailed("The platform neither starts an engine nor names one that runs; check its settings.")
        while self._wanted is not None:
            if await self._attend(EngineInfo(installation.version, plan.endpoint, None)) and self.started:
                # It is told at once, and not given up: networks come back.
                self._failure = Unavailable(
                    f"The engine at {plan.endpoint.rest} does not answer; ask its administrator."
                )
                self._set(State.STARTING)

    # -- telling everybody -----------------------------------------------------------------------------------------

    def _fail(self, error: OvmsError) -> None:
        log.error("%s", error.message)
        self._failure = error
        self._set(State.FAILED)

    def _set(self, state: State) -> None:
        if state is not self.state:
            log.debug("Engine: %s → %s", self.state, state)
            self.state = state
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _wait_until(self, condition: Callable[[], bool], limit: float) -> None:
        with anyio.move_on_after(limit):
            while not condition():
                await self._changed.wait()


def _failure_of(error: Exception) -> OvmsError:
    """Return the sentence for what kept an engine from being started."""
    if isinstance(error, OvmsError):
        return error
    if isinstance(error, OSError):
        return disk_error("Starting the engine", error)
    log.error("The engine could not be supervised", exc_info=error)
    return EngineFailed(f"The engine could not be started ({type(error).__name__}); see the log.")


def _given_up(attempts: int, last: EngineExit | None) -> Unavailable:
    """Return the sentence for an engine that ended too often."""
    often = f"{attempts} times in a row" if attempts > 1 else "at its first start"
    return Unavailable(f"The engine ended {often} and is given up: {last.cause if last else 'unknown'}.")
