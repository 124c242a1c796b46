"""The front process from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import TYPE_CHECKING

from ovms_embedded import log
from ovms_embedded.cli import Settings, version_lines
from ovms_embedded.workers import Spare

if TYPE_CHECKING:
    from collections.abc import Callable

OPEN_FILES = 1 << 16


def serve(settings: Settings) -> int:
    """Run the server; returns the exit code."""
    try:
        log.configure(settings.log_level, settings.log_path)
    except OSError as error:
        sys.stderr.write(f"log_path {settings.log_path} cannot be written: {error}\n")
        return 1
    _allow_many_connections()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_run(settings))
    except KeyboardInterrupt:
        return 0


def _allow_many_connections() -> None:
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # macOS names a limit that it does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, OPEN_FILES)), hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _run(settings: Settings) -> int:
    stopped = asyncio.Event()
    _on_signals(stopped.set)
    spare = Spare(wanted=settings.spare_worker)
    try:
        await spare.refill()
        _introduce(settings)
        from ovms_embedded.modules import run  # takes as long as the worker takes for its own imports

        return await run(settings, spare, stopped)
    finally:
        await spare.close()


def _introduce(settings: Settings) -> None:
    for line in version_lines()[:3]:
        log.serving.info("%s", line)
    if not settings.api_key:
        log.serving.info(
            "API key not provided via --api_key_file or API_KEY environment variable. Authentication disabled."
        )


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for name in ("SIGINT", "SIGTERM"):
        try:
            loop.add_signal_handler(getattr(signal, name), stop)
        except NotImplementedError:  # Windows
            signal.signal(getattr(signal, name), lambda *_: loop.call_soon_threadsafe(stop))
