"""What every process of the engine beside the front process does first."""

from __future__ import annotations

import os
import signal
import sys

from ovms_embedded.worker.pipe import Pipe


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
