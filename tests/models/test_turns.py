"""Models that do not fit together: who goes, who waits, and for how long. Each one needs 1100 bytes here."""

import itertools
import math
import time

import anyio
import pytest

from ovms_kernel.errors import EngineFailed, Unavailable
from ovms_kernel.models.plan import State

TWO = "2500"
"""A budget for two models."""


@pytest.fixture
async def make(make_world, tiny):
    """Make a world with a few installed models and room for some of them."""
    worlds = []

    async def make(*names, memory_budget=TWO, **settings):
        world = make_world(memory_budget=memory_budget, **settings)
        for name in names:
            await world.ingest.import_(tiny("embeddings"), name)
        await world.residency.__aenter__()
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        await world.residency.__aexit__(None, None, None)


def taken(world):
    return sum(each.bytes for each in world.residency.table.values() if each.state in (State.LOADED, State.LOADING))


async def until(world, state, name):
    """Return when a model is in that state."""
    table = world.residency.table
    with anyio.fail_after(5):
        while name not in table or table[name].state is not state:  # noqa: ASYNC110 - nothing tells of it
            await anyio.sleep(0.002)


async def waiting(world, name):
    await until(world, State.WAITING, name)


async def loading(world, name):
    await until(world, State.LOADING, name)


async def test_the_longest_unused_goes_and_only_as_many_as_needed(make):
    world = await make("a", "b", "c")
    await world.use("a")
    await world.use("b")
    world.residency.table["a"].last_used -= 60
    world.residency.table["b"].last_used -= 90
    await world.use("c")
    assert world.loaded() == {"a", "c"}
    assert world.engine.loads == ["a", "b", "c"]


async def test_models_that_fit_together_are_never_swapped(make):
    world = await make("a", "b")
    for _ in range(20):
        await world.use("a")
        await world.use("b")
    assert world.engine.loads == ["a", "b"]


async def test_what_is_in_use_is_waited_for_and_nothing_goes_before_that(make):
    world = await make("a", "b", "c")
    await world.use("b")
    async with anyio.create_task_group() as group:  # noqa: SIM117 - the group ends after the uses
        async with world.residency.use("embeddings", "a"), world.residency.use("embeddings", "b"):
            group.start_soon(world.use, "c")
            await waiting(world, "c")
            assert world.loaded() == {"a", "b"}
    assert "c" in world.loaded()
    assert len(world.loaded()) == 2


async def test_a_model_at_work_admits_no_new_request_after_a_while_so_that_both_get_their_share(make):
    world = await make("a", "b", memory_budget="1500", switch_patience=0.3)
    world.engine.seconds = 0.01
    answered, longest = {"a": 0, "b": 0}, 0.0
    end = time.monotonic() + 4

    async def ask(name):
        nonlocal longest
        while time.monotonic() < end:
            began = time.monotonic()
            async with world.residency.use("embeddings", name):
                longest = max(longest, time.monotonic() - began)
                assert taken(world) <= 1500
                await anyio.sleep(0.02)
                answered[name] += 1

    async with anyio.create_task_group() as group:
        for name in ("a", "b") * 3:
            group.start_soon(ask, name)
    assert min(answered.values()) > max(answered.values()) / 3, answered
    assert longest < 1.5, "the patience, a load and what runs"
    assert len(world.engine.loads) < 30, "they are not swapped at each request"


async def test_several_that_wait_share_the_patience(make):
    names = ("a", "b", "c", "d")
    world = await make(*names, memory_budget="1500", switch_patience=0.6)
    answered = dict.fromkeys(names, 0)
    longest = 0.0
    end = time.monotonic() + 4

    async def ask(name):
        nonlocal longest
        while time.monotonic() < end:
            began = time.monotonic()
            async with world.residency.use("embeddings", name):
                longest = max(longest, time.monotonic() - began)
                await anyio.sleep(0.01)
                answered[name] += 1

    async with anyio.create_task_group() as group:
        for name in names * 2:
            group.start_soon(ask, name)
    assert min(answered.values()) > max(answered.values()) / 4, answered
    assert longest < 3


async def test_two_clients_in_turn_do_not_swap_at_each_request(make):
    world = await make("a", "b", memory_budget="1500", switch_patience=0.5)
    world.engine.seconds = 0.05
    end = time.monotonic() + 2

    async def ask(name):
        while time.monotonic() < end:
            await world.use(name)
            await anyio.sleep(0.001)

    async with anyio.create_task_group() as group:
        group.start_soon(ask, "a")
        group.start_soon(ask, "b")
    assert len(world.engine.loads) <= 8


