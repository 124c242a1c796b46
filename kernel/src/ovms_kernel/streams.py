"""What a coroutine sends or reports, as an async generator."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from anyio.streams.memory import MemoryObjectSendStream

T = TypeVar("T")

REPORTS = 900
"""Reports that may wait for a consumer."""


async def yielded(
    work: Callable[[MemoryObjectSendStream[T]], Awaitable[None]], waiting: int = 0
) -> AsyncGenerator[T, None]:
    """Yield what a coroutine sends, and raise its error at the end; closing the generator cancels it and awaits it.

    :param waiting: items that it may send before the generator's consumer takes them; then it waits too.
    """
    send, receive = anyio.create_memory_object_stream[T](waiting)

    async def run() -> None:
        async with send:
            await work(send)

    # No task group, which must not be open while a generator's consumer works; this task ends with the generator.
    task = asyncio.create_task(run())  # noqa: TID251
    try:
        async for item in receive:
            yield item
        await task
    finally:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task])
        send.close()  # if it was cancelled before it began
        receive.close()
        if not task.cancelled():
            task.exception()


def reported(work: Callable[[Callable[[T], None]], Awaitable[object]]) -> AsyncGenerator[T, None]:
    """Yield what a coroutine reports with the function that it gets; a consumer that is too slow misses some of it."""

    async def run(send: MemoryObjectSendStream[T]) -> None:
        def report(item: T) -> None:
            with suppress(anyio.WouldBlock):
                send.send_nowait(item)

        await work(report)

    return yielded(run, REPORTS)
