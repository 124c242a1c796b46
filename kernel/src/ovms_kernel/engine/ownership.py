"""One plugin at a time owns the engine of a data folder; the lock is the operating system's, so death gives it up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from ovms_kernel.engine import launch
from ovms_kernel.engine.process import end_stale

if TYPE_CHECKING:
    import filelock

    from ovms_kernel.settings import Settings

log = logging.getLogger(__name__)

POLL = 0.01
"""Seconds between two looks at an engine that is being ended."""


async def take_ownership(settings: Settings) -> filelock.BaseFileLock | None:
    """Take the lock of the data folder, ending what a dead owner left running; ``None`` if a living one holds it.

    :raises Unavailable: the folder cannot be written.
    """
    import filelock

    from ovms_kernel.errors import Unavailable

    lock = filelock.FileLock(settings.run_dir / "engine.lock", timeout=0)
    try:
        settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire()
    except filelock.Timeout:
        return None
    except OSError as error:
        raise Unavailable(f"{settings.run_dir} cannot be written ({error.strerror}); fix that and retry.") from error
    try:
        stale = launch.read_running(settings)
        if stale and launch.is_alive(stale):
            log.warning("Engine process %d of plugin %d, which is gone, is ended", stale.pid, stale.owner)
            end_stale(stale.pid)
            while launch.is_alive(stale):  # noqa: ASYNC110 - another process's life is no event of this process
                await anyio.sleep(POLL)
        launch.forget_running(settings)
    except BaseException:
        lock.release()
        raise
    return lock
