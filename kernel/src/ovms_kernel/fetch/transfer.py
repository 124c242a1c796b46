"""Fetches files in parallel ranges: resumed after a kill, hashed on the way, limited in rate, stopped at any time.

Hubs and engine installs say how one range is opened; everything else is here. Beside each unfinished file lies a
journal with the bytes that every part of it has, written after the bytes themselves. A part is synced when it is
complete and before that is noted, a file before it gets its name. At most one file per connection is open at a time.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import anyio
import anyio.to_thread
import msgspec
from msgspec.structs import replace

from ovms_kernel.errors import Cancelled, Unavailable
from ovms_kernel.fetch.http import FetchFailed
from ovms_kernel.fetch.partial import Partial
from ovms_kernel.files import TICK, disk_error
from ovms_kernel.values import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ovms_kernel.fetch.http import Body, Opener
    from ovms_kernel.values import RemoteFile

CHUNK = 512 << 10
SLOWEST = 1024
"""Bytes per second that a connection must bring, on average over ``stall`` seconds, or it is given up."""
HASH_CHUNK = 1 << 20
HASH_WAIT = 0.02
MAX_DELAY = 20.0
FLUSH = getattr(os, "fdatasync", os.fsync)
"""Brings written bytes to the disk, if possible without the time of the change, which nobody needs for each part."""
STOP_TIME = 3.0
"""Seconds for which threads are waited for; one that still waits for an answer's first byte will write nothing."""


class DigestMismatch(Unavailable):
    """A file arrived twice with other bytes than it should have."""


class Pace(msgspec.Struct, frozen=True):
    """How a transfer treats its server."""

    connections: int = 8
    """How many ranges are fetched at the same time."""
    part_size: int = 16 << 20
    """Bytes of a range."""
    max_rate: int = 0
    """Bytes per second over all connections; 0 = no limit."""
    stall: float = 30.0
    """Seconds after which a connection is given up that brought nothing, or next to nothing."""
    retries: int = 5
    """How often in a row a range may fail without bringing a byte."""
    retry_delay: float = 0.5
    """Seconds before the second try; it doubles from there."""

    @property
    def slowest(self) -> float:
        """Bytes that a connection must bring within ``stall`` seconds."""
        rate = min(SLOWEST, self.max_rate / self.connections / 4) if self.max_rate else SLOWEST
        return rate * self.stall


async def fetch_files(
    files: Sequence[RemoteFile],
    into: Path,
    open_range: Opener,
    report: Callable[[Progress], None],
    pace: Pace,
    *,
    version: str = "",
) -> None:
    """Fetch the files into the folder; each appears there under its name once it is complete and has its digest.

    :param version: of the files on their server where no digest is known, such as an ETag.
    :raises Unavailable: a file cannot be fetched, or arrives with other bytes than the hub lists.
    """
    # glibc gives large blocks back at once and asks for fresh, zeroed pages for the next one, which costs more than
    # hashing, until it has seen one of this size freed.
    bytearray(8 * CHUNK)
    loop, over = asyncio.get_running_loop(), anyio.Event()
    transfer = _Transfer(files, into, open_range, pace, version)
    transfer.on_end = lambda: loop.call_soon_threadsafe(over.set)
    await anyio.to_thread.run_sync(transfer.prepare)
    threads = [threading.Thread(target=transfer.work, name="ovms-pull", daemon=True) for _ in range(pace.connections)]
    threads.append(threading.Thread(target=transfer.hash_along, name="ovms-pull-hash", daemon=True))
    try:
        for thread in threads:
            thread.start()
        while not over.is_set():
            report(transfer.progress())
            transfer.give_up_stalled()
            with anyio.move_on_after(TICK):
                await over.wait()
    finally:
        transfer.stop()
        with anyio.CancelScope(shield=True):
            deadline = time.monotonic() + STOP_TIME
            for thread in threads:
                if thread.ident is not None:
                    await anyio.to_thread.run_sync(thread.join, max(0.0, deadline - time.monotonic()))
            await anyio.to_thread.run_sync(transfer.close)
    if isinstance(transfer.error, OSError):
        raise disk_error("The download", transfer.error) from transfer.error
    if transfer.error is not None:
        raise transfer.error
    report(transfer.progress())


