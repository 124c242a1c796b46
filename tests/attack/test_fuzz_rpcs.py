"""Whatever bytes a host sends, on every rpc: an answer with a code, in time, without a traceback; the plugin lives.

150 calls unless the environment variable ``OVMS_FUZZ_REQUESTS`` says another number.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc.aio
import psutil
import pytest
from google.protobuf import message_factory
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ovms_face_aog.client import PluginHost, plugin_command
from ovms_face_aog.protos import aog_provider_pb2
from ovms_kernel.compose import compose_kernel
from ovms_kernel.settings import read_settings
from tests.attack.mutations import RAW, bodies
from tests.faces.http.conftest import MODELS, environment_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CALLS = int(os.environ.get("OVMS_FUZZ_REQUESTS", "150"))
METHODS = aog_provider_pb2.DESCRIPTOR.services_by_name["ProviderService"].methods_by_name
GOOD = {"model": "tiny/chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
LINGERS = 3
"""Examples of a pull for AOG, whose stream stays open for half a second each time, and of what restarts the engine."""
CODES = {0, 200, 400, 401, 404, 408, 412, 501, 502, 503}
GROWTH = 64 << 20
SEEDS: dict[str, dict[str, Any]] = {
    "chat": GOOD,
    "generate": {"model": "tiny/chat", "prompt": "hi", "max_tokens": 3, "stop": ["x"]},
    "embed": {"model": "tiny/embeddings", "input": ["a", "b"]},
    "rerank": {"model": "tiny/rerank", "query": "a", "documents": ["a", "b"], "top_n": 1},
    "tokenize": {"model": "tiny/chat", "text": "hello"},
    "speech-to-text": {"model": "tiny/listener", "audio": "UklGRg==", "language": "en", "response_format": "json"},
    "speech-to-text-ws": {
        "task": "speech-to-text-ws", "action": "run-task", "model": "tiny/listener",
        "parameters": {"format": "pcm", "sample_rate": 16000, "language": "en", "use_vad": True},
    },
    "text-to-speech": {"model": "tiny/speaker", "input": "hi", "voice": "alloy"},
    "text-to-image": {"model": "tiny/image", "prompt": "a", "size": "64x64", "num_inference_steps": 1, "rng_seed": 1},
    "": {},
}  # fmt: skip
JSON_SEEDS: dict[str, list[dict[str, Any]]] = {
    "DeleteModel": [{"model": "tiny/spare"}],
    "PullModel": [{"model": "tiny/chat", "stream": False, "model_type": "chat"}],
    "PullModelStream": [{"model": "tiny/chat", "stream": True, "model_type": "chat"}],
    "LoadModel": [{"model": "tiny/chat"}, {"model": "tiny/embeddings"}],
    "UnloadModel": [{"models": ["tiny/chat"]}],
    "GetVersion": [{"version": ""}],
}


@st.composite
def messages(draw: st.DrawFn, name: str) -> bytes:
    """Bytes of one request: fields filled with what they could hold, or nothing that is such a message at all."""
    kind = message_factory.GetMessageClass(METHODS[name].input_type)
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    service = draw(st.sampled_from([*SEEDS, "../x", "nothing"]))
    values: dict[str, Any] = {}
    for field in kind.DESCRIPTOR.fields:
        if field.name == "service_name":
            values[field.name] = service
        elif field.message_type is not None:
            values[field.name] = draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
        elif field.name == "request_json":
            values[field.name] = draw(bodies(draw(st.sampled_from(JSON_SEEDS[name]))))
        elif field.type == field.TYPE_BYTES:
            values[field.name] = draw(bodies(SEEDS.get(service, GOOD)) | RAW)
        elif field.type == field.TYPE_STRING:
            values[field.name] = draw(st.sampled_from(["text", "binary", "daemon", "standard"]) | st.text(max_size=10))
        elif field.type == field.TYPE_BOOL:
            values[field.name] = draw(st.booleans())
        else:
            values[field.name] = draw(st.integers(-(2**31), 2**31 - 1))
    return bytes(kind(**values).SerializeToString())


async def ask(channel: Any, name: str, requests: list[bytes]) -> list[Any]:
    method = METHODS[name]
    path, parse = f"/protocol.ProviderService/{name}", message_factory.GetMessageClass(method.output_type).FromString

    async def outbound() -> AsyncIterator[bytes]:
        for each in requests:
            yield each

    async with asyncio.timeout(60):
        if method.client_streaming:
            answers: list[Any] = []
            try:
                async for each in channel.stream_stream(path, None, parse)(outbound()):
                    answers.append(each)  # noqa: PERF401 - those before an error count
            except grpc.aio.AioRpcError as error:
                # gRPC's client fails in itself when it writes to a call that the server has just ended.
                if error.details() != "Internal error from Core":
                    raise
            return answers
        if method.server_streaming:
            return [each async for each in channel.unary_stream(path, None, parse)(requests[0])]
        return [await channel.unary_unary(path, None, parse)(requests[0])]


@pytest.fixture(scope="module")
async def filled(tmp_path_factory: pytest.TempPathFactory, fixtures: Path, inference: None) -> Path:
    """A data folder with the tiny models and one to delete; the hub is nowhere, so that a pull ends at once."""
    folder = tmp_path_factory.mktemp("rpcs") / "data"
    async with compose_kernel(read_settings({}, data_dir=folder, platform="portable")) as kernel:
        await kernel.install_engine()
        for model, source in {**MODELS, "tiny/spare": "embeddings"}.items():
            await kernel.import_model(fixtures / source, model)
    (folder / "config.yaml").write_text("hubs: {modelscope: {endpoint: 'http://127.0.0.1:9', retries: 0}}")
    return folder


@pytest.fixture(params=["aog", "other"])
async def started(request: pytest.FixtureRequest, filled: Path) -> AsyncIterator[PluginHost]:
    """A plugin with models and an engine that runs, so that bodies get as far as they can."""
    environment: dict[str, str | None] = {**environment_of(filled), "OVMS_PLUGIN_FACES__HTTP__PORT": None}
    environment |= {"AOG_VERSION": None} if request.param == "other" else {}
    async with PluginHost(plugin_command(), environment) as host:
        for method in ("InstallEngine", "InitEnv", "StartEngine"):
            assert (await host.call(method)).code == 0
        yield host
        await host.kill()


def memory(host: PluginHost) -> int:
    return int(psutil.Process(host.pid).memory_info().rss)


async def test_every_rpc(started: PluginHost, request: pytest.FixtureRequest) -> None:
    loop = asyncio.get_running_loop()
    faults: list[str] = []
    count = 0

    def example(name: str, requests: list[bytes]) -> None:
        nonlocal count
        count += 1
        try:
            answers = asyncio.run_coroutine_threadsafe(ask(started.channel, name, requests), loop).result()
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            faults.append(f"{name} {requests!r:.600}: {error!r:.300}")
            return
        for answer in answers:
            code, told = getattr(answer, "code", 0), getattr(answer, "message", "")
            if code not in CODES or "Traceback" in told or (code not in (0, 200) and len(told) < 10):
                faults.append(f"{name} {requests!r:.600}: {code} {told[:300]}")

    def fuzz(name: str) -> None:
        fields = METHODS[name].input_type.fields
        lingers = name in ("PullModelStream", "StartEngine", "StopEngine", "InstallEngine", "UpgradeEngine")
        often = min(CALLS, LINGERS) if lingers else max(5, CALLS // 12) if fields else 3
        several = st.lists(messages(name), min_size=1, max_size=3 if METHODS[name].client_streaming else 1)
        quick = settings(
            max_examples=often,
            deadline=None,
            database=None,
            derandomize=CALLS <= 150,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        quick(given(several)(lambda requests: example(name, requests)))()

    half = 0
    for at, name in enumerate(METHODS):
        await asyncio.to_thread(fuzz, name)
        half = memory(started) if at == len(METHODS) // 2 else half
    if faults:
        pytest.fail(f"{len(faults)} faults:\n" + "\n\n".join(faults[:12]), pytrace=False)
    print(f"\n{count} calls")
    assert memory(started) - half < GROWTH
    assert await started.ping()
    with suppress(grpc.aio.AioRpcError):
        await started.call("StartEngine")
    body = json.dumps(GOOD).encode()
    answer = await started.call("InvokeService", service_name="chat", request_data=body, timeout=60)
    assert answer.code in (0, 404), answer  # its model may have been deleted
    assert not [line for line in started.stderr if "Traceback" in line or '"@level": "error"' in line]
