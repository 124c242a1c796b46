"""What a program that was started leaves behind: processes and ports, seen while it ran and looked for again after."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


class Traces:
    """Remembers every process below this one, and every port that one of them listens on.

    :param folder: a folder of this run alone, if there is one: a process whose command line names it belongs to the run
        as well, even if it no longer is below us.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._processes: set[psutil.Process] = set()
        self._ports: set[int] = set()

    def look(self) -> None:
        """Remember what is there now."""
        self._processes.update(psutil.Process().children(recursive=True))
        for process in self._processes:
            try:
                self._ports.update(
                    each.laddr.port for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN
                )
            except GONE:
                continue

    def processes(self) -> list[psutil.Process]:
        """Return those that still run; one that only waits for its parent to notice its end does not."""
        return [each for each in {*self._processes, *self._named()} if _runs(each)]

    def left(self) -> Iterator[str]:
        """Describe what is still there."""
        for process in self.processes():
            yield f"process {process.pid} ({_name(process)})"
        for port in sorted(self._ports):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    yield f"port {port}"

    def end(self, patience: float = 5.0) -> None:
        """End what still runs, kindly at first."""
        self.look()
        for end in (psutil.Process.terminate, psutil.Process.kill):
            running = self.processes()
            for process in running:
                try:
                    end(process)
                except GONE:
                    continue
            psutil.wait_procs(running, timeout=patience)

    def _named(self) -> Iterable[psutil.Process]:
        if self._folder is None:
            return
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and any(str(self._folder) in each for each in process.cmdline()):
                    yield process
            except GONE:
                continue


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except GONE:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:80] or process.name()
    except GONE:
        return "just gone"