class _Transfer:
    """The state that the threads of one call share."""

    def __init__(self, files: Sequence[RemoteFile], into: Path, open_range: Opener, pace: Pace, version: str) -> None:
        self._open = open_range
        self._pace = pace
        self._files = [Partial(file, into, pace.part_size, version) for file in files]
        self._total = sum(file.size for file in files)
        self._rate = _Rate(pace.max_rate) if pace.max_rate else None
        self._chunk = max(1, min(CHUNK, pace.max_rate // 16)) if pace.max_rate else CHUNK
        self._queue: deque[tuple[Partial, int]] = deque()
        self._unhashed: list[Partial] = []
        """Files that were begun and are not finished."""
        self._left = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._bodies: dict[Body, _Watch] = {}
        self._reported = 0
        self._ended = threading.Event()
        self.on_end: Callable[[], object] = lambda: None
        """Called, once or more, when the last file is done or the transfer is stopped."""
        self.error: Exception | None = None

    def prepare(self) -> None:
        """See what is there already, and queue the rest, small files first: they tell what the model is."""
        for file in sorted(self._files, key=lambda each: each.remote.size):
            file.look()
            if not file.done:
                self._left += 1
                self._queue.extend((file, index) for index in range(file.parts))
        if not self._left:
            self._end()

    def progress(self) -> Progress:
        """Return what is here; it never falls, even when a file has to be fetched again."""
        self._reported = max(self._reported, sum(file.completed for file in self._files))
        current = next((file.remote for file in self._files if not file.done and file.completed), None)
        return Progress("downloading", self._reported, self._total, current.path if current else "")

    def stop(self) -> None:
        """Make every thread end soon."""
        self._stopped.set()
        self._end()
        with self._lock:
            bodies = list(self._bodies)
        for body in bodies:
            body.abort()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def give_up_stalled(self) -> None:
        """Abort connections that brought next to nothing for too long; their parts are tried again."""
        now = time.monotonic()
        with self._lock:
            stalled = [body for body, watch in self._bodies.items() if watch.is_stalled(now, self._pace)]
        for body in stalled:
            body.abort()

    # -- the threads -----------------------------------------------------------------------------------------------

    def work(self) -> None:
        """Fetch one part after the other."""
        try:
            while not self._ended.is_set():
                try:
                    file, index = self._queue.popleft()
                except IndexError:
                    # More may come: a file whose digest is wrong is queued once more.
                    self._ended.wait(HASH_WAIT)
                    continue
                self._fetch_part(file, index)
        except Exception as error:  # noqa: BLE001 - handed to the caller
            self._fail(error)

    def hash_along(self) -> None:
        """Hash every file as far as it has no gaps, and finish those that are complete."""
        buffer = memoryview(bytearray(HASH_CHUNK))
        try:
            while not self._ended.is_set():
                idle = True
                with self._lock:
                    begun = list(self._unhashed)
                for file in begun:
                    if not file.hash_some(buffer):
                        continue
                    idle = False
                    if file.hashed == file.remote.size:
                        self._finish(file)
                if idle:
                    self._ended.wait(HASH_WAIT)
        except Exception as error:  # noqa: BLE001 - handed to the caller
            self._fail(error)

    def _finish(self, file: Partial) -> None:
        if not file.finish():
            if file.resets:
                raise DigestMismatch(
                    f"{file.remote.path} arrived twice with another SHA-256 than it should have; "
                    "try another mirror or revision, or try again later."
                )
            file.reset()
            self._queue.extend((file, index) for index in range(file.parts))
            return
        with self._lock:
            self._unhashed.remove(file)
        self._left -= 1
        if not self._left:
            self._end()

    def _end(self) -> None:
        self._ended.set()
        self.on_end()

    def _fail(self, error: Exception) -> None:
        with self._lock:
            if self.error is None and not self._stopped.is_set():
                self.error = error
        self.stop()

    def _fetch_part(self, file: Partial, index: int) -> None:
        with self._lock:
            if file not in self._unhashed:
                file.open()
                self._unhashed.append(file)
        failures = 0
        while file.counts[index] < file.length(index) and not self._stopped.is_set():
            before = file.counts[index]
            delay = None
            try:
                self._fetch_rest(file, index)
            except (FetchFailed, OSError) as error:
                # A few bytes now and then are no progress, or a slow server would never be given up.
                brought = file.counts[index] - before
                failures = 1 if brought >= min(self._pace.slowest, file.length(index) / 4) else failures + 1
                told = error if isinstance(error, FetchFailed) else _explained(error, file.remote)
                if told.final or failures > (1 if told.contradiction else self._pace.retries):
                    raise told from error
                if (delay := told.retry_after) is None:
                    # Spread out, so that all connections of a server that is just back do not ask at once.
                    delay = self._pace.retry_delay * 2 ** (failures - 1) * random.uniform(0.5, 1)  # noqa: S311
            if delay:
                self._stopped.wait(min(delay, MAX_DELAY))

    def _fetch_rest(self, file: Partial, index: int) -> None:
        """Fetch what a part lacks over one connection."""
        start = file.start(index) + file.counts[index]
        end = file.start(index) + file.length(index) - 1
        body = self._open(file.remote, start, end)
        with self._lock:
            self._bodies[body] = _Watch(time.monotonic())
        try:
            if self._stopped.is_set():
                return
            if body.total is not None and body.total != file.remote.size:
                raise FetchFailed(
                    f"The hub lists {file.remote.size} bytes for {file.remote.path} and delivers {body.total}; "
                    "try another mirror or revision, or try again later.",
                    contradiction=True,
                )
            if body.ranged or (start == 0 and file.parts == 1):
                self._copy(file, index, body)
            else:
                self._copy_whole(file, body)
        finally:
            with self._lock:
                del self._bodies[body]
            body.close()

    def _copy(self, file: Partial, index: int, body: Body) -> None:
        with file.open_data() as data:
            data.seek(file.start(index) + file.counts[index])
            while (missing := file.length(index) - file.counts[index]) > 0:
                piece = self._read(body, min(missing, self._chunk))
                if not piece:
                    raise FetchFailed(f"The connection ended in the middle of {file.remote.path}; try again later.")
                # Each part goes to the disk when it is complete: meanwhile others fetch, and the end waits for little.
                _write(data, piece, sync=len(piece) == missing)
                file.add(index, piece)

    def _copy_whole(self, file: Partial, body: Body) -> None:
        """Take a whole file from a server that knows no ranges, whichever parts of it are here."""
        with file.whole, file.open_data() as data:
            if file.completed == file.remote.size:
                return
            for index in range(file.parts):
                end = file.start(index) + file.length(index)
                while (position := data.tell()) < end:
                    piece = self._read(body, min(end - position, self._chunk))
                    if not piece:
                        raise FetchFailed(f"The connection ended in the middle of {file.remote.path}; try again later.")
                    known = max(0, file.start(index) + file.counts[index] - position)
                    if len(piece) <= known:
                        data.seek(len(piece), os.SEEK_CUR)
                        continue
                    data.seek(known, os.SEEK_CUR)
                    _write(data, piece[known:], sync=position + len(piece) == end)
                    file.add(index, piece[known:])

    def _read(self, body: Body, size: int) -> bytes:
        if self._stopped.is_set():
            raise Cancelled("The pull was cancelled; what is here of it is kept.")
        piece = body.read(size)
        self._bodies[body].bytes += len(piece)
        if self._rate is not None:
            self._stopped.wait(self._rate.delay(len(piece)))
        return piece


@dataclass(slots=True)
class _Watch:
    """What one connection brought since it was last looked at."""

    since: float
    bytes: int = 0

    def is_stalled(self, now: float, pace: Pace) -> bool:
        """Tell whether too little arrived in the time that it has; begin anew if enough did."""
        if now - self.since < pace.stall:
            return False
        if self.bytes < pace.slowest:
            return True
        self.since, self.bytes = now, 0
        return False


class _Rate:
    """Spreads bytes over time, for all connections together."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def delay(self, size: int) -> float:
        """Return how long to wait after so many bytes."""
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now) + size / self._rate
            return self._next - now


def _explained(error: OSError, file: RemoteFile) -> FetchFailed:
    return FetchFailed(f"{file.path} cannot be fetched ({type(error).__name__}); check the network or try again later.")


def _write(data: BinaryIO, piece: bytes, *, sync: bool = False) -> None:
    view = memoryview(piece)
    try:
        while view:
            view = view[data.write(view) :]
        if sync:
            FLUSH(data.fileno())
    except OSError as error:
        raise disk_error("The download", error) from error


def rising(report: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Return a report that passes on nothing lower than before."""
    highest = 0

    def forward(progress: Progress) -> None:
        nonlocal highest
        if progress.status != "downloading":
            report(progress)
            return
        highest = max(highest, progress.completed)
        report(replace(progress, completed=highest, total=max(progress.total, highest)))

    return forward
