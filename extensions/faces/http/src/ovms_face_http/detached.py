"""``serve --detach``: the same server as a process of its own, which goes on without a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anyio

from ovms_face_http.operation import BY_KEY, READY
from ovms_kernel.api.commands import Session, say

if TYPE_CHECKING:
    from collections.abc import Sequence

LOG = "serve.log"
MAX_LOG = 10 << 20
"""Bytes of the log after which the next server begins a new one."""
LOOK = 0.1
"""Seconds between two looks at a server that starts."""
STOP = 10.0
"""Seconds that a server has to end after Ctrl-C here."""
OPTIONS = ("-d", "--detach")


async def detach(session: Session) -> None:
    """Start the server that this command line asks for, and return when it is ready or has ended.

    What it prints until then is printed here too; the exit code is its own if it ends.
    """
    log = session.settings.logs_dir / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > MAX_LOG:
        log.replace(log.with_suffix(".log.1"))
    session.kept = "Interrupted; no server is started."
    with log.open("ab") as output, log.open("rb") as told:
        told.seek(0, os.SEEK_END)
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            _command(sys.orig_argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},  # not a code page, which other programs do not expect
            **_alone(),
        )
        try:
            ready = False
            while not ready and process.poll() is None:
                await anyio.sleep(LOOK)
                ready = _tell(told.read())
        except BaseException:
            process.terminate()
            process.wait(STOP)
            raise
        _tell(told.read())
    if process.returncode is None:
        say(f"It runs in the background; stop it with `ovms-plugin stop`. Its log is {log}.")
    session.code = process.returncode or 0


def _command(typed: Sequence[str]) -> list[str]:
    """Return the command line that this process was started with, without the option that brought it here.

    The program is this interpreter by its path: Windows would look for ``python`` beside the one that a virtual
    environment was made with, and not in the environment.
    """
    return [sys.executable, *(each for each in typed[1:] if each not in OPTIONS)]


def _alone() -> dict[str, Any]:
    """Return what makes a process outlive its terminal."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _tell(data: bytes) -> bool:
    """Print what the server printed; return whether its engine is ready."""
    lines = data.decode(errors="replace").splitlines()
    for line in lines:
        say(line.replace(BY_KEY, ""))  # not this one
    return any(READY in line for line in lines)
