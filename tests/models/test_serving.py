"""Loading and unloading against an engine with OVMS's traps; the numbers are those of spec/ovms.md part K."""

import json
import logging
import time

import anyio
import pytest

from ovms_kernel.errors import BadRequest, EngineFailed, NotFound, Unavailable
from ovms_kernel.values import Endpoint, EngineExit, EngineInfo


async def test_a_model_is_loaded_and_unloaded(world, tiny):
    await world.library.import_(tiny("text_generation"), "me/chat")
    loaded = await world.serving.load("me/chat")
    assert loaded.model.id == "me/chat"
    assert world.engine.state("me/chat") == "AVAILABLE"
    assert [model.id for model in await world.serving.running()] == ["me/chat"]
    await world.serving.unload("me/chat", "test")
    assert world.engine.state("me/chat") == "END"
    assert await world.serving.running() == []
    assert world.entries() == []
    assert [name for name, _ in world.heard] == ["pulled", "ready", "unloaded"]


async def test_a_second_load_is_quick_and_changes_nothing(world, tiny):
    await world.library.import_(tiny("text_generation"), "chat")
    await world.serving.load("chat")
    before = world.settings.config_json.read_bytes()
    assert (await world.serving.load("chat")).seconds == 0
    assert world.settings.config_json.read_bytes() == before
    assert world.engine.loads == ["chat"]


async def test_who_asks_at_the_same_time_gets_the_same_load(world, tiny):
    await world.library.import_(tiny("text_generation"), "chat")
    world.engine.seconds = 0.05
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(world.serving.ensure, "chat")
    assert world.engine.loads == ["chat"]


async def test_a_caller_that_leaves_does_not_stop_the_load(world, tiny):
    await world.library.import_(tiny("text_generation"), "chat")
    world.engine.seconds = 0.1
    with anyio.move_on_after(0.05):
        await world.serving.load("chat")
    await world.serving.ensure("chat")
    assert world.engine.loads == ["chat"]
    assert world.engine.state("chat") == "AVAILABLE"


async def test_k01_a_model_that_fails_is_not_taken_for_loaded(world, tiny):
    await world.library.import_(tiny("text_generation"), "bad")
    world.engine.broken = {"bad"}
    with pytest.raises(EngineFailed, match="no such tensor"):
        await world.serving.load("bad")
    assert world.entries() == []
    assert ("failed", "bad") in world.heard
    with pytest.raises(EngineFailed):
        await world.serving.ensure("bad")
    assert world.engine.loads == ["bad"], "a failure of a moment ago is told again without another try"


async def test_k02_a_changed_graph_alone_is_loaded_again(world, tiny):
    model = await world.library.import_(tiny("text_generation"), "chat")
    await world.serving.load("chat")
    graph = model.directory / "graph.pbtxt"
    graph.write_text(graph.read_text() + "# by hand\n")
    await world.serving.load("chat")
    assert world.engine.loads == ["chat", "chat"]
    assert graph.read_text().endswith("# by hand\n")


async def test_k02_a_model_that_failed_can_be_loaded_when_it_is_whole(world, tiny):
    await world.library.import_(tiny("text_generation"), "chat")
    world.engine.broken = {"chat"}
    with pytest.raises(EngineFailed):
        await world.serving.load("chat")
    world.engine.broken = set()
    await world.serving.load("chat")
    assert world.engine.state("chat") == "AVAILABLE"


async def test_k03_a_broken_entry_hides_no_other(world, tiny):
    for name in ("good", "bad", "later"):
        await world.library.import_(tiny("embeddings"), name)
    await world.serving.load("good")
    world.engine.throwing = {"bad"}
    results = []

    async def load(name: str) -> None:
        try:
            await world.serving.load(name)
        except EngineFailed as error:
            results.append(error.message)

    async with anyio.create_task_group() as group:
        group.start_soon(load, "bad")
        group.start_soon(load, "later")
    assert [model.id for model in await world.serving.running()] == ["good", "later"]
    assert sorted(world.entries()) == ["good", "later"]
    assert len(results) == 1
    assert "bad" in results[0]


async def test_k03_an_entry_left_by_a_crash_is_taken_out(world, tiny):
    for name in ("bad", "good"):
        await world.library.import_(tiny("embeddings"), name)
    root = {"model_config_list": [{"config": {"name": "bad", "base_path": str(world.settings.models_dir / "bad")}}]}
    world.settings.config_json.write_text(json.dumps(root))
    world.engine.throwing = {"bad"}
    await world.serving.load("good")
    assert world.entries() == ["good"]


async def test_k04_a_second_reload_that_says_200_is_not_believed(world, tiny):
    for name in ("bad", "good"):
        await world.library.import_(tiny("text_generation"), name)
    world.engine.broken = {"bad"}
    with pytest.raises(EngineFailed):
        await world.serving.load("bad")
    with pytest.raises(EngineFailed):
        await world.serving.load("bad")
    await world.serving.load("good")
    assert [model.id for model in await world.serving.running()] == ["good"]


async def test_k05_other_work_goes_on_while_the_engine_loads(world, tiny):
    await world.library.import_(tiny("text_generation"), "slow")
    await world.library.import_(tiny("embeddings"), "quick")
    await world.serving.load("quick")
    world.engine.seconds = 0.3
    async with anyio.create_task_group() as group:
        group.start_soon(world.serving.load, "slow")
        await anyio.sleep(0.05)
        began = time.monotonic()
        await world.serving.ensure("quick")
        assert time.monotonic() - began < 0.1


async def test_k16_paths_have_forward_slashes_and_are_absolute(world, tiny):
    model = await world.library.import_(tiny("text_generation"), "me/chat")
    await world.serving.load("me/chat")
    entry = json.loads(world.settings.config_json.read_bytes())["model_config_list"][0]["config"]
    assert entry == {"name": "me/chat", "base_path": model.directory.as_posix()}
    assert 'models_path: "./"' in (model.directory / "graph.pbtxt").read_text()


