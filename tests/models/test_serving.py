"""Loading and unloading against an engine with OVMS's traps."""

import errno
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from ovms_kernel.errors import BadRequest, EngineFailed, NotFound, PreconditionFailed, Unavailable
from ovms_kernel.models.memory import RESERVE
from ovms_kernel.values import Endpoint, EngineExit, EngineInfo


async def restart(world):
    """End the engine and start another one, with the events that the supervisor tells."""
    exit_ = EngineExit("killed", None, 9, 1.0, expected=False)
    await world.events.tell("ovms_engine_exited", exit=exit_, will_restart=True)
    await world.events.ask("ovms_amend_launch", plan=None)
    await world.engine.restart()
    await world.events.tell("ovms_engine_ready", engine=EngineInfo("1", Endpoint("http://127.0.0.1:1", ""), None))


async def test_a_model_is_loaded_and_unloaded(world, tiny):
    await world.ingest.import_(tiny("text_generation"), "me/chat")
    loaded = await world.residency.load("me/chat")
    assert loaded.model.id == "me/chat"
    assert world.engine.state("me/chat") == "AVAILABLE"
    assert [model.id for model in await world.residency.running()] == ["me/chat"]
    await world.residency.unload("me/chat", "test")
    assert world.engine.state("me/chat") == "END"
    assert await world.residency.running() == []
    assert world.entries() == []
    assert [name for name, _ in world.heard] == ["pulled", "ready", "unloaded"]


async def test_what_is_wrong_with_a_model_that_serves_is_logged_and_shown(world, tiny, caplog):
    await world.ingest.import_(tiny("text_generation"), "me/chat")
    assert world.store.describe("me/chat")["problem"] == ""
    for problem in ("The chat template does not render tool calls.", ""):
        world.engine.problems["me/chat"] = problem
        caplog.clear()
        await world.residency.load("me/chat")
        assert world.store.describe("me/chat")["problem"] == problem
        assert [each.message for each in caplog.records if each.levelname == "WARNING"] == (
            [f"me/chat: {problem}"] if problem else []
        )
        await world.residency.unload("me/chat", "test")


async def test_a_second_load_is_quick_and_changes_nothing(world, tiny):
    await world.ingest.import_(tiny("text_generation"), "chat")
    await world.residency.load("chat")
    before = world.settings.config_json.read_bytes()
    assert (await world.residency.load("chat")).seconds == 0
    assert world.settings.config_json.read_bytes() == before
    assert world.engine.loads == ["chat"]


async def test_who_asks_at_the_same_time_gets_the_same_load(world, tiny):
    await world.ingest.import_(tiny("text_generation"), "chat")
    world.engine.seconds = 0.05
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(world.use, "chat")
    assert world.engine.loads == ["chat"]


async def test_d1_16_a_caller_that_leaves_does_not_stop_the_load(world, tiny):
    await world.ingest.import_(tiny("text_generation"), "chat")
    world.engine.seconds = 0.1
    with anyio.move_on_after(0.05):
        await world.residency.load("chat")
    await world.use("chat")
    assert world.engine.loads == ["chat"]
    assert world.engine.state("chat") == "AVAILABLE"


async def test_k01_a_model_that_fails_is_not_taken_for_loaded(world, tiny):
    await world.ingest.import_(tiny("text_generation"), "bad")
    world.engine.broken = {"bad"}
    with pytest.raises(EngineFailed, match="no such tensor"):
        await world.residency.load("bad")
    assert world.entries() == []
    assert ("failed", "bad") in world.heard
    with pytest.raises(EngineFailed):
        await world.use("bad")
    assert world.engine.loads == ["bad"], "a failure of a moment ago is told again without another try"


async def test_k02_a_changed_graph_alone_is_loaded_again(world, tiny):
    model = await world.ingest.import_(tiny("text_generation"), "chat")
    await world.residency.load("chat")
    graph = model.directory / "graph.pbtxt"
    graph.write_text(graph.read_text() + "# by hand\n")
    await world.residency.load("chat")
    assert world.engine.loads == ["chat", "chat"]
    assert graph.read_text().endswith("# by hand\n")


async def test_k02_a_model_that_failed_can_be_loaded_when_it_is_whole(world, tiny):
    await world.ingest.import_(tiny("text_generation"), "chat")
    world.engine.broken = {"chat"}
    with pytest.raises(EngineFailed):
        await world.residency.load("chat")
    world.engine.broken = set()
    await world.residency.load("chat")
    assert world.engine.state("chat") == "AVAILABLE"


async def test_k03_a_broken_entry_hides_no_other(world, tiny):
    for name in ("good", "bad", "later"):
        await world.ingest.import_(tiny("embeddings"), name)
    await world.residency.load("good")
    world.engine.throwing = {"bad"}
    results = []

    async def load(name: str) -> None:
        try:
            await world.residency.load(name)
        except EngineFailed as error:
            results.append(error.message)

    async with anyio.create_task_group() as group:
        group.start_soon(load, "bad")
        group.start_soon(load, "later")
    assert [model.id for model in await world.residency.running()] == ["good", "later"]
    assert sorted(world.entries()) == ["good", "later"]
    assert len(results) == 1
    assert "bad" in results[0]


