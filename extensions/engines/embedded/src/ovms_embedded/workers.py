"""The front process's end of a worker: start it, call it, hear of its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any

from ovms_embedded import log, wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CHUNK = 1 << 18
PATIENCE = 2.0
"""Seconds that a worker has to end by itself once its pipe is closed."""
_LEVELS = {name.lower(): level for name, level in log.LEVELS.items()}


class LoadFailed(Exception):
    """The worker could not load its graph, with the reason in the library's words."""


class CallFailed(Exception):
    """A call ended without a result.

    :param kind: ``wire.INVALID``, ``wire.PRECONDITION`` or ``wire.INTERNAL``.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Call:
    """One request inside a worker."""

    __slots__ = ("_items", "_outcome", "_waiter", "_worker", "number")

    def __init__(self, worker: Worker, number: int) -> None:
        self.number = number
        self._worker = worker
        self._items: list[Any] = []
        self._outcome: list[Any] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def wake(self, item: Any = None, outcome: list[Any] | None = None) -> None:  # noqa: ANN401 - items are the servable's
        """Take what the worker said."""
        if outcome is None:
            self._items.append(item)
        else:
            self._outcome = outcome
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def batches(self) -> AsyncIterator[list[Any]]:
        """Yield what arrived since the last time, until the call ends; then ``result`` is there.

        :raises CallFailed: the call failed.
        """
        while True:
            if self._items:
                items, self._items = self._items, []
                yield items
            elif self._outcome is not None:
                self._check()
                return
            else:
                await self._wait()

    async def result(self) -> Any:  # noqa: ANN401 - results are the servable's
        """Return the call's result once it is there.

        :raises CallFailed: the call failed.
        """
        while self._outcome is None:
            await self._wait()
        self._check()
        return self._outcome[2]

    def _check(self) -> None:
        if self._outcome is not None and self._outcome[0] == wire.ERROR:
            raise CallFailed(self._outcome[2], self._outcome[3])

    def close(self) -> None:
        """Tell the worker to stop, unless the call has ended."""
        self._worker.drop(self)

    @property
    def ended(self) -> bool:
        """Whether the worker has said its last word."""
        return self._outcome is not None


class Worker:
    """A running worker process."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self.info: dict[str, Any] = {}
        self.pid = process.pid
        self.on_exit: Callable[[str], None] | None = None
        self._process = process
        self._name = name
        self._calls: dict[int, Call] = {}
        self._next = 0
        self._closing = False
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(), name=f"worker of {name}")

    @classmethod
    async def start(cls, name: str, spec: dict[str, Any]) -> Worker:
        """Start a worker and let it load a graph.

        :raises LoadFailed: it could not.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "ovms_embedded.worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        worker = cls(process, name)
        worker._send([wire.LOAD, spec])
        try:
            await worker._ready
        except BaseException:
            await worker.close()
            raise
        return worker

    @property
    def running(self) -> int:
        """How many calls have not ended."""
        return len(self._calls)

    def call(self, operation: str, payload: dict[str, Any]) -> Call:
        """Start a call; close it when nobody waits for it any more."""
        self._next += 1
        call = Call(self, self._next)
        if self._closing or self._reader.done():
            call.wake(outcome=[wire.ERROR, call.number, wire.INTERNAL, "The graph was unloaded."])
            return call
        self._calls[call.number] = call
        self._send([wire.CALL, call.number, operation, payload])
        return call

    def drop(self, call: Call) -> None:
        """Forget a call, and tell the worker so if it still runs."""
        if self._calls.pop(call.number, None) is not None:
            self._send([wire.CANCEL, call.number])

    async def close(self) -> None:
        """End the process; what still runs fails."""
        self._closing = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), PATIENCE)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._reader

    def _send(self, message: list[Any]) -> None:
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(wire.pack(message))

    async def _read(self) -> None:
        source = self._process.stdout
        if source is None:
            return
        unpacker = wire.Unpacker()
        while data := await source.read(CHUNK):
            for message in unpacker.feed(data):
                self._take(message)
        code = await self._process.wait()
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        text = f"The worker of {self._name} ended with {cause}."
        if not self._ready.done():
            self._ready.set_exception(LoadFailed(text))
        for call in list(self._calls.values()):
            call.wake(outcome=[wire.ERROR, call.number, wire.INTERNAL, text])
        self._calls.clear()
        if not self._closing and self.on_exit:
            self.on_exit(text)

    def _take(self, message: list[Any]) -> None:
        kind = message[0]
        if kind == wire.ITEMS:
            for number, item in message[1]:
                if call := self._calls.get(number):
                    call.wake(item)
        elif kind in (wire.END, wire.ERROR):
            if call := self._calls.pop(message[1], None):
                call.wake(outcome=message)
        elif kind == wire.LOG:
            logging.getLogger(f"ovms.{message[2]}").log(_LEVELS[message[1]], "%s: %s", self._name, message[3])
        elif self._ready.done():
            return
        elif kind == wire.READY:
            self.info = message[1]
            self._ready.set_result(None)
        else:
            self._ready.set_exception(LoadFailed(message[1]))
