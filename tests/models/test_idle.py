"""Idle models are unloaded if a setting asks for it, never while they work, and never when pinned."""

import anyio

from ovms_kernel.values import Call, Outcome


async def loaded(world, tiny, *names):
    for name in names:
        await world.library.import_(tiny("embeddings"), name)
        await world.serving.load(name)
    await world.events.tell("ovms_kernel_started", extensions=())


async def gone(world, name):
    with anyio.fail_after(3):
        while ("unloaded", name) not in world.heard:  # noqa: ASYNC110 - nothing tells of it but the watch under test
            await anyio.sleep(0.01)


async def test_idle_models_are_unloaded_and_come_back_on_request(make_world, tiny):
    world = make_world(idle_unload=0.1)
    await loaded(world, tiny, "a")
    await gone(world, "a")
    assert world.engine.state("a") == "END"
    assert ("unloaded", "a") in world.heard
    await world.serving.ensure("a")
    assert world.engine.state("a") == "AVAILABLE"
    await world.events.tell("ovms_kernel_stopping", reason="test")


async def test_pinned_models_and_models_at_work_stay(make_world, tiny):
    world = make_world(idle_unload=0.1, pinned=("a",), sections={"models": {"b": {"pinned": "true"}}})
    await loaded(world, tiny, "a", "b", "busy", "idle")
    call = Call("1", "embed", "busy", {}, b"")
    await world.events.ask("ovms_before_request", call=call)
    await gone(world, "idle")
    assert set(world.serving.served) == {"a", "b", "busy"}
    await world.events.tell("ovms_request_finished", call=call, outcome=Outcome(200, 0.1, 1))
    await gone(world, "busy")
    assert set(world.serving.served) == {"a", "b"}
    await world.events.tell("ovms_kernel_stopping", reason="test")


async def test_by_default_nothing_is_unloaded(world, tiny):
    await loaded(world, tiny, "a")
    assert not [each for each in world.events._manager.list_name_plugin() if each[0] == "kernel.idle"]
    world.serving.last_used["a"] = 0
    assert "a" in world.serving.served


async def test_one_model_may_have_a_limit_of_its_own(make_world, tiny):
    world = make_world(sections={"models": {"a": {"idle_unload": "0.1"}}})
    await loaded(world, tiny, "a", "b")
    await gone(world, "a")
    assert set(world.serving.served) == {"b"}
    await world.events.tell("ovms_kernel_stopping", reason="test")
