"""The host on Windows, where a pipe does not tell that nobody reads it and a launcher is our parent.

``ovms-plugin.exe`` starts the interpreter and waits for it, and so does ``python.exe`` of a virtual environment. Both
outlive a host that was killed.
"""

from __future__ import annotations

import ntpath
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


def find_host() -> psutil.Process | None:
    """Return the process that started this program; ``None`` if it has ended."""
    import psutil

    process: psutil.Process | None = psutil.Process().parent()
    while process is not None and _is_launcher(process):
        process = process.parent()
    return process


def _is_launcher(process: psutil.Process) -> bool:
    """Tell whether a process only started this one: by its arguments, which it passes on, or by its program."""
    import psutil

    try:
        program, *words = process.cmdline()
    except (psutil.Error, OSError, ValueError):  # of another user, or it has just ended
        return False
    return words == sys.orig_argv[1:] or _name(program) == _name(sys.argv[0])


def _name(program: str) -> str:
    return ntpath.basename(program).lower()
