"""What a coroutine sends or reports, as an async generator."""

from collections.abc import Callable
from contextlib import aclosing

import anyio
import anyio.lowlevel
import pytest

from ovms_kernel import streams


async def test_a_consumer_that_is_too_slow_misses_reports_and_gets_the_first_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "REPORTS", 3)

    async def work(report: Callable[[int], None]) -> None:
        for number in range(10):
            report(number)

    assert [each async for each in streams.reported(work)] == [0, 1, 2]


async def test_an_error_comes_after_what_was_reported_before_it() -> None:
    async def work(report: Callable[[int], None]) -> None:
        report(1)
        raise ValueError("broken")

    reports = streams.reported(work)
    assert await anext(reports) == 1
    with pytest.raises(ValueError, match="broken"):
        await anext(reports)


async def test_closing_the_generator_ends_the_work_first() -> None:
    ended: list[str] = []

    async def work(report: Callable[[int], None]) -> None:
        try:
            report(1)
            await anyio.sleep_forever()
        finally:
            report(2)  # nobody hears it, and nothing breaks
            ended.append("work")

    async with aclosing(streams.reported(work)) as reports:
        assert await anext(reports) == 1
    assert ended == ["work"]
