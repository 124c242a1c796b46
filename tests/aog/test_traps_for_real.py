"""Traps that show only with a real plugin process and an engine below it, by their number."""

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import pytest

from ovms_face_aog.client import PluginHost, bidi_request, plugin_command
from tests.aog.conftest import add_extension

Environment = dict[str, str | None]
CHAT = {"model": "tiny/chat", "messages": [{"role": "user", "content": "hi"}]}


def coded(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.fixture
async def stocked(environment: Environment, tmp_path: Path, fixtures: Path) -> Environment:
    """An environment with a model in the data folder."""
    from ovms_kernel.compose import compose_kernel
    from ovms_kernel.settings import read_settings

    async with compose_kernel(read_settings({}, data_dir=tmp_path / "data")) as kernel:
        await kernel.import_model(fixtures / "text_generation", "tiny/chat")
    return environment


@pytest.fixture
async def ready(stocked: Environment) -> AsyncIterator[PluginHost]:
    """A plugin with a model and a stub engine that runs."""
    async with PluginHost(plugin_command(), stocked) as host:
        await started(host)
        await healthy(host)
        yield host
        assert await host.kill() < 2


async def started(host: PluginHost) -> None:
    for method in ("InstallEngine", "InitEnv", "StartEngine", "UpgradeEngine"):
        assert (await host.call(method)).code == 0


async def healthy(host: PluginHost) -> None:
    async with asyncio.timeout(15):
        while (await host.call("HealthCheck")).code:  # noqa: ASYNC110 - as AOG's keep-alive asks
            await asyncio.sleep(0.02)


def engine_of(host: PluginHost) -> psutil.Process:
    [engine] = [each for each in psutil.Process(host.pid).children(recursive=True) if "--rest_port" in each.cmdline()]
    return engine


async def ask(host: PluginHost, **fields: Any) -> Any:
    return await host.call("InvokeService", service_name="chat", request_data=coded(**fields), timeout=30)


async def test_d1_10_d2_6_an_engine_that_somebody_killed_comes_back(ready: PluginHost) -> None:
    before = engine_of(ready)
    before.kill()
    assert (await ask(ready, **CHAT)).code in (0, 502, 503)
    await healthy(ready)
    assert engine_of(ready).pid != before.pid
    assert (await ask(ready, **CHAT)).code == 0


async def test_d1_5_what_plugin_stop_ended_is_whole_when_aog_starts_it_again(stocked: Environment) -> None:
    async with PluginHost(plugin_command(), stocked) as host:
        await started(host)
        await healthy(host)
        await host.kill()
    async with PluginHost(plugin_command(), stocked) as again:
        assert (await again.call("StartEngine", mode="daemon")).code == 0  # nothing is to be installed
        assert (await ask(again, **CHAT)).code == 0


async def test_d1_8_d2_15_d2_42_beside_aog_s_own_engine_on_the_same_ports(stocked: Environment) -> None:
    ports = dict.fromkeys(("OVMS_PLUGIN_REST_PORT", "OVMS_PLUGIN_GRPC_PORT"))
    samples = {"AOG_ENABLED_ENGINES": "ollama", "OVMS_HOST": "elsewhere.example", "OVMS_HTTP_PORT": "1"}
    with ExitStack() as held:
        for port in (16666, 9000):
            with suppress(OSError):  # somebody else has it, which is as good
                held.enter_context(socket.create_server(("127.0.0.1", port)))
        async with PluginHost(plugin_command(), stocked | ports | samples) as host:
            await started(host)
            await healthy(host)
            assert not {"16666", "9000"} & set(engine_of(host).cmdline())
            assert (await ask(host, **CHAT)).code == 0


async def test_an_engine_starts_with_no_model_of_an_earlier_session_but_what_is_preloaded(stocked: Environment) -> None:
    async def names(host: PluginHost) -> list[str]:
        answer = await host.call("GetRunningModels")
        return [each["name"] for each in json.loads(answer.response_json)["models"]]

    async with PluginHost(plugin_command(), stocked) as host:
        await started(host)
        await healthy(host)
        await host.call("LoadModel", request_json=coded(model="tiny/chat"))
        assert await names(host) == ["tiny/chat"]
        host.process.kill()  # a session that ends in an orderly way has even less to leave
        await host.process.wait()
    async with PluginHost(plugin_command(), stocked) as host:
        await started(host)
        await healthy(host)
        assert await names(host) == []
    async with PluginHost(plugin_command(), stocked | {"OVMS_PLUGIN_PRELOAD": "tiny/chat"}) as host:
        await started(host)
        await healthy(host)
        async with asyncio.timeout(10):
            while await names(host) != ["tiny/chat"]:  # noqa: ASYNC110 - a host can only ask
                await asyncio.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a parent process keeps the socket")
async def test_a_plugin_s_process_that_dies_serves_again_soon(ready: PluginHost) -> None:
    seconds = []
    for _ in range(3):
        [process] = psutil.Process(ready.pid).children()
        process.kill()
        began = time.monotonic()
        async with asyncio.timeout(30):
            while True:
                try:
                    answer = await ask(ready, **CHAT)
                    break
                except grpc.aio.AioRpcError:  # the connection that broke; gRPC dials again after a pause
                    await asyncio.sleep(0.02)
        seconds.append(time.monotonic() - began)
        assert answer.code == 0
    assert min(seconds) < 3


async def test_d1_25_a_plugin_that_cannot_work_still_runs_and_tells_a_pull_why(environment: Environment) -> None:
    async with PluginHost(plugin_command(), environment | {"OVMS_PLUGIN_REST_PORT": "many"}) as host:
        call = host.stream("PullModelStream", request_json=coded(model="tiny/chat"), timeout=10)
        [failed] = [json.loads(each.data) async for each in call]
        assert failed["status"] == "error"
        assert "rest_port" in failed["error"]
        assert await host.ping()  # for AOG it runs; of one that does not, AOG would send an empty stream


async def test_d1_11_d2_1_d2_2_upgrade_and_start_leave_a_running_engine_alone(ready: PluginHost) -> None:
    before = engine_of(ready).pid
    for method in ("UpgradeEngine", "StartEngine", "InitEnv", "UpgradeEngine", "InstallEngine"):
        assert (await ready.call(method)).code == 0
    assert (await ready.call("HealthCheck")).code == 0
    assert engine_of(ready).pid == before


async def test_installing_many_times_at_once_is_installing_once(ready: PluginHost) -> None:
    answers = await asyncio.gather(*(ready.call("InstallEngine") for _ in range(5)))
    assert {each.code for each in answers} == {0}
    assert (await ready.call("GetOperateStatus")).status == 1


async def test_d1_51_d2_11_config_names_the_engine_s_real_address(ready: PluginHost) -> None:
    config = json.loads((await ready.call("GetConfig")).config_json)
    line = engine_of(ready).cmdline()
    assert config["host"] == f"http://127.0.0.1:{line[line.index('--rest_port') + 1]}"
    keys = "host origin scheme recommend_model download_url download_path engine_path exec_path exec_file device_type"
    assert set(config) == set(keys.split())
    assert all(isinstance(each, str) for each in config.values())


LACKING = """
from ovms_kernel.api.platforms import Requirement
from ovms_kernel.testing.platform import MisbehavingPlatform
class Lacking(MisbehavingPlatform):
    async def requirements(self, installation):
        return [Requirement("the library libmissing.so.1", "sudo apt install libmissing1")]
"""


@pytest.mark.needs_posix  # shell scripts in the place of programs
async def test_d2_4_d2_43_what_the_system_lacks_is_said_and_nothing_is_installed_into_it(
    environment: Environment, tmp_path: Path
) -> None:
    add_extension(tmp_path / "site", "lacking", "ovms.platforms", "lacking = lacking:Lacking", LACKING)
    spies, traces = tmp_path / "spies", tmp_path / "traces"
    spies.mkdir()
    for name in ("sudo", "apt", "apt-get", "yum", "dnf", "pip", "pip3", "python3", "curl", "wget"):
        (spies / name).write_text(f'#!/bin/sh\necho "$0 $*" >> "{traces}"\n')
        (spies / name).chmod(0o755)
    broken = {"OVMS_PLUGIN_PLATFORM": "lacking", "OVMS_PLUGIN_PLATFORMS__LACKING__HOW": "broken"}
    path = {"PATH": f"{spies}:{os.environ['PATH']}"}
    async with PluginHost(plugin_command(), environment | broken | path) as host:
        response = await host.call("InstallEngine", timeout=10)
        assert response.code == 502
        assert "lacks the library libmissing.so.1: sudo apt install libmissing1" in response.message
        assert not (await host.call("CheckEngine")).installed
    assert not traces.exists()


async def test_d2_9_a_start_waits_for_no_engine_to_be_ready(environment: Environment) -> None:
    never = {"OVMS_PLUGIN_PLATFORMS__MISBEHAVING__HOW": "never-ready"}
    async with PluginHost(plugin_command(), environment | never) as host:
        assert (await host.call("InstallEngine")).code == 0
        assert (await host.call("StartEngine", mode="daemon", timeout=10)).code == 0  # AOG's own start waits for it
        health = await host.call("HealthCheck")
        assert (health.code, "starting" in health.message) == (503, True), health.message


async def test_d2_14_the_engine_listens_on_this_machine_only(ready: PluginHost) -> None:
    listening = [each for each in engine_of(ready).net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert listening
    line = engine_of(ready).cmdline()
    assert line[line.index("--rest_bind_address") + 1] == line[line.index("--grpc_bind_address") + 1] == "127.0.0.1"


async def test_d2_18_no_id_leaves_the_folder_of_models(ready: PluginHost, tmp_path: Path) -> None:
    for model in ("..", "../..", "/etc", "a/../../b", "tiny", ".", "tiny/chat/../.."):
        response = await ready.call("DeleteModel", request_json=coded(model=model))
        assert response.code in (0, 400)
    assert (tmp_path / "data" / "models" / "tiny" / "chat" / "openvino_model.xml").exists()


@pytest.mark.parametrize("version", ["v0.7", None], ids=["AOG, whose unload is a hint", "another host"])
async def test_d2_23_d2_41_a_model_that_was_unloaded_is_still_installed(
    stocked: Environment, version: str | None
) -> None:
    async with PluginHost(plugin_command(), stocked | {"AOG_VERSION": version}) as host:
        await started(host)
        await healthy(host)
        assert (await host.call("LoadModel", request_json=coded(model="tiny/chat"))).code == 0
        running = json.loads((await host.call("GetRunningModels")).response_json)["models"]
        assert [each["name"] for each in running] == ["tiny/chat"]
        await host.call("UnloadModel", request_json=coded(models=["tiny/chat"]))
        running = json.loads((await host.call("GetRunningModels")).response_json)["models"]
        assert len(running) == (1 if version else 0)
        [listed] = json.loads((await host.call("ListModels")).response_json)["models"]
    assert listed["name"] == "tiny/chat"
    assert listed["size"] > 1000
    assert listed["modified_at"].endswith("+00:00")


async def test_d2_29_what_aog_s_users_send_reaches_the_engine(ready: PluginHost) -> None:
    parts = [{"type": "text", "text": "hi"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    fields = {"temperature": 0, "stop": ["x"], "presence_penalty": 0.5, "tools": tools, "seed": 7}
    response = await ask(ready, model="tiny/chat", messages=[{"role": "user", "content": parts}], **fields)
    assert response.code == 0, response.message
    asked = json.loads(response.response_data)["asked"]
    assert {name: asked[name] for name in fields} == fields
    assert asked["messages"][0]["content"] == parts


async def test_d2_30_the_tail_of_a_stream_is_never_lost(ready: PluginHost) -> None:
    for _ in range(30):
        call = ready.stream("InvokeServiceStream", service_name="chat", request_data=coded(**CHAT, stream=True))
        answers = [each async for each in call]
        assert answers[-1].is_final
        events = b"".join(each.chunk_data for each in answers).split(b"\n\n")
        texts = [json.loads(each[6:])["choices"][0]["delta"]["content"] for each in events if each]
        assert texts == [f"{number} " for number in range(20)]


async def test_d2_30_an_engine_that_breaks_off_is_told_as_a_code(ready: PluginHost) -> None:
    engine = engine_of(ready)
    engine.suspend()
    request = asyncio.ensure_future(ask(ready, **CHAT))
    await asyncio.wait([request], timeout=1)  # until the engine has it
    engine.kill()
    response = await request
    assert response.code in (502, 503)
    assert response.message


async def test_d2_44_a_load_ends_with_its_engine(ready: PluginHost) -> None:
    engine = engine_of(ready)
    engine.suspend()
    loading = asyncio.ensure_future(ready.call("LoadModel", request_json=coded(model="tiny/chat")))
    await asyncio.wait([loading], timeout=0.3)
    assert not loading.done()
    engine.kill()
    async with asyncio.timeout(20):  # and not AOG's five minutes
        assert (await loading).code == 0


async def test_d1_48_d2_36_a_session_that_the_client_closes_ends_cleanly(ready: PluginHost) -> None:
    async def outbound() -> AsyncIterator[Any]:
        yield bidi_request(b"{}", service_name="no-such-service", is_first=True, metadata={"ws_conn_id": "c"})

    async with asyncio.timeout(10):
        answers = [each async for each in ready.converse(outbound())]
    [failed] = answers
    assert json.loads(failed.data)["header"]["event"] == "task-failed"
    assert failed.code == 0


async def test_d2_38_every_line_for_the_host_has_its_level(ready: PluginHost) -> None:
    await ask(ready, model="no/model", messages=[{"role": "user", "content": "x"}])
    lines = [json.loads(each) for each in ready.stderr]
    assert {each["@level"] for each in lines} <= {"info", "warn", "error"}
    assert any("is ready" in each["@message"] for each in lines)
    assert not any(each["@message"] == "hi" for each in lines)