async def test_after_a_restart_only_what_loads_stays(world, tiny):
    for name in ("a", "b", "c"):
        await world.library.import_(tiny("embeddings"), name)
        await world.serving.load(name)
    world.engine.throwing = {"b"}
    await world.engine.restart()
    await world.serving.reconcile()
    assert sorted(world.serving.served) == ["a", "c"]
    assert world.entries() == ["a", "c"]
    assert ("failed", "b") in world.heard


async def test_d2_21_who_reads_the_config_meanwhile_never_reads_half_of_it(world, tiny):
    for name in ("a", "b"):
        await world.library.import_(tiny("embeddings"), name)
    await world.serving.load("a")
    before = world.settings.config_json.read_bytes()
    with world.settings.config_json.open("rb", buffering=0) as engine:
        beginning = engine.read(10)
        await world.serving.load("b")
        assert beginning + engine.read() == before, "it is replaced, and not written over"
    assert world.entries() == ["a", "b"]


async def test_a_damaged_config_is_set_aside_and_made_anew(world, tiny, caplog):
    for name in ("a", "b"):
        await world.library.import_(tiny("embeddings"), name)
    await world.serving.load("a")
    world.settings.config_json.write_text('{"model_config_list": [{"con')
    with caplog.at_level(logging.ERROR):
        await world.serving.load("b")
    assert world.entries() == ["a", "b"]
    assert len(list(world.settings.models_dir.glob("config.json.damaged-*"))) == 1
    assert "set aside" in caplog.text


async def test_entries_that_a_user_added_stay(world, tiny):
    foreign = {"config": {"name": "resnet", "base_path": "/somewhere", "nireq": 2}}
    await world.serving.prepare()
    world.settings.config_json.write_text(json.dumps({"model_config_list": [foreign]}))
    await world.library.import_(tiny("embeddings"), "a")
    await world.serving.load("a")
    await world.engine.restart()
    await world.serving.reconcile()
    await world.events.tell("ovms_engine_exited", exit=EngineExit("x", 1, None, 1.0, expected=False), will_restart=True)
    await world.serving.unload("a", "test")
    assert json.loads(world.settings.config_json.read_bytes())["model_config_list"] == [foreign]


async def test_what_is_not_installed_cannot_be_loaded(world):
    with pytest.raises(NotFound, match="not installed"):
        await world.serving.load("nobody/nothing")
    with pytest.raises(BadRequest):
        await world.serving.load("../etc")


async def test_a_model_that_cannot_fit_is_refused_with_numbers(world, tiny):
    await world.library.import_(tiny("text_generation"), "big")
    world.serving._memory = lambda: 500
    with pytest.raises(Unavailable, match=r"1\.1 KB .* 500 bytes are free"):
        await world.serving.load("big")
    assert world.engine.loads == []
    await world.serving.load("big", force=True)
    assert world.engine.state("big") == "AVAILABLE"


async def test_deleting_a_served_model_unloads_it_first(world, tiny):
    model = await world.library.import_(tiny("embeddings"), "a")
    await world.serving.load("a")
    await world.library.delete("a")
    assert world.engine.state("a") == "END"
    assert world.entries() == []
    assert not model.directory.exists()


async def test_nothing_is_started_only_to_unload(world, tiny):
    await world.library.import_(tiny("embeddings"), "a")
    await world.serving.load("a")
    world.engine.up = False
    await world.serving.unload("a", "test")
    assert world.entries() == []


async def test_an_engine_that_dies_while_loading_does_not_load_that_model_again(world, tiny):
    await world.library.import_(tiny("embeddings"), "deadly")

    async def die() -> dict:
        world.engine.up = False
        raise Unavailable("The engine is gone.")

    world.engine.reload = die
    with pytest.raises(Unavailable):
        await world.serving.load("deadly")
    assert world.entries() == []


async def test_what_another_process_unloads_is_loaded_again_on_request(make_world, tiny):
    world, other = make_world(), make_world()
    await world.library.import_(tiny("embeddings"), "a")
    await world.serving.load("a")
    other.serving._connect = world.serving._connect
    await other.serving.unload("a", "test")
    assert world.engine.state("a") == "END"
    await world.serving.ensure("a")
    assert world.engine.state("a") == "AVAILABLE"


async def test_k15_noise_in_the_engines_log_is_no_cause(world, tiny):
    await world.library.import_(tiny("text_generation"), "bad")
    world.engine.broken = {"bad"}
    lines = ["[error] JSON schema parse error: bad/config.json", "[error] Mediapipe: bad: no such file"]
    world.serving._engine_log = lambda _: "\n".join(lines)
    with pytest.raises(EngineFailed) as caught:
        await world.serving.load("bad")
    assert "no such file" in caught.value.message
    assert "schema" not in caught.value.message


@pytest.mark.parametrize(
    ("ready", "expected", "kept"), [(False, False, False), (True, False, True), (False, True, True)]
)
async def test_an_engine_that_dies_at_its_start_is_started_without_its_models(world, tiny, ready, expected, kept):
    await world.library.import_(tiny("embeddings"), "a")
    await world.serving.load("a")
    world.engine.up = ready
    if ready:
        endpoint = Endpoint("http://127.0.0.1:1", "")
        await world.events.tell("ovms_engine_ready", engine=EngineInfo("1", endpoint, None))
    exit_ = EngineExit("killed", None, 9, 1.0, expected=expected)
    await world.events.tell("ovms_engine_exited", exit=exit_, will_restart=True)
    assert world.serving.served == {}
    assert world.entries() == (["a"] if kept else [])
