"""What happens to loaded models as time passes: idle ones are unloaded, and other processes are told of all."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ovms_kernel.errors import OvmsError
from ovms_kernel.models import report
from ovms_kernel.models.model_record import RECORD
from ovms_kernel.models.plan import State, unload_at

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from ovms_kernel.models.loader import Loader
    from ovms_kernel.models.plan import Resident
    from ovms_kernel.models.report import ResidentModel
    from ovms_kernel.models.turns import Turns
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import LocalModel

log = logging.getLogger(__name__)


async def preload(models: Iterable[str], load: Callable[[str], Awaitable[object]]) -> None:
    """Load models, one after another; one that does not load keeps the others from nothing."""
    for model_id in models:
        try:
            await load(model_id)
        except OvmsError as error:
            log.warning("Model %s cannot be preloaded: %s", model_id, error.message)


async def unload_idle_models(loader: Loader, turns: Turns) -> None:
    """Unload each model when it was idle for as long as its limit says; for ever."""
    while True:
        now, wake = time.monotonic(), math.inf
        for each in loader.loaded():
            limit = loader.idle_unload(each.id)
            due = unload_at(each, limit)
            if each.users:
                # The end of a request is told only where a limit is its own.
                wake = min(wake, math.inf if each.keep is not None else now + (limit or math.inf))
            elif due <= now:
                await loader.read_records()  # another process may have pinned it
                await _unload(each, loader, turns)
            else:
                wake = min(wake, due)
        await turns.changed(wake - time.monotonic())


async def _unload(resident: Resident, loader: Loader, turns: Turns) -> None:
    gone: list[LocalModel] = []
    try:
        async with turns.change():
            # It may have been used while something else was loaded.
            if not resident.users and unload_at(resident, loader.idle_unload(resident.id)) <= time.monotonic():
                gone = await loader.unload(resident.id)
                # What a request said of its time is done with; else after a 0 each further request would load it anew.
                resident.keep = None
    except OvmsError as error:
        log.warning("Model %s is idle and cannot be unloaded: %s", resident.id, error.message)
    await loader.tell_unloaded(gone, f"idle for {time.monotonic() - resident.last_used:.0f} s")


async def unload_outdated(resident: Resident | None, loader: Loader, turns: Turns) -> None:
    """Unload a profile whose settings have changed since it was loaded; its next request loads it anew."""
    if resident is None or not loader.is_outdated(resident) or resident.state is not State.LOADED:
        return
    gone: list[LocalModel] = []
    async with turns.change():
        if loader.is_outdated(resident) and resident.state is State.LOADED:  # nobody else did it meanwhile
            gone = await loader.unload(resident.id)
    await loader.tell_unloaded(gone, "its profile was changed")


async def report_models(loader: Loader, turns: Turns, settings: Settings) -> None:
    """Hear and tell other processes, if this one runs the engine: what people pinned, and what is used; for ever."""
    before: list[ResidentModel] = []
    records: list[int] = []
    known = loader.live()
    while True:
        await anyio.sleep(report.PERIOD)
        if not loader.engine_is_ready():
            continue
        try:
            await loader.synchronise()
        except OvmsError as error:
            log.debug("What the engine serves is not known: %s", error.message)
        if loader.live() is not known:
            await _unload_outdated(loader, turns)
        if (now := [_written(each) for each in loader.loaded()]) != records or loader.live() is not known:
            records, known = now, loader.live()
            await loader.read_records()
            turns.notify()
        if (shown := loader.shown()) != before and loader.owns_engine():
            before = shown
            await anyio.to_thread.run_sync(report.write, settings, shown)


async def _unload_outdated(loader: Loader, turns: Turns) -> None:
    for each in filter(loader.is_outdated, loader.loaded()):
        try:
            await unload_outdated(each, loader, turns)
        except OvmsError as error:
            log.warning("The profile %s was changed and cannot be unloaded: %s", each.id, error.message)


def _written(resident: Resident) -> int:
    """Return when a model's record was written."""
    try:
        return (resident.model.directory / RECORD).stat().st_mtime_ns if resident.model else 0
    except OSError:
        return 0
