"""Files on disk: written atomically and synced, locked between processes, measured, and errors of the disk in words."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from ovms_kernel.errors import Cancelled, OvmsError, PreconditionFailed, TimedOut
from ovms_kernel.settings import ELSEWHERE
from ovms_kernel.values import Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from filelock import FileLock

T = TypeVar("T")

CHUNK = 1 << 20
"""Bytes per read."""
SPACE_MARGIN = 64 << 20
"""Bytes that stay free on a disk: logs, small files and the file system's own needs."""
TICK = 0.1
"""Seconds between two reports of progress."""
LOCK_TICK = 0.05
FULL = (errno.ENOSPC, errno.EDQUOT)
WINDOWS_PATH = 240
"""``MAX_PATH`` of Windows without its end, and without what is added to a name while the file is written."""
PATIENCE = 2.0
"""Seconds for which Windows may refuse a file that another program has open."""


# -- reading -------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in that file; ``None`` if it is absent, damaged or not an object."""
    try:
        value = json.loads(patiently(path.read_bytes))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_struct(path: Path, of: type[T]) -> T | None:
    """Return the struct in that JSON file; ``None`` if it is absent, damaged or something else."""
    try:
        return msgspec.convert(read_json(path), of)
    except msgspec.ValidationError:
        return None


def size_of(path: Path) -> int | None:
    """Return the bytes of a regular file; ``None`` if there is none, or not any more."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def disk_usage(folder: Path) -> int:
    """Return the bytes that a folder occupies; a sparse file counts with what is written of it."""
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(root, name))  # noqa: PTH118 - thousands of them
            except FileNotFoundError:
                continue
            size += occupied(status)
    return size


def occupied(status: os.stat_result) -> int:
    """Return the bytes that a file takes on the disk; one that grows in ranges is as long as the whole at once."""
    return int(getattr(status, "st_blocks", (status.st_size + 511) // 512)) * 512


def hash_file(path: Path, advance: Callable[[int], None]) -> str:
    """Return the SHA-256 of a file as hex; ``advance`` is called with the bytes of each piece."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


