"""Decides what this process is: a go-plugin plugin, or a command that a person typed.

A host tells a plugin by an environment variable and no arguments, and waits for its handshake line, so nothing heavy
may be imported before that is decided.
"""

from __future__ import annotations

import os
import sys

COOKIE = "AOG_PLUGIN"
"""The variable in which AOG, as every go-plugin host, says that it is the one who starts us."""


def main() -> None:
    """Run what was asked for and exit."""
    arguments = sys.argv[1:]
    if not arguments and COOKIE in os.environ:
        from ovms_kernel.aog.serve import main as serve

        serve()
        return
    try:
        from ovms_cli.app import run

        code = run(arguments) if arguments else _explain()
    except KeyboardInterrupt:
        # Only before the command's own handling of signals began or after it ended.
        print("Interrupted before anything was begun.", file=sys.stderr)
        code = 130
    sys.exit(code)


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