async def test_k03_an_entry_left_by_a_crash_is_taken_out(world, tiny):
    for name in ("bad", "good"):
        await world.ingest.import_(tiny("embeddings"), name)
    left = {"name": "bad", "base_path": (world.settings.models_dir / "bad").as_posix()}
    root = {"model_config_list": [{"config": left}]}
    world.settings.config_json.write_text(json.dumps(root))
    world.engine.throwing = {"bad"}
    await world.residency.load("good")
    assert world.entries() == ["good"]


async def test_k04_a_second_reload_that_says_200_is_not_believed(world, tiny):
    for name in ("bad", "good"):
        await world.ingest.import_(tiny("text_generation"), name)
    world.engine.broken = {"bad"}
    with pytest.raises(EngineFailed):
        await world.residency.load("bad")
    with pytest.raises(EngineFailed):
        await world.residency.load("bad")
    await world.residency.load("good")
    assert [model.id for model in await world.residency.running()] == ["good"]


async def test_k05_other_work_goes_on_while_the_engine_loads(world, tiny):
    await world.ingest.import_(tiny("text_generation"), "slow")
    await world.ingest.import_(tiny("embeddings"), "quick")
    await world.residency.load("quick")
    world.engine.seconds = 0.3
    async with anyio.create_task_group() as group:
        group.start_soon(world.residency.load, "slow")
        await anyio.sleep(0.05)
        began = time.monotonic()
        await world.use("quick")
        assert time.monotonic() - began < 0.1


async def test_k16_paths_have_forward_slashes_and_are_absolute(world, tiny):
    model = await world.ingest.import_(tiny("text_generation"), "me/chat")
    await world.residency.load("me/chat")
    entry = json.loads(world.settings.config_json.read_bytes())["model_config_list"][0]["config"]
    assert entry == {"name": "me/chat", "base_path": model.directory.as_posix()}
    assert 'models_path: "./"' in (model.directory / "graph.pbtxt").read_text()


async def test_a_restart_loads_what_users_listed_and_nothing_else(world, tiny):
    for name in ("a", "b", "c"):
        await world.ingest.import_(tiny("embeddings"), name)
        await world.residency.load(name)
    by_hand = {"config": {"name": "resnet", "base_path": "/somewhere"}}
    root = json.loads(world.settings.config_json.read_bytes())
    root["model_config_list"].insert(0, by_hand)
    root["model_config_list"][1]["config"]["group_name"] = "kept"
    world.settings.config_json.write_text(json.dumps(root))
    world.engine.loads.clear()
    await restart(world)
    assert world.entries() == ["resnet", "a"]
    assert world.engine.loads == ["resnet", "a"]
    await world.use("b")
    assert world.loaded() == {"a", "b"}
    assert world.residency.table["a"].stays, "a user listed it"


async def test_d2_21_who_reads_the_config_meanwhile_never_reads_half_of_it(world, tiny):
    for name in ("a", "b"):
        await world.ingest.import_(tiny("embeddings"), name)
    await world.residency.load("a")
    before = world.settings.config_json.read_bytes()
    begun, loaded = threading.Event(), threading.Event()

    def read() -> bytes:
        with world.settings.config_json.open("rb", buffering=0) as file:
            beginning = file.read(10)
            begun.set()
            loaded.wait(0.5)  # Windows replaces it only when nobody has it open any more
            return beginning + file.read()

    with ThreadPoolExecutor(1) as pool:
        engine = pool.submit(read)
        await anyio.to_thread.run_sync(begun.wait)
        await world.residency.load("b")
        loaded.set()
        assert engine.result() == before, "it is replaced, and not written over"
    assert world.entries() == ["a", "b"]


async def test_a_damaged_config_is_set_aside_and_made_anew(world, tiny, caplog):
    for name in ("a", "b"):
        await world.ingest.import_(tiny("embeddings"), name)
    await world.residency.load("a")
    world.settings.config_json.write_text('{"model_config_list": [{"con')
    with caplog.at_level(logging.ERROR):
        await world.residency.load("b")
    assert world.entries() == ["a", "b"]
    assert len(list(world.settings.models_dir.glob("config.json.damaged-*"))) == 1
    assert "set aside" in caplog.text


async def test_entries_that_a_user_added_stay(world, tiny):
    foreign = {"config": {"name": "resnet", "base_path": "/somewhere", "nireq": 2}}
    await world.servables.prepare()
    world.settings.config_json.write_text(json.dumps({"model_config_list": [foreign]}))
    await world.ingest.import_(tiny("embeddings"), "a")
    await world.residency.load("a")
    await restart(world)
    await world.events.tell("ovms_engine_exited", exit=EngineExit("x", 1, None, 1.0, expected=False), will_restart=True)
    await world.residency.unload("a", "test")
    assert json.loads(world.settings.config_json.read_bytes())["model_config_list"] == [foreign]