async def test_a_request_that_waits_in_vain_says_what_holds_the_memory(make):
    world = await make("a", "b", memory_budget="1500", switch_patience=0.1)
    async with world.residency.use("embeddings", "a"), world.residency.use("embeddings", "a"):
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"b needs about 1\.1 KB .* \(loaded models: a \(in use by 2\)\)"):
            await world.use("b")
        assert 0.1 < time.monotonic() - began < 2
        await world.use("a")  # which is open again
    await world.use("b")


async def test_what_is_pinned_never_goes_and_nobody_waits_for_it(make):
    world = await make("a", "b", memory_budget="1500", pinned=("a",))
    await world.use("a")
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"a \(pinned\)"):
        await world.use("b")
    assert time.monotonic() - began < 1
    assert world.loaded() == {"a"}


async def test_a_model_can_be_pinned_while_it_is_loaded_by_any_process(make):
    world = await make("a", "b", memory_budget="1500")
    await world.use("a")
    await world.store.note("a", pinned=True)
    with pytest.raises(Unavailable, match=r"a \(pinned\)"):
        await world.use("b")
    await world.store.note("a", pinned=False)
    await world.use("b")
    assert world.loaded() == {"b"}


async def test_only_so_many_models_are_loaded(make):
    world = await make("a", "b", "c", memory_budget="", max_loaded=2)
    for name in ("a", "b", "c"):
        await world.use(name)
        world.residency.table[name].last_used -= 60
    assert world.loaded() == {"b", "c"}


async def test_loads_run_one_after_another_in_the_order_of_arrival(make):
    names = ["d", "b", "c", "a"]
    world = await make(*names, memory_budget="1GB")
    world.engine.seconds = 0.5
    async with anyio.create_task_group() as group:
        group.start_soon(world.use, names[0])
        await loading(world, names[0])
        for name in names[1:]:
            group.start_soon(world.use, name)
            await waiting(world, name)
    assert world.engine.loads == names


async def test_a_small_model_need_not_wait_behind_one_that_waits_for_memory(make, tiny):
    world = await make("a", "big", "small", memory_budget="2500", switch_patience=10)
    (world.store.find("big").directory / "openvino_model.bin").write_bytes(b"x" * 2000)
    await world.store.note("big", load_bytes=2000)
    await world.store.note("small", load_bytes=300)
    async with anyio.create_task_group() as group, world.residency.use("embeddings", "a"):
        group.start_soon(world.use, "big")
        await waiting(world, "big")
        with anyio.fail_after(2):
            await world.use("small")
        assert world.loaded() == {"a", "small"}
    assert world.loaded() == {"big", "small"}


async def test_a_request_that_is_withdrawn_while_it_waits_costs_nobody_anything(make):
    world = await make("a", "b", memory_budget="1500", switch_patience=30)
    async with world.residency.use("embeddings", "a"):
        with anyio.move_on_after(0.1):
            await world.use("b")
    await anyio.sleep(0.1)
    assert world.engine.loads == ["a"]
    assert world.loaded() == {"a"}
    assert world.residency.table["b"].users == 0


async def test_a_failure_is_told_again_for_a_while_and_then_tried_anew(make, monkeypatch):
    monkeypatch.setattr("ovms_kernel.models.residency.RETRY_AFTER", 0.3)
    world = await make("bad")
    world.engine.broken = {"bad"}
    texts = []
    for _ in range(3):
        with pytest.raises(EngineFailed) as caught:
            await world.use("bad")
        texts.append(caught.value.message)
    assert world.engine.loads == ["bad"]
    assert len(set(texts)) == 1
    await anyio.sleep(0.3)
    world.engine.broken = set()
    await world.use("bad")
    assert world.engine.loads == ["bad", "bad"]


async def test_every_user_is_counted_whatever_happens_to_it(make):
    world = await make("a", "b", "c", memory_budget="1500", switch_patience=0.05)
    world.engine.seconds = 0.005

    async def ask(name, limit):
        with anyio.move_on_after(limit):
            try:
                async with world.residency.use("embeddings", name):
                    await anyio.sleep(limit / 3)
            except Unavailable:
                pass

    async with anyio.create_task_group() as group:
        for number, name in zip(range(300), itertools.cycle("abc")):
            group.start_soon(ask, name, 0.001 * (number % 40 + 1))
            await anyio.sleep(0.002)
    assert {each.id: each.users for each in world.residency.table.values()} == {"a": 0, "b": 0, "c": 0}
    for name in "abc":
        with anyio.fail_after(5):
            await world.use(name)
    assert not math.isnan(world.residency.table["a"].last_used)
