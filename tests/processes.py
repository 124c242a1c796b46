"""What tests do to processes, the same on each system: end, interrupt or freeze them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from ovms_kernel.values import EngineExit

FORCE = 9
"""SIGKILL on POSIX; on Windows ``os.kill`` ends a process by force, and this becomes its exit code."""
ENDED_BY_FORCE = FORCE if os.name == "nt" else -FORCE
"""The ``returncode`` of a process that :func:`end_by_force` ended."""


CONSOLE = """
import ctypes, os, signal, subprocess, sys, threading
console = ctypes.windll.kernel32
console.FreeConsole(), console.AllocConsole()
signal.signal(signal.SIGINT, lambda *_: None)
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=sys.stdout, stderr=sys.stderr)
threading.Thread(target=lambda: os._exit(process.wait())).start()
sys.stdin.read()
console.GenerateConsoleCtrlEvent(0, 0)
"""
"""Runs a program in a console of its own, where Ctrl-C reaches nobody else, and types that when its input ends."""


def end_by_force(pid: int) -> None:
    """End a process so that nothing in it runs any more.

    :raises OSError: there is no such process.
    """
    os.kill(pid, FORCE)


def was_ended_by_force(ended: EngineExit) -> bool:
    """Tell whether an engine was ended by :func:`end_by_force`."""
    return (ended.code if ended.signal is None else -ended.signal) == ENDED_BY_FORCE


def at_console(command: Sequence[str]) -> list[str]:
    """Return what to start, with a pipe as its stdin, instead of a command that :func:`interrupt` is for."""
    return [sys.executable, "-c", CONSOLE, *command] if os.name == "nt" else list(command)


def interrupt(process: subprocess.Popen[Any]) -> None:
    """Type Ctrl-C where a command of :func:`at_console` runs."""
    if process.stdin is None:
        raise ValueError("Start it with stdin=subprocess.PIPE.")
    process.stdin.close()
    process.stdin = None  # which communicate() would flush
    if os.name != "nt":
        import signal

        process.send_signal(signal.SIGINT)


def is_below(pid: int, process: subprocess.Popen[Any]) -> bool:
    """Tell whether a process is one that was started or a descendant, as what a launcher of Windows starts is."""
    import psutil

    try:
        return pid == process.pid or process.pid in {each.pid for each in psutil.Process(pid).parents()}
    except psutil.NoSuchProcess:
        return False


def freeze(pid: int) -> None:
    """Stop a process where it is, until :func:`thaw`; its sockets stay open."""
    import psutil

    psutil.Process(pid).suspend()


def thaw(pid: int) -> None:
    """Let a process that was frozen go on."""
    import psutil

    psutil.Process(pid).resume()
