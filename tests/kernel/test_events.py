"""Events: order, isolation, time limits, vetoes."""

import time
from types import SimpleNamespace

import anyio
import pluggy
import pytest

from ovms_kernel.api.observers import Refused, hookimpl
from ovms_kernel.events import Events, merge


class Listener:
    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told

    @hookimpl
    def ovms_pulled(self, model: object) -> None:
        self.told.append(self.name)

    @hookimpl
    async def ovms_kernel_stopping(self, reason: str) -> None:
        self.told.append(self.name)


async def test_listeners_are_called_in_the_order_given_and_in_reverse_when_stopping() -> None:
    told: list[str] = []
    events = Events()
    assert events.register({name: Listener(name, told) for name in ("a", "b", "c")}) == {}
    await events.tell("ovms_pulled", model="m")
    assert told == ["a", "b", "c"]
    told.clear()
    await events.tell("ovms_kernel_stopping", reason="test")
    assert told == ["c", "b", "a"]


async def test_a_listener_that_raises_is_reported_and_stops_nothing() -> None:
    told: list[str] = []

    class Broken:
        @hookimpl
        def ovms_pulled(self) -> None:
            raise KeyError("oops")

    events = Events()
    events.register({"broken": Broken(), "fine": Listener("fine", told)})
    await events.tell("ovms_pulled", model="m")
    assert told == ["fine"]
    [failure] = events.failures
    assert (failure.extension, failure.hook) == ("broken", "ovms_pulled")
    assert "oops" in failure.cause


async def test_a_listener_that_exits_does_not_end_the_kernel() -> None:
    class Leaver:
        @hookimpl
        def ovms_pulled(self) -> None:
            raise SystemExit(3)

    events = Events()
    events.register({"leaver": Leaver()})
    await events.tell("ovms_pulled", model="m")
    assert "SystemExit(3)" in events.failures[0].cause


@pytest.mark.parametrize("blocking", [False, True], ids=["awaits for ever", "blocks its thread"])
async def test_a_listener_that_hangs_is_given_up_after_its_time_and_not_asked_again_meanwhile(
    *, blocking: bool
) -> None:
    release = anyio.Event()
    told: list[str] = []

    class Hangs:
        @hookimpl
        def ovms_pulled(self) -> object:
            if not blocking:
                return release.wait()
            while not release.is_set():
                time.sleep(0.01)  # a thread that blocks is what this test is about
            return None

    events = Events(time_limit=0.1)
    events.register({"hangs": Hangs(), "zz": Listener("zz", told)})
    await events.tell("ovms_pulled", model="m")
    assert told == ["zz"]
    assert "no answer within 0.1 s" in events.failures[0].cause
    if blocking:
        await events.tell("ovms_pulled", model="m")
        assert "still busy" in events.failures[1].cause
        assert told == ["zz", "zz"]
    release.set()


async def test_a_coroutine_that_waits_is_given_up_after_its_time_and_cleans_up_first() -> None:
    told: list[str] = []

    class Hangs:
        @hookimpl
        async def ovms_pulled(self) -> None:
            try:
                await anyio.lowlevel.checkpoint()
                await anyio.sleep_forever()
            finally:
                told.append("cleaned up")

    events = Events(time_limit=0.1)
    events.register({"hangs": Hangs(), "zz": Listener("zz", told)})
    await events.tell("ovms_pulled", model="m")
    assert told == ["cleaned up", "zz"]
    assert "no answer within 0.1 s" in events.failures[0].cause


async def test_a_coroutine_that_waits_ends_with_its_caller_and_the_others_are_told() -> None:
    begun, told = anyio.Event(), list[str]()

    class Waits:
        @hookimpl
        async def ovms_pulled(self, model: str) -> None:
            begun.set()
            try:
                await anyio.sleep(0.01 if model == "wrong" else 60)
            except anyio.get_cancelled_exc_class():
                told.append("cancelled")
                raise
            raise ValueError("wrong model")

    class Quick:
        @hookimpl
        async def ovms_pulled(self, model: str) -> None:
            told.append(model)

    events = Events()
    events.register({"waits": Waits(), "zz": Quick()})
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: events.tell("ovms_pulled", model="m"))
        await begun.wait()
        group.cancel_scope.cancel()
    assert told == ["cancelled", "m"]
    await events.tell("ovms_pulled", model="wrong")
    assert [each.cause for each in events.failures] == ["ValueError: wrong model"]


async def test_results_come_with_the_name_of_who_said_them_whether_awaited_or_not() -> None:
    class Sync:
        @hookimpl
        def ovms_check_host(self, host: object) -> list[str]:
            return ["sync"]

    class Async:
        @hookimpl
        async def ovms_check_host(self) -> list[str]:
            await anyio.lowlevel.checkpoint()
            return ["async"]

    class Silent:
        @hookimpl
        def ovms_check_host(self) -> None:
            return None

    events = Events()
    events.register({"a": Sync(), "b": Async(), "c": Silent()})
    assert await events.ask("ovms_check_host", host=None) == [("a", ["sync"]), ("b", ["async"])]


async def test_only_before_and_amend_hooks_may_veto() -> None:
    class Stern:
        @hookimpl
        def ovms_before_pull(self) -> None:
            raise Refused("Not on a Sunday.")

        @hookimpl
        async def ovms_amend_graph(self) -> None:
            raise Refused("Not this graph.")

        @hookimpl
        def ovms_pulled(self) -> None:
            raise Refused("Too late.")

    events = Events()
    events.register({"stern": Stern()})
    with pytest.raises(Refused, match=r"Not on a Sunday\. \(extension stern\)"):
        await events.ask("ovms_before_pull", model=None, plan=None)
    with pytest.raises(Refused, match="Not this graph"):
        await events.ask("ovms_amend_graph", model=None, options=None)
    await events.tell("ovms_pulled", model=None)
    assert events.failures[-1].cause == "Too late."


@pytest.mark.parametrize(
    ("listener", "why"),
    [
        (SimpleNamespace(ovms_puled=hookimpl(lambda: None)), "unknown hook 'ovms_puled'"),
        (SimpleNamespace(ovms_pulled=hookimpl(lambda modle: None)), "modle"),
        (SimpleNamespace(ovms_pulled=pluggy.HookimplMarker("ovms")(wrapper=True)(lambda: (yield))), "wrapper"),
    ],
    ids=["unknown hook", "unknown argument", "wrapper"],
)
async def test_a_listener_that_pluggy_would_misread_is_refused_whole(listener: object, why: str) -> None:
    told: list[str] = []
    events = Events()
    refused = events.register({"bad": listener, "good": Listener("good", told)})
    assert list(refused) == ["bad"]
    assert why in refused["bad"]
    await events.tell("ovms_pulled", model="m")
    assert told == ["good"]
    assert not events.failures


def test_two_extensions_that_set_one_thing_differently_are_both_named() -> None:
    assert merge([("a", {"x": 1}), ("b", {"x": 1, "y": 2})], "option") == {"x": 1, "y": 2}
    with pytest.raises(Refused, match="Extensions a and b both set option x"):
        merge([("a", {"x": 1}), ("b", {"x": 2})], "option")
