"""The front process's end of a worker: start it, call it, hear of its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, cast

from ovms_embedded import log, wire
from ovms_embedded.guard import volunteer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

MODULE = "ovms_embedded.worker"
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


class Worker(asyncio.SubprocessProtocol):
    """A running worker process."""

    def __init__(self) -> None:
        self.info: dict[str, Any] = {}
        self.on_exit: Callable[[str], None] | None = None
        self.pid = 0
        self.memory_limit = 0
        """Bytes that it may take; 0 until its model is loaded."""
        self._name = "no model"
        self._calls: dict[int, Call] = {}
        self._dropped: dict[int, float] = {}
        """When everybody left a call that the worker has not ended yet, by its number."""
        self._heard = 0.0
        """When the worker last said anything."""
        self._cause = ""
        """Why it was ended, if it was."""
        self._next = 0
        self._closing = False
        self._unpacker = wire.Unpacker()
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._process: asyncio.SubprocessTransport
        self._input: asyncio.WriteTransport

    @classmethod
    async def spawn(cls, module: str = MODULE) -> Worker:
        """Start the process: it imports what it needs and waits for its graph.

        :param module: the program that it runs.
        """
        loop = asyncio.get_running_loop()
        command = (sys.executable, "-P", "-X", "utf8", "-m", module)
        _, worker = await loop.subprocess_exec(cls, *command, stderr=None)
        return worker

    async def load(self, name: str, spec: dict[str, Any]) -> None:
        """Load a graph; the process ends if it cannot.

        :param name: the model's, for messages.
        :raises LoadFailed: it could not.
        """
        self._name = name
        self._send([wire.LOAD, spec])
        try:
            await self._ready
        except BaseException:
            await self.close()
            raise

    def call(self, operation: str, payload: dict[str, Any]) -> Call:
        """Start a call; close it when nobody waits for it any more."""
        self._next += 1
        call = Call(self, self._next)
        if self._closing or self._gone.done():
            call.wake(outcome=[wire.ERROR, call.number, wire.INTERNAL, "The graph was unloaded."])
            return call
        try:
            self._send([wire.CALL, call.number, operation, payload])
        except (OverflowError, TypeError, UnicodeEncodeError):
            text = "The request holds a number of more than 64 bits or text that is not Unicode"
            call.wake(outcome=[wire.ERROR, call.number, wire.INVALID, text])
        else:
            self._calls[call.number] = call
        return call

    def drop(self, call: Call) -> None:
        """Forget a call, and tell the worker so if it still runs."""
        if self._calls.pop(call.number, None) is not None:
            self._dropped[call.number] = time.monotonic()
            self._send([wire.CANCEL, call.number])

    @property
    def busy(self) -> bool:
        """Whether it works on a call, even on one that nobody waits for."""
        return bool(self._calls or self._dropped)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return not self._gone.done()

    def is_stuck(self, since: float) -> bool:
        """Tell whether it has worked since then, in silence, on a call that nobody waits for.

        Workers take calls in order, so an older call that somebody waits for may be what it works on.
        """
        for number, left in self._dropped.items():
            if max(left, self._heard) < since and not any(older < number for older in self._calls):
                return True
        return False

    def kill(self, cause: str = "") -> None:
        """End the process at once; what still runs fails with that cause, else with the way in which it ended."""
        self._cause = cause
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """End the process; what still runs fails."""
        self._closing = True
        self._input.close()
        if not (await asyncio.wait([self._gone], timeout=PATIENCE))[0]:
            self.kill()
            await self._gone
        self._process.close()

    def _send(self, message: list[Any]) -> None:
        if not self._input.is_closing():
            self._input.write(wire.pack(message))

    # -- what the event loop calls ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the pipes of the process."""
        self._process = cast("asyncio.SubprocessTransport", transport)
        self.pid = self._process.get_pid() or 0
        volunteer(self.pid)
        self._input = cast("asyncio.WriteTransport", self._process.get_pipe_transport(0))

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002 - it is always standard output
        """Hand on what the worker said."""
        for message in self._unpacker.feed(data):
            self._take(message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the exit code says more
        """Fail what still runs: the process has ended and everything that it said is read."""
        code = self._process.get_returncode() or 0
        cause = f"was ended: {self._cause}" if self._cause else ending(code)
        text = f"The worker of {self._name} {cause}."
        if not self._ready.done():
            self._ready.set_exception(LoadFailed(text))
            self._ready.exception()  # the load that waited for it may have been cancelled
        for call in list(self._calls.values()):
            call.wake(outcome=[wire.ERROR, call.number, wire.INTERNAL, text])
        self._calls.clear()
        if not self._gone.done():
            self._gone.set_result(None)
        if not self._closing and self.on_exit:
            self.on_exit(text)

    def _take(self, message: list[Any]) -> None:
        kind = message[0]
        self._heard = time.monotonic()
        if kind == wire.ITEMS:
            for number, item in message[1]:
                if call := self._calls.get(number):
                    call.wake(item)
        elif kind in (wire.END, wire.ERROR):
            self._dropped.pop(message[1], None)
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


class Spare:
    """A process that waits for what it is to load, so that a load does not wait for a process and its imports.

    :param wanted: whether there is one at all.
    :param module: the program that it runs.
    """

    def __init__(self, *, wanted: bool, module: str = MODULE) -> None:
        self._wanted = wanted
        self._module = module
        self._worker: Worker | None = None
        self._lock = asyncio.Lock()

    async def take(self) -> Worker:
        """Return the process that waits, or else a new one."""
        worker, self._worker = self._worker, None
        if worker is not None and worker.alive:
            return worker
        return await Worker.spawn(self._module)

    async def refill(self) -> None:
        """Start the next one, unless one waits or none is wanted."""
        async with self._lock:
            if self._wanted and (self._worker is None or not self._worker.alive):
                self._worker = await Worker.spawn(self._module)

    async def close(self) -> None:
        """End the one that waits; there is none any more."""
        async with self._lock:
            self._wanted = False
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.kill()  # it may be in the middle of its imports, and has nothing to lose
                await worker.close()


def ending(code: int) -> str:
    """Return how a process ended, in words.

    :param code: as Python's subprocess gives it: negative for a signal.
    """
    if code >= 0:
        return f"ended with exit code {code}"
    words = {
        -9: "was killed (signal 9): by the system because memory ran out, or by another program",
        -15: "was ended by another program (signal 15)",
        -11: "crashed (segmentation fault)",
        -6: "crashed (aborted)",
        -4: "crashed: this processor lacks instructions that it needs",
    }
    return words.get(code, f"was ended by signal {-code}")
