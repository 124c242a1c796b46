"""Idle models are unloaded if a setting asks for it, never while they work, and never when pinned."""

import anyio
import pytest

from ovms_kernel.models.memory import RESERVE


async def loaded(world, tiny, *names):
    for name in names:
        await world.ingest.import_(tiny("embeddings"), name)
        await world.residency.load(name)


async def gone(world, *names):
    with anyio.fail_after(3):
        while not all(("unloaded", name) in world.heard for name in names):  # noqa: ASYNC110 - told by events alone
            await anyio.sleep(0.01)


async def test_idle_models_are_unloaded_and_come_back_on_request(make_world, tiny):
    world = make_world(idle_unload=0.1)
    async with world.residency:
        await loaded(world, tiny, "a")
        await gone(world, "a")
        assert world.engine.state("a") == "END"
        await world.use("a")
        assert world.engine.state("a") == "AVAILABLE"


async def test_pinned_models_and_models_at_work_stay(make_world, tiny):
    world = make_world(idle_unload=0.1, pinned=("a",), sections={"models": {"b": {"pinned": "on"}}})
    async with world.residency:
        await loaded(world, tiny, "a", "b", "busy")
        async with world.residency.use("embeddings", "busy"):
            world.heard.clear()
            await loaded(world, tiny, "idle")
            await gone(world, "idle")
            assert world.loaded() == {"a", "b", "busy"}
        await gone(world, "busy")
        assert world.loaded() == {"a", "b"}


async def test_one_model_may_have_a_limit_of_its_own(make_world, tiny):
    world = make_world(sections={"models": {"a": {"idle_unload": "0.1"}}})
    async with world.residency:
        await loaded(world, tiny, "a", "b")
        await gone(world, "a")
        assert world.loaded() == {"b"}


async def test_a_request_says_how_long_its_model_stays(make_world, tiny):
    world = make_world(idle_unload=0.1)
    async with world.residency:
        await loaded(world, tiny, "kept", "other")
        async with world.residency.use("embeddings", "kept", keep_alive=-1):
            pass
        await gone(world, "other")
        assert world.loaded() == {"kept"}
        async with world.residency.use("embeddings", "kept", keep_alive=0):
            world.heard.clear()
        await gone(world, "kept")


async def test_a_keep_alive_of_zero_unloads_at_once(world, tiny):
    await loaded(world, tiny, "a")
    async with world.residency.use("embeddings", "a", keep_alive=0):
        pass
    await gone(world, "a")
    for _ in range(2):  # which says nothing of later requests
        async with world.residency.use("embeddings", "a"):
            pass
    await anyio.sleep(0.1)
    assert world.loaded() == {"a"}


async def test_what_a_host_calls_unneeded_stays_until_its_memory_is_needed(world, tiny):
    await loaded(world, tiny, "hinted", "older")
    await world.use("older")
    await world.use("hinted")
    world.residency.hint("hinted")
    world.residency.hint("of another engine")
    assert world.loaded() == {"hinted", "older"}
    await world.ingest.import_(tiny("embeddings"), "new")
    world.memory.available = lambda: RESERVE
    await world.residency.load("new")
    assert world.loaded() == {"new", "older"}, "it goes although it was used last"


@pytest.mark.parametrize("again", ["use", "load"])
async def test_a_hint_is_forgotten_when_the_model_is_wanted_again(world, tiny, again):
    await loaded(world, tiny, "a")
    world.residency.hint("a")
    await (world.use if again == "use" else world.residency.load)("a")
    assert not world.residency.table["a"].hinted
