"""Three engines that somebody else runs, as one: shared work, one that dies in the middle, models that not all have."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ovms_kernel.compose import compose_kernel
from ovms_kernel.errors import EngineFailed, NotFound
from ovms_kernel.settings import read_settings
from ovms_kernel.values import Request
from tests.engines.conftest import Engine, free_port, write_graph

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from ovms_kernel.kernel import Kernel

ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."
ASKED = {"model": "them/chat", "messages": [{"role": "user", "content": "What is OpenVINO?"}], "temperature": 0}
LONG = ASKED | {"max_tokens": 1500, "ignore_eos": True}

HAPROXY = """
global
  log stderr local0 warning
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  retries 3
  option redispatch
  retry-on conn-failure empty-response response-timeout
frontend here
  bind 127.0.0.1:{port}
  default_backend engines
backend engines
  balance leastconn
  option httpchk GET /v2/health/ready
  default-server check inter 200ms fall 1 rise 1
{servers}
"""


@pytest.fixture
def engines(tmp_path: Path, fixtures: Path, inference: None) -> Iterator[list[Engine]]:
    """Each has a model of its own beside the one that all have."""
    made = []
    try:
        for number in range(3):
            engine = Engine(tmp_path / f"engine{number}")
            engine.entry("them/chat", write_graph("text_generation", fixtures / "text_generation"))
            engine.entry(f"them/only{number}", write_graph("embeddings", fixtures / "embeddings"))
            engine.list("them/chat", f"them/only{number}")
            made.append(engine.start("--metrics_enable"))
        for engine in made:
            engine.ready()
        yield made
    finally:
        for engine in made:
            engine.close()


async def kernel_of(folder: Path, url: str, *others: str) -> AsyncIterator[Kernel]:
    remote = {"url": url, "others": list(others)}
    async with compose_kernel(read_settings({}, data_dir=folder, platforms={"remote": remote})) as kernel:
        await kernel.install_engine()
        yield kernel


@pytest.fixture
async def kernel(engines: list[Engine], tmp_path: Path) -> AsyncIterator[Kernel]:
    async for kernel in kernel_of(tmp_path / "data", *(f"http://127.0.0.1:{each.port}" for each in engines)):
        yield kernel


@pytest.fixture
async def balanced(engines: list[Engine], tmp_path: Path) -> AsyncIterator[Kernel]:
    """A kernel that knows of one address, behind which HAProxy shares the work."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        pytest.skip("haproxy is not installed; `apt install haproxy` brings it")
    port = free_port()
    servers = "\n".join(f"  server e{each.port} 127.0.0.1:{each.port}" for each in engines)
    (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(port=port, servers=servers))
    with subprocess.Popen([program, "-db", "-f", str(tmp_path / "haproxy.cfg")], stderr=subprocess.DEVNULL) as process:
        try:
            async for kernel in kernel_of(tmp_path / "data", f"http://127.0.0.1:{port}"):
                yield kernel
        finally:
            process.terminate()


async def ask(kernel: Kernel, **more: Any) -> str:
    answer = await kernel.invoke("chat", Request(json.dumps(ASKED | more).encode(), timeout=60))
    return str(json.loads(answer.body)["choices"][0]["message"]["content"])


async def kill_one_in_the_middle(kernel: Kernel, engines: list[Engine]) -> Counter[str]:
    """Ask long streams and short questions, kill an engine that streams; return what became of all of them."""
    became: Counter[str] = Counter()
    streaming, killed = anyio.Event(), anyio.Event()
    begun = 0

    async def stream() -> None:
        nonlocal begun
        first = True
        try:
            async for _ in kernel.stream("chat", Request(json.dumps(LONG).encode(), timeout=60)):
                begun += first
                first = False
                if begun == 3:
                    streaming.set()
        except EngineFailed:
            became["streams that broke off"] += 1
        else:
            became["streams"] += 1

    async def questions() -> None:
        for _ in range(12):
            became["answers"] += await ask(kernel) == ANSWER
        await killed.wait()
        for _ in range(12):
            became["answers"] += await ask(kernel) == ANSWER

    with anyio.fail_after(100):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(stream)
            await streaming.wait()
            group.start_soon(questions)
            [victim, *_] = sorted(engines, key=lambda each: -each.running("them/chat"))
            assert victim.process
            victim.process.kill()
            killed.set()
    return became


@pytest.mark.timeout(200)
async def test_no_request_is_lost_that_had_not_begun_when_an_engine_dies(kernel: Kernel, engines: list[Engine]) -> None:
    became = await kill_one_in_the_middle(kernel, engines)
    assert became == {"streams": 2, "streams that broke off": 1, "answers": 24}


@pytest.mark.timeout(200)
async def test_nor_is_one_behind_haproxy(balanced: Kernel, engines: list[Engine]) -> None:
    became = await kill_one_in_the_middle(balanced, engines)
    assert became == {"streams": 2, "streams that broke off": 1, "answers": 24}


@pytest.mark.timeout(200)
async def test_a_request_goes_to_an_engine_that_has_its_model_and_least_to_do(
    kernel: Kernel, engines: list[Engine]
) -> None:
    await kernel.engine()
    served = {each.id for each in await kernel.running_models()}
    assert served == {"them/chat", "them/only0", "them/only1", "them/only2"}
    for number in range(3):
        body = json.dumps({"model": f"them/only{number}", "input": "a"}).encode()
        assert json.loads((await kernel.invoke("embed", Request(body))).body)["data"]
    with pytest.raises(NotFound, match="not installed"):
        await kernel.invoke("embed", Request(b'{"model": "them/nobodys", "input": "a"}'))
    for engine in engines[1:]:
        engine.close()
    assert [await ask(kernel) for _ in range(3)] == [ANSWER] * 3
    assert "them/only0" in {each.id for each in await kernel.running_models()}
