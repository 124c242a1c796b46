"""Ends the engine when we are gone, however we went. Run as a script of its own, with nothing but the standard library.

It reads from a pipe whose other end only the plugin holds: first a line with the engine's process group, then, when the
plugin has stopped the engine itself, an empty line. An end of the pipe without that line means that the plugin died.

Other means would not do: a parent-death signal exists on Linux only and fires when the *thread* that started the engine
ends, and an exit handler does not run when the plugin is killed.
"""

import contextlib
import os
import signal
import sys
import time

GRACE = 1.0
"""Seconds that the engine has to stop by itself."""


def main() -> None:
    """Wait for the plugin's last word."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # a terminal's signals are meant for the plugin
    group = sys.stdin.readline().strip()
    if not group or sys.stdin.readline():
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(int(group), signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline:
            os.killpg(int(group), 0)  # raises once the whole group is gone
            time.sleep(0.05)
        os.killpg(int(group), signal.SIGKILL)


if __name__ == "__main__":
    main()
