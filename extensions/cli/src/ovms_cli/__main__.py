"""Decides what this process is: a go-plugin plugin, or a command that a person typed.

A host tells a plugin by an environment variable and no arguments, and waits for its handshake line, so nothing heavy
may be imported before that is decided.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

COOKIE = "AOG_PLUGIN"
"""The variable in which AOG, as every go-plugin host, says that it is the one who starts us."""
COMPLETION = "_OVMS_PLUGIN_COMPLETE"


def main() -> None:
    """Run what was asked for and exit."""
    arguments = sys.argv[1:]
    if not arguments and COOKIE in os.environ:
        from ovms_face_aog.serve import main as serve

        serve()
        return
    from pathlib import Path

    # Whoever starts us may have closed them, as `>&-` does and Windows for what has no console.
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows fewer characters shows a question mark instead of a traceback.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    # Until a command handles signals itself, and so that Ctrl-C during an import is no traceback.
    signal.signal(signal.SIGINT, _interrupted)
    from ovms_cli.app import run

    # A shell that completes a command says so in the environment and gives no arguments either.
    code = run(arguments) if arguments or COMPLETION in os.environ else _explain()
    sys.exit(_flushed(code))


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

    with redirect_stdout(sys.stderr):
        run(["--help"])
    print(
        "\nThis program is also a go-plugin plugin that AOG starts by itself, without arguments; "
        "at a terminal, name a command.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    main()
