"""The worker's end of the pipe, and the loop for pipelines that do one thing at a time."""

from __future__ import annotations

import os
import queue
import select
import sys
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

from ovms_embedded import wire

if TYPE_CHECKING:
    from collections.abc import Callable

READ_SIZE = 1 << 16
"""Bytes of one read: what a pipe holds. More would have the memory mapped anew for each message."""


class Pipe:
    """The worker's end of the pipe: calls come in one by one, answers go out under a lock.

    A cancel must reach a call that runs. Servables that the library keeps for long let a thread listen, and look into
    ``cancelled`` when the library calls them. The others do without the thread, because waking it and then the servable
    takes time from every call; they ask for what has arrived between two steps.
    """

    def __init__(self, source: BinaryIO, sink: int) -> None:
        self.inbox: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self.cancelled: set[int] = set()
        self._source = source.fileno()
        self._sink = sink
        self._lock = threading.Lock()
        self._unpacker = wire.Unpacker()
        self._listening = False

    def listen(self) -> None:
        """Let a thread take what comes, from now on."""
        if not self._listening:
            self._listening = True
            threading.Thread(target=self._take_all, name="pipe", daemon=True).start()

    def receive(self) -> list[Any]:
        """Return the next message; ends the process when the front process is gone."""
        if not self._listening:
            while self.inbox.empty():
                self._take()
        return self.inbox.get()

    def arrived(self) -> list[Any] | None:
        """Return the next message if there is one."""
        if not self._listening:
            while _readable(self._source):
                self._take()
        return None if self.inbox.empty() else self.inbox.get()

    def check(self, number: int) -> None:
        """Between two steps of a call that takes long: see whether anybody waits for it.

        :raises Dropped: nobody does.
        """
        if not self._listening:
            while _readable(self._source):
                self._take()
        if number in self.cancelled:
            raise Dropped

    def _take_all(self) -> None:
        while True:
            self._take()

    def _take(self) -> None:
        data = os.read(self._source, READ_SIZE)
        if not data:
            os._exit(0)  # the front process closed the pipe or died: there is no reason to live
        for message in self._unpacker.feed(data):
            if message[0] == wire.CANCEL:
                self.cancelled.add(message[1])
            self.inbox.put(message)

    def send(self, message: list[Any]) -> None:
        """Send a message; blocks while the front process does not read."""
        data = memoryview(wire.pack(message))
        with self._lock:
            while data:
                data = data[os.write(self._sink, data) :]

    def log(self, level: str, logger: str, text: str) -> None:
        """Write a line into the server's log."""
        self.send([wire.LOG, level, logger, text])


def _readable(source: int) -> bool:
    if sys.platform == "win32":
        import _winapi
        import msvcrt

        try:
            return bool(_winapi.PeekNamedPipe(msvcrt.get_osfhandle(source), 0)[0])
        except OSError:  # closed at the other end, which reading tells
            return True
    return bool(select.select([source], [], [], 0)[0])


def serve(pipe: Pipe, operations: dict[str, Callable[[int, dict[str, Any]], Any]], *, listen: bool = False) -> None:
    """Answer calls one after the other, for pipelines that do one thing at a time.

    :param listen: calls take long and look whether they are cancelled.
    """
    if listen:
        pipe.listen()
    while True:
        message = pipe.receive()
        if message[0] == wire.CANCEL:
            pipe.cancelled.discard(message[1])
            continue
        _, number, operation, payload = message
        if number in pipe.cancelled:
            pipe.send([wire.END, number, None])
            continue
        try:
            answer = [wire.END, number, operations[operation](number, payload)]
        except Exception as error:  # noqa: BLE001 - whatever the library throws belongs to this call alone
            answer = failure(pipe, number, operation, error)
        pipe.send(answer)


def failure(pipe: Pipe, number: int, operation: str, error: Exception) -> list[Any]:
    """Return the message that ends a call whose work threw."""
    if isinstance(error, Dropped):
        return [wire.END, number, None]
    if isinstance(error, Refused):
        return [wire.ERROR, number, error.kind, str(error)]
    # Runtime exceptions inside a calculator's Process() are its execution error: 400.
    pipe.log("error", "serving", f"{operation}: {error}")
    return [wire.ERROR, number, wire.INVALID, tidy(error)]


class Dropped(Exception):
    """A call that nobody waits for any more."""


class Refused(Exception):
    """A call that cannot be done, with a sentence for the client."""

    def __init__(self, text: str, kind: str = wire.INVALID) -> None:
        super().__init__(text)
        self.kind = kind


def tidy(error: BaseException) -> str:
    """Return a library's error without the path of the machine that built the library."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and "/home/" not in line and "\\src\\" not in line]
    return " ".join(kept or lines[-1:]) or type(error).__name__
