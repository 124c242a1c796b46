"""The worker's end of the pipe, and the loop for pipelines that do one thing at a time."""

from __future__ import annotations

import os
import queue
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

from ovms_embedded import wire

if TYPE_CHECKING:
    from collections.abc import Callable


class Pipe:
    """The worker's end of the pipe: calls come in by a thread, answers go out under a lock.

    A cancel is not queued behind the calls; whoever runs a call asks ``is_cancelled``.
    """

    def __init__(self, source: BinaryIO, sink: int) -> None:
        self.inbox: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self.cancelled: set[int] = set()
        self._source = source
        self._sink = sink
        self._lock = threading.Lock()

    def read_all(self) -> None:
        """Read until the front process closes the pipe or dies; then this process has no reason to live."""
        unpacker = wire.Unpacker()
        descriptor = self._source.fileno()
        while data := os.read(descriptor, 1 << 20):
            for message in unpacker.feed(data):
                if message[0] == wire.CANCEL:
                    self.cancelled.add(message[1])
                self.inbox.put(message)
        os._exit(0)

    def send(self, message: list[Any]) -> None:
        """Send a message; blocks while the front process does not read."""
        data = memoryview(wire.pack(message))
        with self._lock:
            while data:
                data = data[os.write(self._sink, data) :]

    def log(self, level: str, logger: str, text: str) -> None:
        """Write a line into the server's log."""
        self.send([wire.LOG, level, logger, text])


def serve(pipe: Pipe, operations: dict[str, Callable[[int, dict[str, Any]], Any]]) -> None:
    """Answer calls one after the other, for pipelines that do one thing at a time."""
    while True:
        message = pipe.inbox.get()
        if message[0] == wire.CANCEL:
            pipe.cancelled.discard(message[1])
            continue
        _, number, operation, payload = message
        if number in pipe.cancelled:
            pipe.send([wire.END, number, None])
            continue
        try:
            answer = [wire.END, number, operations[operation](number, payload)]
        except Refused as refused:
            answer = [wire.ERROR, number, refused.kind, str(refused)]
        except Exception as error:  # noqa: BLE001 - whatever the library throws belongs to this call alone
            # Runtime exceptions inside a calculator's Process() are its execution error: 400 (spec D.1).
            pipe.log("error", "serving", f"{operation}: {error}")
            answer = [wire.ERROR, number, wire.INVALID, tidy(error)]
        pipe.send(answer)


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
