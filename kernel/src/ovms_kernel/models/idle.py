"""Unloading models that nobody uses, if a setting asks for it; AOG does its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING

from ovms_kernel.errors import OvmsError
from ovms_kernel.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovms_kernel.models.serving import Serving
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import Call, Outcome

log = logging.getLogger(__name__)

YES = ("true", "1", "yes", "on")


def idle_limit(settings: Settings, model_id: str) -> float:
    """Return after how many idle seconds a model is unloaded; 0 = never."""
    section = settings.section("models", model_id)
    if model_id in settings.pinned or str(section.get("pinned", "")).lower() in YES:
        return 0.0
    try:
        return max(0.0, float(section.get("idle_unload", settings.idle_unload)))
    except (TypeError, ValueError):
        log.warning("idle_unload of model %s is not a number of seconds, so it is never unloaded", model_id)
        return 0.0


def is_wanted(settings: Settings) -> bool:
    """Tell whether any setting asks for unloading idle models."""
    sections = settings.sections.get("models", {})
    return settings.idle_unload > 0 or any("idle_unload" in section for section in sections.values())


class IdleWatch:
    """Listens to requests and unloads what has been idle for too long; a model at work is left alone."""

    def __init__(self, settings: Settings, serving: Serving) -> None:
        self._settings = settings
        self._serving = serving
        self._active: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None

    @hookimpl
    async def ovms_kernel_started(self, extensions: Sequence[object]) -> None:  # noqa: ARG002 - the event's own word
        """Begin to watch."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    @hookimpl
    async def ovms_kernel_stopping(self, reason: str) -> None:  # noqa: ARG002 - the event's own word
        """Watch no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @hookimpl
    async def ovms_before_request(self, call: Call) -> None:
        """Count a request that begins; one that names no model holds all of them."""
        self._active[call.model] += 1

    @hookimpl
    async def ovms_request_finished(self, call: Call, outcome: Outcome) -> None:  # noqa: ARG002 - the event's own word
        """Count a request that ends; its model is idle from now on."""
        self._active[call.model] -= 1
        if call.model in self._serving.last_used:
            self._serving.last_used[call.model] = time.monotonic()

    async def unload_idle(self) -> None:
        """Unload what has been idle for too long, once."""
        for model_id in list(self._serving.served):
            limit = idle_limit(self._settings, model_id)
            idle = time.monotonic() - self._serving.last_used.get(model_id, 0.0)
            if limit and idle > limit and not self._active[model_id] and not self._active[""]:
                try:
                    await self._serving.unload(model_id, f"idle for {idle:.0f} s")
                except OvmsError as error:
                    log.warning("Model %s is idle but could not be unloaded: %s", model_id, error.message)

    async def _watch(self) -> None:
        while True:
            limits = [limit for each in self._serving.served if (limit := idle_limit(self._settings, each))]
            await asyncio.sleep(min([10.0, *(limit / 4 for limit in limits)]))
            await self.unload_idle()