# -- writing -------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace a file so that a reader or a crash sees the old bytes or the new ones, never a part.

    :param mode: permissions, less the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
        sync(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def rename(source: Path, target: Path) -> None:
    """Give a file or a folder another name, in place of a file that has it."""
    patiently(lambda: source.replace(target))


def patiently(call: Callable[[], T]) -> T:
    """Return what a call returns; on Windows, try again for two seconds while the system refuses it.

    It refuses to replace, rename or remove what a reader or a virus scanner has open, most of them for milliseconds.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except PermissionError:
            if os.name != "nt" or time.monotonic() >= deadline:
                raise
        time.sleep(0.001)


def sync(path: Path) -> None:
    """Bring the bytes of a file, or the names in a folder, to the disk; a power cut spares nothing else."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # it cannot be opened, and its names are in the file system's own journal
    try:
        descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    except FileNotFoundError:
        return  # another process took the last model out of a folder, and the folder with it
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring a folder to the disk with everything below it; what is there already costs next to nothing."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


# -- space on the disk ---------------------------------------------------------------------------------------------


def human(size: int) -> str:
    """Return a number of bytes for a sentence, such as ``1.5 GB``."""
    units = ("bytes", "KB", "MB", "GB", "TB")
    power = max(0, min(len(units) - 1, (len(str(size)) - 1) // 3))
    return f"{size / 1000**power:.{1 if power else 0}f} {units[power]}"


def free_space(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold.

    :param needed: bytes still to be written.
    :param what: what needs them, as the sentence begins.
    :raises PreconditionFailed: the sentence has the numbers.
    """
    free = free_space(folder)
    if needed + SPACE_MARGIN > free:
        raise PreconditionFailed(
            f"{what} needs {human(needed + SPACE_MARGIN)} on disk and {human(free)} are free in {folder}; "
            "free some space, or change the setting data_dir."
        )


def check_lengths(folder: Path, files: Iterable[str], what: str) -> None:
    """Refuse to begin what the system, or an engine that is a program of it, cannot open.

    :param files: relative paths of what will be written below the folder.
    :param what: what writes them, as the sentence begins.
    :raises PreconditionFailed: the sentence has the numbers.
    """
    limit = path_limit()
    longest = max((len(str(folder / each)) for each in files), default=0)
    if limit and longest > limit:
        raise PreconditionFailed(
            f"{what} needs a path of {longest} characters below {folder}, and Windows allows {limit}; "
            "change the setting data_dir to a shorter folder, or allow long paths in Windows."
        )


def path_limit() -> int:
    """Return the characters that the path of a file may have; 0 if no sensible path is too long.

    Windows takes longer ones only if its registry says so, and then only from programs that declare to know of it.
    """
    if sys.platform == "win32":
        import winreg

        with (
            suppress(OSError),
            winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key,
        ):
            return 0 if winreg.QueryValueEx(key, "LongPathsEnabled")[0] else WINDOWS_PATH
        return WINDOWS_PATH
    return 0


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn what the file system refuses into a sentence.

    :param what: what was being done, as the sentence begins.
    :raises PreconditionFailed: the disk is full.
    :raises OvmsError: anything else.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(what, error) from error


def disk_error(what: str, error: OSError) -> OvmsError:
    """Return the sentence for what the file system refused."""
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in FULL:
        return PreconditionFailed(f"{what} failed because the disk is full{where}; free some space and try again.")
    return OvmsError(
        f"{what} failed because of the disk{where} ({error.strerror or type(error).__name__}); "
        "check its space and permissions."
    )


def refused_by_system(error: BaseException) -> OvmsError | None:
    """Return an error of the system that a user can fix as one that says how; ``None`` if it is of another kind."""
    if not isinstance(error, OSError):
        return None
    where = f"{os.fsdecode(error.filename)} cannot be used" if isinstance(error.filename, str | bytes) else ""
    if error.errno in FULL:
        return OvmsError(f"{where or 'A file cannot be written'} ({error.strerror}); free some space on that disk.")
    if where and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return OvmsError(f"{where} ({error.strerror}); fix that, or {ELSEWHERE}.")
    return None


# -- long work -----------------------------------------------------------------------------------------------------


class Meter:
    """Counts bytes in a thread; the reports are made elsewhere."""

    def __init__(self, status: str, total: int) -> None:
        self.status, self.total, self.subject = status, total, ""
        self.completed = 0
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
    path: Path,
    *,
    timeout: float | None = None,
    busy: str = "",
    waiting: Callable[[], None] | None = None,
    keep: Callable[[], bool] = lambda: True,
) -> AsyncIterator[None]:
    """Hold an OS lock, against other processes and other tasks alike; it ends when its holder dies.

    :param timeout: seconds to wait; ``None`` = as long as it takes.
    :param busy: the sentence if the time is up.
    :param waiting: called now and then while another one holds it; what it raises ends the wait.
    :param keep: asked at the end, whether the file of the lock is to stay.
    :raises TimedOut: the time is up.
    """
    from filelock import FileLock, Timeout

    with disk_errors(f"Locking {path.name}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False, blocking=False)
    deadline = None if timeout is None else anyio.current_time() + timeout
    while True:
        try:
            lock.acquire(blocking=False)
            if _is_current(lock, path):
                break
            lock.release()  # it was removed by its last holder between our opening and locking it
        except Timeout:
            if deadline is not None and anyio.current_time() >= deadline:
                raise TimedOut(
                    busy or f"{path.name} is held by another process; try again when that is done."
                ) from None
            if waiting:
                waiting()
            await anyio.sleep(LOCK_TICK)
        except OSError as error:
            raise disk_error(f"Locking {path.name}", error) from error
    try:
        yield
    finally:
        if not keep():
            _remove(path)
        lock.release()


def _remove(path: Path) -> None:
    with suppress(OSError):  # on Windows, where an open file cannot be removed
        path.unlink()


def _is_current(lock: FileLock, path: Path) -> bool:
    """Tell whether a lock is that of the file which has its name now."""
    descriptor = lock._context.lock_file_fd
    try:
        return descriptor is not None and os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
