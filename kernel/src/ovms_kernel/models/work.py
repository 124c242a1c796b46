"""Work on files in threads: with progress, a way to stop it, and locks that hold between processes."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from ovms_kernel.errors import Cancelled, OvmsError, TimedOut
from ovms_kernel.values import Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

T = TypeVar("T")

TICK = 0.1
"""Seconds between two reports of progress."""
LOCK_TICK = 0.05


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn what the file system refuses into a sentence.

    :param what: what was being done, as the sentence begins.
    """
    try:
        yield
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        raise OvmsError(
            f"{what} failed because of the disk{where} ({error.strerror or type(error).__name__}); "
            "check its space and permissions."
        ) from error


class Meter:
    """Counts bytes in a thread; whoever reports reads it elsewhere."""

    def __init__(self, status: str, total: int, completed: int = 0) -> None:
        self.status, self.total, self.subject = status, total, ""
        self.completed = completed
        self._stop = threading.Event()

    def advance(self, count: int) -> None:
        """Count some bytes.

        :raises Cancelled: the work is to stop.
        """
        if self._stop.is_set():
            raise Cancelled("The work was withdrawn.")
        self.completed += count

    def stop(self) -> None:
        """Make the next ``advance`` raise."""
        self._stop.set()

    def progress(self) -> Progress:
        """Return what is to be reported now."""
        return Progress(self.status, min(self.completed, self.total), self.total, self.subject)


async def run_with_progress(work: Callable[[], T], meter: Meter, report: Callable[[Progress], None]) -> T:
    """Run blocking work in a thread and report its meter ten times a second.

    A cancel stops the work at its next ``meter.advance`` and is passed on only when the thread has ended.
    """
    result: list[T] = []
    errors: list[Exception] = []

    async def tick() -> None:
        try:
            while True:
                report(meter.progress())
                await anyio.sleep(TICK)
        finally:
            meter.stop()

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        try:
            result.append(await anyio.to_thread.run_sync(work))
        except Exception as error:  # noqa: BLE001 - raised below, outside of the group, as it is
            errors.append(error)
        group.cancel_scope.cancel()
    if errors:
        await anyio.lowlevel.checkpoint()  # a cancel from outside wins over the error that it caused
        raise errors[0]
    report(meter.progress())
    return result[0]


@asynccontextmanager
async def locked(
    path: Path, *, timeout: float | None = None, busy: str = "", waiting: Callable[[], None] | None = None
) -> AsyncIterator[None]:
    """Hold an OS lock, against other processes and other tasks alike; it ends when its holder dies.

    :param timeout: seconds to wait; ``None`` = as long as it takes.
    :param busy: the sentence if the time is up.
    :param waiting: called now and then while another one holds it.
    :raises TimedOut: the time is up.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False, blocking=False)
    deadline = None if timeout is None else anyio.current_time() + timeout
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            if deadline is not None and anyio.current_time() >= deadline:
                raise TimedOut(
                    busy or f"{path.name} is held by another process; try again when that is done."
                ) from None
            if waiting:
                waiting()
            await anyio.sleep(LOCK_TICK)
    try:
        yield
    finally:
        lock.release()
