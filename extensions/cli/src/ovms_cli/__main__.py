"""Decides what this process is: a face that a host started, or a command that a person typed.

A host starts a face with an environment variable and no arguments and may wait for its first line, so nothing heavy is
imported before that is decided.
"""

from __future__ import annotations

import codecs
import os
import runpy
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

COMPLETION = "_OVMS_PLUGIN_COMPLETE"
PLAIN = {"✓": "+", "✗": "x", "→": ">", "…": "...", "–": "-", "·": "-"}
"""What is written instead where the terminal's or the pipe's encoding lacks a character, such as code page 936."""


def main() -> None:
    """Run what was asked for and exit."""
    arguments = sys.argv[1:]
    if not arguments:
        _leave_out_pythonpath()
    if not arguments and (face := _started_by_a_host()):
        runpy.run_module(face, run_name="__main__")
        return
    from pathlib import Path

    # The caller may have closed them, as `>&-` does and Windows for what has no console.
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="plain")  # type: ignore[union-attr]
    # Until a command handles signals itself, and so that Ctrl-C during an import is no traceback.
    signal.signal(signal.SIGINT, _interrupted)
    from ovms_cli.app import run

    # A shell that completes a command says so in the environment and gives no arguments either.
    code = run(arguments) if arguments or COMPLETION in os.environ else _explain()
    sys.exit(_flushed(code))


def _leave_out_pythonpath() -> None:
    """Import nothing from the ``PYTHONPATH`` of AOG's user where `deploy` put a copy of this program.

    The launcher of other systems says so with ``-I``; that of Windows takes no flags.
    """
    folder, program = os.path.split(os.path.normcase(sys.argv[0]))
    python = os.path.split(os.path.normcase(sys.executable))[0]
    if sys.platform == "win32" and program.startswith("ovms-plugin") and folder != python:
        theirs = [os.path.normcase(each) for each in os.environ.pop("PYTHONPATH", "").split(os.pathsep) if each]
        sys.path[:] = [each for each in sys.path if os.path.normcase(each) not in theirs]


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Return what is written for characters that an encoding lacks, as a handler of ``codecs``."""
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101 - of streams that are written to
    return "".join(PLAIN.get(each, "?") for each in error.object[error.start : error.end]), error.end


def _started_by_a_host() -> str:
    """Return the package of the face that is meant, if a host started this process; see docs/extensions/face.md.

    A face whose host starts it by itself names in its entry point's brackets the variable that such a host sets.
    """
    from importlib import metadata  # a fifth of the time that a command may take, and most need none of it

    faces = metadata.entry_points(group="ovms.faces")
    return next((each.module for each in faces if any(name in os.environ for name in each.extras)), "")


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    # At once: an exception would come out of whatever module is just being imported, which may make another of it.
    os.write(2, b"Interrupted; nothing was begun.\n")
    os._exit(128 + signal.SIGINT)


def _flushed(code: int) -> int:
    """Write what waits for stdout, while it can still be said that it did not arrive; return the exit code."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python tries again at its end, and would complain in its own words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not code and not isinstance(error, BrokenPipeError):
            print(f"The output could not be written ({error.strerror}).", file=sys.stderr)
        return code or 1
    return code


def _explain() -> int:
    """Say what this program is; go-plugin's own plugins also end with 1 when a person starts them bare."""
    from contextlib import redirect_stdout

    from ovms_cli.app import run
    from ovms_kernel.api.commands import say

    with redirect_stdout(sys.stderr):
        run(["--help"])
    say("\nA host such as AOG starts this program by itself; at a terminal, name a command.")
    return 1


if __name__ == "__main__":
    main()
