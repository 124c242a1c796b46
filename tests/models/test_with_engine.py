"""Graphs of several types in the embedded engine: loaded, served, unloaded, and not disturbing each other."""

import json
import logging
import shutil
import socket
import subprocess
import sys
import time
from contextlib import aclosing, closing
from typing import Any

import anyio
import pytest

from ovms_kernel.engine.client import EngineClient
from ovms_kernel.errors import EngineFailed, OvmsError
from ovms_kernel.models.servables import Servables
from ovms_kernel.values import Endpoint
from tests.fixtures import make_gguf

TYPES = ("text_generation", "embeddings", "rerank")
"""The others are asked in ``services/test_real_inference.py``."""


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
async def engine(make_world, tmp_path):
    """A world whose engine is a process; its log is read for causes."""
    world = make_world()
    await world.servables.prepare()
    rest, grpc = free_port(), free_port()
    log_path = tmp_path / "engine.log"
    command = [sys.executable, "-m", "ovms_embedded", "--rest_port", str(rest), "--port", str(grpc)]
    command += ["--rest_bind_address", "127.0.0.1", "--grpc_bind_address", "127.0.0.1"]
    command += ["--config_path", str(world.settings.config_json), "--file_system_poll_wait_seconds", "0"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    client = EngineClient(Endpoint(rest=f"http://127.0.0.1:{rest}", grpc=f"127.0.0.1:{grpc}"))

    async def connect():
        return client

    class Log:
        def position(self):
            return log_path.stat().st_size

        def about(self, model, since=0):
            lines = log_path.read_bytes()[since:].decode().splitlines()
            return "\n".join(line for line in lines if model in line and "[error]" in line)

    servables = Servables(world.settings, connect, Log(), running=lambda: True)
    world.residency._servables = world.residency._loader._servables = servables
    world.residency._connect = connect
    with anyio.fail_after(30):
        while not await is_ready(client):
            assert process.poll() is None, log_path.read_text()
            await anyio.sleep(0.05)
    world.client = client
    yield world
    await client.aclose()
    process.terminate()
    process.wait(10)


async def is_ready(client) -> bool:
    try:
        return await client.server_ready()
    except OvmsError:
        return False


async def ask(client, path, **body):
    return json.loads((await client.post(path, json.dumps(body).encode())).body)


async def use(model_type, client, model, fixtures):
    """Ask a model something only a served model of that type can answer."""
    if model_type == "text_generation":
        messages = [{"role": "user", "content": "What is OpenVINO?"}]
        answer = await ask(client, "/v3/chat/completions", model=model, messages=messages, temperature=0, max_tokens=60)
        assert "toolkit for running AI models" in answer["choices"][0]["message"]["content"]
    elif model_type == "embeddings":
        assert len((await ask(client, "/v3/embeddings", model=model, input="a cat"))["data"][0]["embedding"]) == 64
    else:
        answer = await ask(client, "/v3/rerank", model=model, query="cats", documents=["stocks fell", "a cat sleeps"])
        assert answer["results"][0]["relevance_score"] >= answer["results"][1]["relevance_score"]


@pytest.mark.needs_inference
@pytest.mark.timeout(120)
async def test_three_types_load_and_serve(engine, fixtures):
    for model_type in TYPES:
        await engine.ingest.import_(fixtures / model_type, f"tiny/{model_type}")
        loaded = await engine.residency.load(f"tiny/{model_type}")
        assert loaded.model.model_type == model_type
        await use(model_type, engine.client, f"tiny/{model_type}", fixtures)
    assert [model.id for model in await engine.residency.running()] == sorted(f"tiny/{each}" for each in TYPES)
    began = time.perf_counter()
    assert (await engine.residency.load("tiny/embeddings")).seconds == 0
    assert time.perf_counter() - began < 0.2
    await engine.residency.unload("tiny/rerank", "test")
    assert "tiny/rerank" not in [model.id for model in await engine.residency.running()]
    await engine.store.delete("tiny/embeddings")
    assert "tiny/embeddings" not in [model.id for model in await engine.residency.running()]
    await use("text_generation", engine.client, "tiny/text_generation", fixtures)


@pytest.mark.needs_inference
@pytest.mark.timeout(120)
async def test_loading_another_model_does_not_disturb_a_stream(engine, fixtures):
    await engine.ingest.import_(fixtures / "text_generation", "tiny/chat")
    await engine.ingest.import_(fixtures / "embeddings", "tiny/embeddings")
    await engine.residency.load("tiny/chat")
    messages = [{"role": "user", "content": "Count to one hundred"}]
    body = {"model": "tiny/chat", "stream": True, "messages": messages, "temperature": 0, "max_tokens": 150}
    body["ignore_eos"] = True
    alone = [event async for event in engine.client.stream("/v3/chat/completions", json.dumps(body).encode())]
    during: list[Any] = []
    async with (
        anyio.create_task_group() as group,
        aclosing(engine.client.stream("/v3/chat/completions", json.dumps(body).encode())) as events,
    ):
        async for event in events:
            if not during:
                group.start_soon(engine.residency.load, "tiny/embeddings")
            during.append(event)
    assert text_of(during) == text_of(alone), "what a chunk holds is a matter of timing"
    await use("embeddings", engine.client, "tiny/embeddings", fixtures)


def text_of(pieces: list[bytes]) -> str:
    """The text of pieces, each of which holds one or several events."""
    *events, done = [each.removeprefix(b"data: ") for each in b"".join(pieces).strip().split(b"\n\n")]
    assert done == b"[DONE]"
    return "".join(json.loads(each)["choices"][0]["delta"].get("content") or "" for each in events)


@pytest.mark.timeout(120)
async def test_a_broken_model_is_refused_in_the_words_of_the_engine(engine, fixtures, tiny, caplog):
    await engine.ingest.import_(fixtures / "rerank", "tiny/good")
    for model_type in ("text_generation", "embeddings"):
        await engine.ingest.import_(tiny(model_type), f"tiny/broken-{model_type}")
    for model_type in ("text_generation", "embeddings"):
        with caplog.at_level(logging.ERROR), pytest.raises(EngineFailed, match=f"tiny/broken-{model_type}"):
            await engine.residency.load(f"tiny/broken-{model_type}")
    await engine.residency.load("tiny/good")
    assert [model.id for model in await engine.residency.running()] == ["tiny/good"]
    assert engine.entries() == ["tiny/good"]


async def test_a_template_that_cannot_serve_is_shown(engine, fixtures, tmp_path):
    folder = shutil.copytree(fixtures / "text_generation", tmp_path / "broken")
    (folder / "chat_template.jinja").write_text("{% for %}")
    await engine.ingest.import_(folder, "me/broken")
    await engine.residency.load("me/broken")
    assert "line 1" in engine.store.describe("me/broken")["problem"]


@pytest.mark.needs_inference
@pytest.mark.parametrize("quantization", ["F16", "Q8_0", "Q4_0", "Q4_1"])
async def test_a_gguf_file_answers_as_the_model_that_it_was_made_of(engine, fixtures, tmp_path, quantization):
    folder = tmp_path / "gguf"
    folder.mkdir()
    make_gguf.make(folder / f"tiny-{quantization}.gguf", quantization)
    model = await engine.ingest.import_(folder, "tiny/gguf")
    assert (model.format, model.family, model.quantization) == ("gguf", "qwen2", quantization)
    await engine.residency.load("tiny/gguf")
    await use("text_generation", engine.client, "tiny/gguf", fixtures)
    body = {"model": "tiny/gguf", "stream": True, "temperature": 0, "max_tokens": 40}
    body["messages"] = [{"role": "user", "content": "你好"}]
    events = [event async for event in engine.client.stream("/v3/chat/completions", json.dumps(body).encode())]
    assert text_of(events) == "你好！很高兴见到你。"
