"""An engine that somebody else runs: used, watched, and otherwise left alone."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from ovms_kernel.api.services import (
    Call,
    Engine,
    NotFound,
    NotSupported,
    Route,
    ServiceDefinition,
    Unavailable,
    forward,
)
from ovms_kernel.compose import compose_kernel
from ovms_kernel.engine.client import EngineClient
from ovms_kernel.extensions import Extensions
from ovms_kernel.kernel import Kernel
from ovms_kernel.settings import read_settings
from ovms_kernel.testing.contract import configured
from ovms_kernel.values import Answer, Endpoint, Host, Request
from ovms_platform_remote import Remote
from tests.processes import freeze, thaw


class Chat:
    definition = ServiceDefinition("chat", "text_generation", "/v3/chat/completions")

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        return await forward(Route(self.definition), call, engine)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str, subprocess.Popen[bytes]]]:
    """Somebody else's engine with a model of theirs."""
    config = tmp_path / "theirs.json"
    entry = {"config": {"name": "their/model", "base_path": "/srv/models/their"}}
    config.write_text(json.dumps({"model_config_list": [entry]}))
    rest, grpc = free_port(), free_port()
    flags = ["--rest_port", str(rest), "--port", str(grpc), "--config_path", str(config)]
    process = subprocess.Popen([sys.executable, "-m", "ovms_kernel.testing.misbehaving", *flags])
    end = time.monotonic() + 30  # theirs runs already when ours begins; it starts slowly on some systems
    while not answers(rest):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}", process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
async def kernel(server: tuple[str, str, object], tmp_path: Path) -> AsyncIterator[Kernel]:
    remote = configured(Remote, url=server[0], grpc=server[1], api_key="theirs")
    extensions = Extensions(services={"chat": Chat()}, platforms={"remote": remote})
    settings = read_settings({}, data_dir=tmp_path / "data", start_timeout=2)
    async with compose_kernel(settings, host=Host("linux", "x86_64"), extensions=extensions) as kernel:
        yield kernel


async def test_a_remote_engine_serves_its_models_and_is_not_stopped(
    kernel: Kernel, server: tuple[str, str, subprocess.Popen[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    url, grpc, process = server
    installed = await kernel.install_engine()
    assert (installed.version, installed.platform) == ("remote", "remote")
    info = await kernel.engine()
    assert info.pid is None
    assert (info.endpoint.rest, info.endpoint.grpc) == (url, grpc)
    await kernel.health()
    assert [each.id for each in await kernel.running_models()] == ["their/model"]
    answer = json.loads((await kernel.invoke("chat", Request(b'{"model": "their/model", "messages": []}'))).body)
    assert answer["asked"]["model"] == "their/model"
    with pytest.raises(NotFound, match="Model other/model is not installed"):
        await kernel.invoke("chat", Request(b'{"model": "other/model"}'))
    await kernel.stop_engine()
    assert [each.getMessage() for each in caplog.records if each.levelname == "WARNING"] == []
    assert process.poll() is None
    client = EngineClient(Endpoint(url, grpc))
    assert await client.live()
    await client.aclose()


async def test_an_upgrade_says_who_is_in_charge(kernel: Kernel) -> None:
    await kernel.install_engine()
    with pytest.raises(NotSupported, match="The administrator of the engine at http"):
        await kernel.upgrade_engine("2026.4.1")
    # AOG asks without a version after each start, and that is fine.
    assert (await kernel.upgrade_engine()).version == "remote"


async def test_a_remote_engine_that_goes_is_noticed_and_used_again_when_it_is_back(
    kernel: Kernel, server: tuple[str, str, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovms_kernel.engine.supervisor.WATCH_PERIOD", 0.05)
    monkeypatch.setattr("ovms_kernel.engine.client.PROBE_LIMIT", 0.2)
    await kernel.install_engine()
    await kernel.engine()
    freeze(server[2].pid)
    with anyio.fail_after(10):
        while kernel.supervisor.info is not None:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    with pytest.raises(Unavailable, match="ask its administrator"):
        await kernel.engine()
    thaw(server[2].pid)
    with anyio.fail_after(10):
        while kernel.supervisor.info is None:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    assert (await kernel.engine()).pid is None
