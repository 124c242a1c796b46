"""Naming one process for good, and what a process that answers requests sets for itself.

A name is a pid together with the time at which it started, as pids are given again.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

START_TOLERANCE = 0.5
"""Seconds by which two readings of one process's start time may differ."""
RARELY = 5000
"""Objects made and not yet freed at which the collector looks at the young ones; Python's own number is 700."""
STARTED = 19
"""Place of the start time in ``/proc/PID/stat`` after the name: field 22, counted from 1 and with the two before."""


def start_time(pid: int) -> float:
    """Return when a process started, in a measure that setting the clock does not change; 0 if it is gone already.

    On Linux psutil counts from the boot time, which is the clock's time minus the uptime and so moves with the clock.
    """
    if sys.platform == "linux":
        fields = _fields(pid)
        return int(fields[STARTED]) / os.sysconf("SC_CLK_TCK") if fields else 0.0
    else:  # noqa: RET505 - for mypy, which knows one platform at a time
        import psutil

        try:
            return float(psutil.Process(pid).create_time())
        except psutil.Error:
            return 0.0


def is_alive(pid: int, started: float) -> bool:
    """Tell whether the process that started then still runs, not another one that was given its pid."""
    if abs(start_time(pid) - started) >= START_TOLERANCE:
        return False
    # One that its parent has not asked after yet is still listed.
    if sys.platform == "linux":
        return _fields(pid)[:1] not in ([], ["Z"])
    else:  # noqa: RET505 - as above
        import psutil

        try:
            return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False


def collect_rarely() -> None:
    """Have the garbage collector leave alone what is there already, and look at the rest less often.

    For a process that answers requests, called once when it has loaded what it needs: most objects of a request are
    gone without the collector, which takes a twentieth of the time otherwise.
    """
    gc.freeze()
    gc.set_threshold(RARELY)


def boot() -> str:
    """Return a name of this run of the system, as start times are counted from its beginning; empty if it has none."""
    if sys.platform != "linux":  # elsewhere they are times of the clock
        return ""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _fields(pid: int) -> list[str]:
    """Return what Linux says of a process after its name, which may have spaces; nothing if it is gone."""
    try:
        found = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return []
    return found if len(found) > STARTED else []
