"""The engine as a process of Windows: in a Job Object of its own, which ends all of it when we are gone.

What only Windows can prove is listed in docs/engine.md; elsewhere the tests check the calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CREATE_SUSPENDED = 0x00000004
CREATE_NEW_PROCESS_GROUP = 0x00000200
CREATE_BREAKAWAY_FROM_JOB = 0x01000000
CREATE_NO_WINDOW = 0x08000000
FLAGS = CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW | CREATE_SUSPENDED
"""Our console's Ctrl-C must not reach it; it gets a console of its own without a window; and it waits for its job."""
EXTENDED_LIMIT_INFORMATION = 9
KILL_ON_JOB_CLOSE = 0x00002000
ERROR_ACCESS_DENIED = 5
KILLED = 1
"""Exit code of what is ended by force."""


class BasicLimits(ctypes.Structure):
    """``JOBOBJECT_BASIC_LIMIT_INFORMATION``."""

    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    )


class ExtendedLimits(ctypes.Structure):
    """``JOBOBJECT_EXTENDED_LIMIT_INFORMATION``; the six counters of ``IO_COUNTERS`` stand in one field."""

    _fields_ = (
        ("BasicLimitInformation", BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


class Job:
    """A Job Object that ends every process in it when its last handle is closed, which our end does too.

    :param kernel32: the functions of that library, instead of the system's.
    """

    def __init__(self, kernel32: Any = None) -> None:  # noqa: ANN401 - a foreign library
        self._kernel32 = kernel32 or _kernel32()
        self._handle = self._checked(self._kernel32.CreateJobObjectW(None, None), "CreateJobObject")
        limits = ExtendedLimits()
        limits.BasicLimitInformation.LimitFlags = KILL_ON_JOB_CLOSE
        done = self._kernel32.SetInformationJobObject(
            self._handle, EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), ctypes.sizeof(limits)
        )
        try:
            self._checked(done, "SetInformationJobObject")
        except OSError:
            self.close()
            raise

    def add(self, process: int) -> None:
        """Put a process in, by its handle."""
        self._checked(self._kernel32.AssignProcessToJobObject(self._handle, process), "AssignProcessToJobObject")

    def end(self) -> None:
        """End every process in it."""
        self._kernel32.TerminateJobObject(self._handle, KILLED)

    def close(self) -> None:
        """Close it, which ends what is left in it."""
        handle, self._handle = self._handle, None
        if handle:
            self._kernel32.CloseHandle(handle)

    def _checked(self, result: Any, what: str) -> Any:  # noqa: ANN401 - a handle or a truth value
        if not result:
            raise OSError(_last_error(), f"{what} failed")
        return result


class EngineProcess:
    """One running engine in its job; made by :func:`spawn`."""

    def __init__(self, process: subprocess.Popen[bytes], job: Job) -> None:
        self._process = process
        self._job = job
        self.pid = process.pid

    async def wait(self) -> int:
        """Return the exit code once the process has ended."""
        # A daemon thread, as one of a pool would keep us from ending.
        return await _in_daemon_thread(self._process.wait)

    def has_ended(self) -> bool:
        """Tell whether it has ended, even if :meth:`wait` has not heard of it yet."""
        return self._process.poll() is not None

    def terminate(self) -> None:
        """End it: OVMS does not handle Ctrl-Break, all that a process group can be sent."""
        self._job.end()

    def kill(self) -> None:
        """End it and everything that it started."""
        self._job.end()

    def close(self) -> None:
        """End what is left in the job; the process itself has ended."""
        self._job.close()


async def spawn(argv: Sequence[str], env: Mapping[str, str], cwd: Path | None, log_file: Path) -> EngineProcess:
    """Start an engine whose output goes to the end of a file.

    It is started suspended and set going only when it is in its job, so that there is no moment in which it could be
    left behind.

    :raises OSError: it cannot be started.
    """
    job = Job()
    try:
        with log_file.open("ab") as log:
            process = _start(argv, env, cwd, log)
        try:
            job.add(int(process._handle))  # type: ignore[attr-defined]
            _resume(process.pid)
        except BaseException:
            process.kill()
            raise
    except BaseException:
        job.close()
        raise
    return EngineProcess(process, job)


def _start(argv: Sequence[str], env: Mapping[str, str], cwd: Path | None, log: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401
    def start(flags: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            close_fds=True,
            creationflags=flags,
        )

    try:
        # Launchers of Python put us in a job of theirs; ours is not to depend on whether jobs may be nested.
        return start(FLAGS | CREATE_BREAKAWAY_FROM_JOB)
    except OSError as error:
        if getattr(error, "winerror", None) != ERROR_ACCESS_DENIED:
            raise
        return start(FLAGS)  # that job forbids to leave it


def _resume(pid: int) -> None:
    """Set a suspended process going; psutil resumes its threads."""
    import psutil

    psutil.Process(pid).resume()


def end_stale(pid: int) -> None:
    """End an engine whose plugin is dead, and its children; the caller has made sure that the pid is still its own.

    The job ended it when the plugin died, unless something else held the job's handle.
    """
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                each.kill()


def _kernel32() -> Any:  # noqa: ANN401 - a foreign library
    if sys.platform == "win32":
        library = ctypes.WinDLL("kernel32", use_last_error=True)
        library.CreateJobObjectW.restype = ctypes.c_void_p
        library.CreateJobObjectW.argtypes = (ctypes.c_void_p, ctypes.c_wchar_p)
        library.SetInformationJobObject.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32)
        library.AssignProcessToJobObject.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        library.TerminateJobObject.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
        library.CloseHandle.argtypes = (ctypes.c_void_p,)
        return library
    raise OSError("Job Objects exist on Windows only")


def _last_error() -> int:
    """Return the error of the last call; ctypes keeps it aside, as GetLastError may have been called since."""
    if sys.platform == "win32":
        return ctypes.get_last_error()
    return 0


async def _in_daemon_thread(function: Any) -> int:  # noqa: ANN401 - any call without arguments
    import threading

    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()

    def settle(value: int) -> None:
        if not future.done():
            future.set_result(value)

    def run() -> None:
        value = function()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, value)

    threading.Thread(target=run, name="ovms-engine-exit", daemon=True).start()
    return await future
