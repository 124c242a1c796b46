"""The engine as a process of Linux and macOS: a session of its own, nothing inherited, gone when we are."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from ovms_kernel.engine import guard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


GATE = 'read -r go && exec "$@" </dev/null'
"""What the shell does: wait for a line, then be the engine, with the same pid."""


class EngineProcess:
    """One running engine with its guard; made by :func:`spawn`."""

    def __init__(self, process: asyncio.subprocess.Process, watcher: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._guard = watcher
        self.pid = process.pid

    async def wait(self) -> int:
        """Return the exit code, negative for a signal, once the process has ended."""
        return await self._process.wait()

    def has_ended(self) -> bool:
        """Tell whether it has ended, even if :meth:`wait` has not heard of it yet."""
        if not hasattr(os, "waitid"):  # macOS, before Python 3.13
            return False
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def terminate(self) -> None:
        """Ask it to stop."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and everything that it started."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """End what is left of the group and dismiss the guard; the process itself has ended."""
        self.kill()
        if self._guard.stdin is not None:
            with contextlib.suppress(OSError):
                self._guard.stdin.write(b"\n")
                self._guard.stdin.close()
        self._guard.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


async def spawn(argv: Sequence[str], env: Mapping[str, str], cwd: Path | None, log_file: Path) -> EngineProcess:
    """Start an engine whose output goes to the end of a file.

    :raises OSError: it cannot be started.
    """
    program = shutil.which(argv[0], path=env.get("PATH", os.defpath))
    if program is None:
        raise OSError(errno.ENOENT, "there is no such program that may be executed", argv[0])
    gate, word = os.pipe()
    try:
        with log_file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                GATE,
                "engine",
                program,
                *argv[1:],
                env=dict(env),
                cwd=cwd,
                stdin=gate,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        watcher = _start_guard(process.pid)
        os.write(word, b"go\n")
    finally:
        # Without the word, this ends the shell.
        os.close(gate)
        os.close(word)
    return EngineProcess(process, watcher)


def _start_guard(group: int) -> subprocess.Popen[bytes]:
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__],
        env={},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert watcher.stdin is not None  # noqa: S101 - we asked for a pipe
    watcher.stdin.write(f"{group}\n".encode())
    watcher.stdin.flush()
    return watcher


def end_stale(pid: int) -> None:
    """End the group of an engine whose plugin is dead; the caller has made sure that the pid is still its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
