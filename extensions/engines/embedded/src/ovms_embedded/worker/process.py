"""What every process of the engine beside the front process does first."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

from ovms_embedded.worker.pipe import Pipe

LOOKING = 0.01
"""Seconds between two looks at the memory, where the system does not bound it."""


def open_pipe() -> Pipe:
    """Return the pipe to the front process, which is standard input and what was standard output."""
    _die_with_the_front_process()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # They reach the whole process group; the front process decides how this one ends.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sink = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no message
    return Pipe(sys.stdin.buffer, sink)


def _die_with_the_front_process() -> None:
    # A closed pipe says so too, but a thread in Python cannot hear it while the library holds Python's lock.
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(0)


def bound_memory(more: int) -> None:
    """End or fail this process when it takes so many bytes more than it has now."""
    if sys.platform != "linux":
        # Neither macOS nor Windows bounds a process's memory when asked like that, so a thread looks.
        threading.Thread(target=partial(_watch_memory, _resident() + more), daemon=True).start()
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * os.sysconf("SC_PAGESIZE") + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _watch_memory(most: int) -> None:
    while _resident() < most:
        time.sleep(LOOKING)
    os._exit(1)


def _resident() -> int:
    """Return the bytes of memory that this process has, or has had at most."""
    if sys.platform == "win32":
        import ctypes
        from ctypes import wintypes

        class Counters(ctypes.Structure):
            _fields_ = [("cb", wintypes.DWORD), ("faults", wintypes.DWORD)] + [
                (name, ctypes.c_size_t) for name in ("peak", "now", "a", "b", "c", "d", "pagefile", "e")
            ]

        counters = Counters(cb=ctypes.sizeof(Counters))
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.K32GetProcessMemoryInfo(wintypes.HANDLE(-1), ctypes.byref(counters), counters.cb)
        return int(counters.pagefile)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
