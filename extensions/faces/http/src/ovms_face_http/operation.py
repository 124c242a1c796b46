"""Engine and face together, as ``ovms-plugin serve`` runs them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import anyio

from ovms_face_http import running
from ovms_kernel.api.faces import TimedOut, collect_rarely, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovms_face_http.config import HttpSettings
    from ovms_kernel.api.faces import KernelApi, Progress, RunningServer
    from ovms_kernel.api.observers import EngineExit, EngineInfo, LoadedModel, LocalModel

STOPPED = "The server is stopped; models and settings are kept."
READY = "is ready at"
"""What the line about an engine that answers has in it."""
BY_KEY = "; Ctrl-C stops it"
"""How a server in a terminal is stopped."""
LOOK = 1.0
"""Seconds between two looks at whether the engine was given up."""


class Teller:
    """Listens to the kernel and says a line for what happens to the engine and its models."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    @hookimpl
    def ovms_engine_ready(self, engine: EngineInfo) -> None:
        """Say that it answers."""
        self._say(f"Engine {engine.version} {READY} {engine.endpoint.rest}.")

    @hookimpl
    def ovms_engine_exited(self, exit: EngineExit, will_restart: bool) -> None:  # noqa: A002, FBT001 - the event's words
        """Say why, and what happens next."""
        if not exit.expected:
            again = " It is started again." if will_restart else ""
            self._say(f"The engine ended: {exit.cause.rstrip('.')}.{again}")

    @hookimpl
    def ovms_model_ready(self, model: LoadedModel) -> None:
        """Say how long it took."""
        self._say(f"{model.model.id} is loaded, in {model.seconds:.1f} s.")

    @hookimpl
    def ovms_load_failed(self, model: LocalModel, cause: str) -> None:
        """Say why."""
        self._say(f"{model.id} is not loaded: {cause}")

    @hookimpl
    def ovms_unloaded(self, model: LocalModel, reason: str) -> None:
        """Say why."""
        self._say(f"{model.id} is unloaded ({reason}).")


async def operate(kernel: KernelApi, settings: HttpSettings, say: Callable[[str], None]) -> None:
    """Run the engine and serve until cancelled; raises when the engine is given up."""
    kernel.register("terminal", Teller(say))
    composed: asyncio.Future[KernelApi] = asyncio.get_running_loop().create_future()
    composed.set_result(kernel)
    serving = anyio.Event()
    told: list[RunningServer] = []

    def ready(where: RunningServer) -> None:
        told.append(where)
        serving.set()

    async with anyio.create_task_group() as group:
        group.start_soon(running.serve, settings, composed, ready)
        await serving.wait()  # so that nothing is started for an address that is in use
        if not await kernel.check_engine():
            say("No engine is installed; installing it first.")
            installed = await kernel.install_engine(report=_steps(say))
            say(f"Engine {installed.version} ({installed.platform}) is installed.")
        await kernel.start_engine()
        await _introduce(kernel, told[0], say)
        collect_rarely()
        while True:
            with suppress(TimedOut):  # it is still starting, which the kernel tells
                await kernel.engine()
            await anyio.sleep(LOOK)


def _steps(say: Callable[[str], None]) -> Callable[[Progress], None]:
    """Return what says how far an install is, at each tenth."""
    told = ("", 0)

    def report(now: Progress) -> None:
        nonlocal told
        tenth = 10 * now.completed // now.total if now.total else 0
        if (now.status, tenth) != told:
            told = now.status, tenth
            say(f"  {now.status}{f' {10 * tenth} %' if now.total else ''}")

    return report


async def _introduce(kernel: KernelApi, where: RunningServer, say: Callable[[str], None]) -> None:
    """Say where programs find what."""
    models = await kernel.list_models()
    loaded = {each.id for each in await kernel.running_models()}
    say(f"Serving OpenAI's API at {where.url}/v1{BY_KEY}.")
    say(f"The key is in {where.key_file}." if where.key_file else "No key is needed.")
    if models:
        count = "1 model" if len(models) == 1 else f"{len(models)} models"
        say(f"{count}, {len(loaded)} loaded; models load on their first request:")
        for each in models:
            say(f"  {each.id} ({each.model_type}{', loaded' if each.id in loaded else ''})")
    else:
        say("No models are installed; `ovms-plugin pull OWNER/NAME` downloads one.")
    say("`ovms-plugin connect` shows how to use them from other programs.")


def run() -> int:
    """Serve until a signal ends it, with the settings of the data folder and the environment; return the exit code."""
    from ovms_face_http.config import read
    from ovms_kernel.api.commands import Session, run_command
    from ovms_kernel.api.commands import say as say_it

    async def work(session: Session) -> None:
        session.kept = STOPPED
        async with session.kernel() as kernel:
            await operate(cast("KernelApi", kernel), read(session.settings.section("faces", "http")), say_it)

    return run_command(work, fast_loop=True)
