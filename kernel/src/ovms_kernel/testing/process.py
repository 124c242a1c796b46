"""What tests do to processes, the same on each system: end them by force, freeze them, start them with little."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ovms_kernel.values import EngineExit

FORCE = 9
"""SIGKILL on POSIX; on Windows ``os.kill`` ends a process by force, and this becomes its exit code."""
ENDED_BY_FORCE = FORCE if os.name == "nt" else -FORCE
"""The ``returncode`` of a process that :func:`end_by_force` ended."""
SYSTEM_VARIABLES = ("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "TEMP", "TMP")
"""Variables without which no program of Windows opens a socket or a temporary file."""


def end_by_force(pid: int) -> None:
    """End a process so that nothing in it runs any more.

    :raises OSError: there is no such process.
    """
    os.kill(pid, FORCE)


def was_ended_by_force(ended: EngineExit) -> bool:
    """Tell whether an engine was ended by :func:`end_by_force`."""
    return (ended.code if ended.signal is None else -ended.signal) == ENDED_BY_FORCE


def freeze(pid: int) -> None:
    """Stop a process where it is, until :func:`thaw`; its sockets stay open."""
    import psutil

    psutil.Process(pid).suspend()


def thaw(pid: int) -> None:
    """Let a process that was frozen go on."""
    import psutil

    psutil.Process(pid).resume()


def bare_environment(**variables: str) -> dict[str, str]:
    """Return these variables and those without which the system starts no program."""
    return {name: os.environ[name] for name in SYSTEM_VARIABLES if name in os.environ} | variables
