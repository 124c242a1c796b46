"""The front process's end of a model's chat template: processes that render it, none of which can hold up others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ovms_embedded import log, wire
from ovms_embedded.guard import processor_time
from ovms_embedded.rest.errors import Invalid
from ovms_embedded.workers import CallFailed, LoadFailed, Spare

if TYPE_CHECKING:
    from ovms_embedded.workers import Call, Worker

LIMIT = 3.0
"""Seconds that a template may render; the largest ones take some hundredths."""
WORK, ROUNDS = 0.5, 10
"""Seconds of a processor without which a template is not blamed on a busy machine, for so many times the limit."""
PATIENCE = 0.05
"""Seconds to wait for a process before another one is started."""
KEPT, MOST = 2, 4
"""Processes of one model: those that stay, and those that there are at most."""
MODULE = "ovms_embedded.worker.renderer"
FAILED = "Failed to apply chat template: "
NO_TEMPLATE = "The model has no chat template, so it serves completions only."


class _Ended(Invalid):
    """The process ended while it started or rendered."""


class ChatTemplate:
    """Renders the prompts of one model.

    Each process renders one prompt at a time. Where one takes longer than ``PATIENCE`` the others get another process,
    and where it takes longer than ``LIMIT`` its process ends.
    """

    def __init__(self, name: str) -> None:
        self.problem = NO_TEMPLATE
        """Why chat is not served, or what it lacks."""
        self._name = name
        self._spec: dict[str, Any] = {"template": ""}
        self._first = Spare(wanted=True, module=MODULE)
        self._idle: asyncio.LifoQueue[Worker] = asyncio.LifoQueue()
        self._starting = 0
        self._processes: set[Worker] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def prepare(self) -> None:
        """Start the first process, which imports what it needs while the model loads."""
        await self._first.refill()

    async def load(self, spec: dict[str, Any], *, calls_tools: bool) -> None:
        """Take the template, and say in the log what is wrong with it.

        :param spec: ``template``, ``tool_template`` and ``tokens``, as ``renderer.py`` wants them.
        :param calls_tools: the model calls tools, so that its template must render past calls.
        """
        self._spec = spec
        if spec["template"]:
            self.problem = ""
            try:
                found = await self._ask("describe", {})
            except Invalid as error:
                self.problem = str(error)
            else:
                if calls_tools and found["drops_tool_calls"]:
                    self.problem = "The chat template does not render the tool calls of earlier turns."
        else:
            await self._first.close()
        if self.problem:
            log.calculator.warning("%s: %s", self._name, self.problem)

    async def render(self, messages: list[dict[str, Any]], tools: list[Any], context: dict[str, Any]) -> str:
        """Return the prompt of a request.

        :raises Invalid: the template refuses the request, fails, or takes too long.
        """
        if not self._spec["template"]:
            raise Invalid(FAILED + NO_TEMPLATE)
        prompt = await self._ask("render", {"messages": messages, "tools": tools, "context": context})
        if not prompt:
            raise Invalid("Final prompt after applying chat template is empty")
        return str(prompt)

    async def close(self) -> None:
        """End the processes; what still renders fails."""
        self._closed = True
        await self._first.close()
        for process in self._processes:
            process.kill()
        await asyncio.gather(*self._tasks, *(process.close() for process in self._processes))

    async def _ask(self, operation: str, payload: dict[str, Any]) -> Any:  # noqa: ANN401 - the renderer's results
        try:
            return await self._try(operation, payload)
        except _Ended:
            # Another program may have killed it, or the system for want of memory. A template would do so again.
            return await self._try(operation, payload)

    async def _try(self, operation: str, payload: dict[str, Any]) -> Any:  # noqa: ANN401 - the renderer's results
        process = await self._take()
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._finish(process, process.call(operation, payload), outcome))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await outcome

    async def _take(self) -> Worker:
        """Return a process that does nothing.

        :raises Invalid: the model is unloaded, or no process starts.
        """
        if self._closed:
            text = "The graph was unloaded."
            raise Invalid(text, wire.INTERNAL)
        while self._processes or self._starting:
            try:
                async with asyncio.timeout(PATIENCE):
                    process = await self._idle.get()
            except TimeoutError:
                if len(self._processes) + self._starting < MOST:
                    break
            else:
                if process in self._processes:  # else it was killed while it was idle
                    return process
        return await self._start()

    async def _start(self) -> Worker:
        self._starting += 1
        try:
            process = await self._first.take()
            await process.load(f"{self._name}, chat template", self._spec)
        except LoadFailed as error:
            raise _Ended(FAILED + str(error), wire.INTERNAL) from error
        finally:
            self._starting -= 1
        self._processes.add(process)
        process.on_exit = lambda _: self._processes.discard(process)
        return process

    async def _finish(self, process: Worker, call: Call, outcome: asyncio.Future[Any]) -> None:
        """Wait for the end of a call, even if nobody else does any more, and keep its process or end it."""
        usable = len(self._processes) <= KEPT
        answer: Any = None
        try:
            answer = await _within_limit(process, call)
        except TimeoutError:
            usable = False
            process.kill()
            answer = Invalid(f"{FAILED}it takes longer than {LIMIT:.0f} seconds")
        except CallFailed as error:
            ended = error.kind == wire.INTERNAL
            usable = usable and not ended
            answer = _Ended(FAILED + "it takes too much memory or crashes") if ended else Invalid(FAILED + str(error))
        if not outcome.done():
            if isinstance(answer, Invalid):
                outcome.set_exception(answer)
            else:
                outcome.set_result(answer)
        if usable and not self._closed:
            self._idle.put_nowait(process)
        else:
            self._processes.discard(process)
            await process.close()


async def _within_limit(process: Worker, call: Call) -> Any:  # noqa: ANN401 - the renderer's results
    """Return what a call returns, if it does so within ``LIMIT`` seconds or has had little of a processor until then.

    :raises TimeoutError: it takes longer.
    """
    began = processor_time(process.pid)
    result = asyncio.ensure_future(call.result())
    try:
        for _ in range(ROUNDS):
            await asyncio.wait([result], timeout=LIMIT)
            if result.done():
                return result.result()
            if processor_time(process.pid) - began > WORK:
                break
        raise TimeoutError
    finally:
        result.cancel()
