"""To another engine version and, if that does not come up healthy, back.

The new version is installed beside the old one and started without being the active one. Only when it answers and
serves every model that the old one served does the pointer change; killed before that, the old one is in use.
"""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING

import anyio

from ovms_kernel.engine.launch import is_alive, read_running
from ovms_kernel.errors import EngineFailed, OvmsError, PreconditionFailed, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovms_kernel.drivers import Platform
    from ovms_kernel.kernel import Kernel
    from ovms_kernel.values import Installation, Progress, Release

log = logging.getLogger(__name__)


async def upgrade(kernel: Kernel, version: str, report: Callable[[Progress], None]) -> Installation:
    """Install a version, change over to it with all loaded models, and return what is in use then.

    An engine that did not run does not run afterwards either, but the new one has.

    :param version: empty means the newest that is known to work, unless that has to be downloaded.
    :raises EngineFailed: the new version did not come up healthy; the old one is in use again.
    :raises PreconditionFailed: another process runs the engine.
    """
    active = kernel.control.installed()
    release = kernel.control.choice().platform.release(kernel.host, version)
    if release.version == active.version or (release.archive and not version):
        return active
    return await _change_to(kernel, release, report)


async def _change_to(kernel: Kernel, release: Release, report: Callable[[Progress], None]) -> Installation:
    running = read_running(kernel.settings)
    if running is not None and running.owner != os.getpid() and is_alive(running):
        raise PreconditionFailed(
            f"Process {running.owner} runs the engine of this data folder, so only it can change over to "
            f"{release.version}; end it and try again."
        )
    old = kernel.installations.active()
    choice = kernel.control.choice()
    platform = choice.platform
    new = await kernel.installations.install(choice.name, platform, release, report, activate=False)
    ran = kernel.supervisor.started
    models = [each.id for each in kernel.residency.loaded()]
    try:
        await kernel.stop_engine(f"the engine changes to version {new.version}")
        await _bring_up(kernel, platform, new, models)
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            cause = error.message if isinstance(error, OvmsError) else "it was interrupted"
            await _roll_back(kernel, platform, old if ran else None, models)
            if old is not None:
                await kernel.events.tell("ovms_rolled_back", installation=old, cause=cause)
        if isinstance(error, OvmsError):
            kept = f"version {old.version} is in use again" if old else "none is active"
            raise EngineFailed(f"Engine {new.version} did not come up healthy, so {kept}: {error.message}") from error
        raise
    await kernel.installations.activate(new)
    if not ran:
        await kernel.stop_engine("the new engine was only tried")
    return new


async def _bring_up(kernel: Kernel, platform: Platform, installation: Installation, models: list[str]) -> None:
    await kernel.init_environment()
    await kernel.supervisor.start(platform, installation, trial=True)
    # A trial ends by itself, one way or the other, and then tells why.
    info = await kernel.supervisor.ensure_ready(math.inf)
    if info.version != installation.version:
        raise Unavailable(f"Another process has started version {info.version} in the meantime; try again.")
    for model in models:
        await kernel.residency.load(model)


async def _roll_back(kernel: Kernel, platform: Platform, old: Installation | None, models: list[str]) -> None:
    await kernel.stop_engine("the new engine is not healthy")
    if old is None:
        return
    log.warning("Engine %s is put back", old.version)
    try:
        await kernel.supervisor.start(platform, old)
        await kernel.supervisor.ensure_ready()
        for model in models:
            await kernel.residency.load(model)
    except OvmsError as error:
        log.error("Engine %s did not come up either: %s", old.version, error.message)