async def test_what_is_not_installed_cannot_be_loaded(world):
    with pytest.raises(NotFound, match="not installed"):
        await world.residency.load("nobody/nothing")
    with pytest.raises(BadRequest):
        await world.residency.load("../etc")


async def test_a_model_that_cannot_fit_is_refused_with_numbers(world, tiny):
    await world.ingest.import_(tiny("embeddings"), "big")
    world.memory.available = lambda: RESERVE + 500
    with pytest.raises(Unavailable, match=r"1\.1 KB .* 500 bytes are free"):
        await world.residency.load("big")
    assert world.engine.loads == []


async def test_a_model_is_loaded_whatever_the_memory_if_a_setting_says_so(make_world, tiny):
    world = make_world(sections={"models": {"big": {"force": "on"}}})
    await world.ingest.import_(tiny("embeddings"), "big")
    world.memory.available = lambda: RESERVE + 500
    await world.residency.load("big")
    assert world.engine.state("big") == "AVAILABLE"


async def test_deleting_a_served_model_unloads_it_first(world, tiny):
    model = await world.ingest.import_(tiny("embeddings"), "a")
    await world.residency.load("a")
    await world.store.delete("a")
    assert world.engine.state("a") == "END"
    assert world.entries() == []
    assert not model.directory.exists()


async def test_nothing_is_started_only_to_unload(world, tiny):
    await world.ingest.import_(tiny("embeddings"), "a")
    await world.residency.load("a")
    world.engine.up = False
    await world.residency.unload("a", "test")
    assert world.entries() == []


async def test_an_engine_that_dies_while_loading_does_not_load_that_model_again(world, tiny):
    await world.ingest.import_(tiny("embeddings"), "deadly")

    async def die() -> dict:
        world.engine.up = False
        raise Unavailable("The engine is gone.")

    world.engine.reload = die
    with pytest.raises(Unavailable):
        await world.residency.load("deadly")
    assert world.entries() == []


async def test_a_load_goes_on_in_the_engine_that_was_started_meanwhile(world, tiny):
    await world.ingest.import_(tiny("embeddings"), "a")
    old, new = world.engine, replace(world.engine)
    current = [old]

    async def connect():
        return current[0]

    async def reload() -> dict:
        """The old engine ends before it reads, and the new one starts without what we had added."""
        current[0] = new
        await world.servables.strip()
        return await new.reload()

    old.reload, old.config = reload, new.config  # the new one listens where the old one did
    world.servables._connect = connect
    await world.residency.load("a")
    assert new.loads == ["a"]
    assert new.state("a") == "AVAILABLE"


async def test_what_another_process_unloads_is_loaded_again_on_request(make_world, tiny):
    world, other = make_world(), make_world()
    await world.ingest.import_(tiny("embeddings"), "a")
    await world.residency.load("a")
    other.engine._graphs = world.engine._graphs
    await other.residency.unload("a", "test")
    assert world.engine.state("a") == "END"
    await world.use("a")
    assert world.engine.state("a") == "AVAILABLE"


async def test_another_engine_than_before_serves_what_it_says_itself(world, tiny):
    """No event tells of the end of an engine that another process ran."""
    await world.ingest.import_(tiny("text_generation"), "me/chat")
    async with world.residency.use("text_generation", "me/chat"):
        pass
    await world.events.ask("ovms_amend_launch", plan=None)
    await world.engine.restart()

    async def connect() -> EngineInfo:
        return EngineInfo("1", Endpoint("http://127.0.0.1:1", "", "another key"), 1)

    world.residency._connect = connect
    async with world.residency.use("text_generation", "me/chat"):
        assert world.engine.state("me/chat") == "AVAILABLE"


async def test_k15_noise_in_the_engines_log_is_no_cause(world, tiny):
    await world.ingest.import_(tiny("text_generation"), "bad")
    world.engine.broken = {"bad"}
    lines = ["[error] JSON schema parse error: bad/config.json", "[error] Mediapipe: bad: no such file"]
    world.engine.about = lambda *_: "\n".join(lines)
    with pytest.raises(EngineFailed) as caught:
        await world.residency.load("bad")
    assert "no such file" in caught.value.message
    assert "schema" not in caught.value.message


async def test_a_full_disk_is_named_and_costs_no_model(world, tiny, monkeypatch):
    """Whatever is written for a load, its failure is a sentence, and the next load works."""
    await world.ingest.import_(tiny("embeddings"), "me/m")

    def full(path: Path, data: bytes, mode: int = 0o666) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    for module in ("config_json", "graph_writer", "model_record"):
        with monkeypatch.context() as patch:
            patch.setattr(f"ovms_kernel.models.{module}.write_atomically", full)
            if module == "graph_writer":
                (world.store.find("me/m").directory / "graph.pbtxt").unlink()
            if module == "model_record":
                with pytest.raises(PreconditionFailed, match="disk is full"):
                    await world.residency.pin("me/m", pinned=True)
            else:
                with pytest.raises(PreconditionFailed, match="disk is full"):
                    await world.residency.load("me/m")
        await world.residency.load("me/m")
        assert world.loaded() == {"me/m"}
        await world.residency.unload("me/m", "test")
