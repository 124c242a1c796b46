"""Why an engine ended, in words."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from ovms_kernel.values import EngineExit

if TYPE_CHECKING:
    from collections.abc import Sequence

KILLED = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"})
"""Signals from outside: no line of the log is their cause."""
CODES = {
    0: "it exited by itself, without an error",
    1: "it exited with an error (code 1)",
    2: "it ended with a warning",
    64: "it did not understand its command line",
    126: "its program cannot be executed",
    127: "its program or a library of it is missing",
    0xC0000135: "a DLL that it needs is missing; install the Visual C++ redistributable",
    0xC000001D: "this processor lacks instructions that it needs",
    0xC0000005: "it crashed (access violation)",
    0xC0000017: "memory ran out",
    0xC00000FD: "it crashed (stack overflow)",
    0xC0000409: "it crashed (aborted)",
}
"""By exit code: OVMS's own (1, 2, 64), a shell's (126, 127), and Windows' NTSTATUS."""
SHELL_SIGNALS = range(129, 160)
"""Exit codes by which a shell tells of a signal: 128 more than its number."""
SIGNALS = {
    "SIGILL": "this processor lacks instructions that it needs",
    "SIGKILL": "it was killed (signal 9): by the system because memory ran out, or by another program",
    "SIGTERM": "it was ended by another program (signal 15)",
    "SIGSEGV": "it crashed (segmentation fault)",
    "SIGABRT": "it crashed (aborted)",
    "SIGBUS": "it crashed (bus error), perhaps because a disk is full",
}


def cause_of(returncode: int, lines: Sequence[str]) -> str:
    """Return the cause as the end of a sentence about the engine.

    :param returncode: as Python's subprocess gives it: negative for a signal.
    :param lines: the last lines of its log that tell of errors.
    """
    said = "; ".join(line.rstrip(".") for line in lines)
    number = returncode - 128 if returncode in SHELL_SIGNALS else -returncode
    if number > 0:
        name = _signal_name(number)
        words = SIGNALS.get(name, f"it was ended by {name}")
        if name in KILLED:
            return words
    else:
        words = CODES.get(returncode & 0xFFFFFFFF, f"it exited with code {returncode}")
    if any(each in said for each in ("port is busy", "Address already in use", "Failed to bind to address")):
        words = "another program took its port"
    return f"{words}: {said}" if said else words


def exit_of(returncode: int, lines: Sequence[str], uptime: float, *, expected: bool, hung: bool) -> EngineExit:
    """Return what became of an engine.

    :param uptime: seconds.
    :param expected: we stopped it.
    :param hung: we ended it as it did not answer.
    """
    cause = "it was stopped" if expected else cause_of(returncode, lines)
    if hung:
        cause = f"it did not answer and was ended after {uptime:.0f} s"
    code, number = (returncode, None) if returncode >= 0 else (None, -returncode)
    return EngineExit(cause, code, number, uptime, expected)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
