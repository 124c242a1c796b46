"""``python -m ovms_embedded``: the command line, then the server."""

from __future__ import annotations

import signal
import sys

from ovms_embedded.cli import USAGE, CommandFailed, Settings, WrongUsage, parse


def main() -> int:
    """Run the server until it is told to stop; returns the exit code."""
    try:
        parsed = parse(sys.argv[1:])
    except WrongUsage as error:
        sys.stderr.write(f"error parsing options - {error}\n")
        return USAGE if sys.platform != "win32" else 3
    except CommandFailed as failed:
        sys.stderr.write(f"{failed}\n")
        return 1
    if not isinstance(parsed, Settings):
        sys.stdout.write(parsed)
        return 0
    for name in (signal.SIGINT, signal.SIGTERM):
        # Until the server listens to signals there is nothing to stop, only modules to import.
        signal.signal(name, lambda *_: sys.exit(0))
    from ovms_embedded.server import serve

    return serve(parsed)


if __name__ == "__main__":
    sys.exit(main())
