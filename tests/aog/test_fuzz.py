"""Whatever bytes a host sends, on every rpc: an answer with a code, in time, without a traceback; the plugin lives."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf import message_factory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ovms_face_aog.client import PluginHost, plugin_command
from ovms_face_aog.protos import aog_provider_pb2
from ovms_kernel.compose import compose_kernel
from ovms_kernel.settings import read_settings

METHODS = aog_provider_pb2.DESCRIPTOR.services_by_name["ProviderService"].methods_by_name
OFTEN = 60
GOOD = b'{"model":"tiny/chat","messages":[{"role":"user","content":"hi"}]}'
LINGERS = 6
"""Examples of a pull for AOG, whose stream is held open for half a second each time."""
CODES = {0, 200, 400, 401, 404, 408, 412, 501, 502, 503}

leaf = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["tiny/chat", "demo/x", "../x"])
)
names = st.sampled_from(
    ["model", "models", "messages", "input", "stream", "prompt", "query", "audio", "model_type", "size"]
)
values = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=6
)
KEYS = ("messages", "stream", "temperature", "max_tokens", "stop", "tools", "input", "prompt", "stream_options")
bodies = (
    # right keys and mostly wrong types, for a model that is there
    st.fixed_dictionaries({"model": st.just("tiny/chat")}, optional=dict.fromkeys(KEYS, values)).map(
        lambda each: json.dumps(each).encode()
    )
    | st.dictionaries(names | st.text(max_size=8), values, max_size=6).map(lambda each: json.dumps(each).encode())
    | st.binary(max_size=200)
    | st.sampled_from([b"", b"[]", b"null", b"[" * 2000, b'"\\ud800"', b'{"model":"\\ud800"}', b"{" * 5000, b"1e999"])
)
services = st.sampled_from(["chat", "embed", "speech-to-text-ws", "text-to-image", "", "../x"]) | st.text(max_size=5)


def messages(kind: Any) -> st.SearchStrategy[bytes]:
    """Bytes of one request: fields filled with what they could hold, or nothing that is such a message at all."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in kind.DESCRIPTOR.fields:
        if field.name == "service_name":
            fields[field.name] = services
        elif field.message_type is not None:
            fields[field.name] = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)
        elif field.type == field.TYPE_BYTES:
            fields[field.name] = bodies
        elif field.type == field.TYPE_STRING:
            fields[field.name] = st.text(max_size=10)
        elif field.type == field.TYPE_BOOL:
            fields[field.name] = st.booleans()
        else:
            fields[field.name] = st.integers(-(2**31), 2**31 - 1)
    whole = st.fixed_dictionaries({}, optional=fields).map(lambda each: kind(**each).SerializeToString())
    return whole | st.binary(max_size=60)


async def ask(channel: Any, name: str, requests: list[bytes]) -> list[Any]:
    method = METHODS[name]
    path, parse = f"/protocol.ProviderService/{name}", message_factory.GetMessageClass(method.output_type).FromString

    async def outbound() -> AsyncIterator[bytes]:
        for each in requests:
            yield each

    async with asyncio.timeout(20):
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


@pytest.fixture(params=["aog", "other"])
async def started(
    request: pytest.FixtureRequest, environment: dict[str, str | None], tmp_path: Path, fixtures: Path
) -> AsyncIterator[PluginHost]:
    """A plugin with a model and an engine that runs, so that bodies get as far as they can."""
    async with compose_kernel(read_settings({}, data_dir=tmp_path / "data")) as kernel:
        await kernel.import_model(fixtures / "text_generation", "tiny/chat")
    # The hub is nowhere, so that a pull ends at once.
    more: dict[str, str | None] = {"OVMS_PLUGIN_HUBS__MODELSCOPE__ENDPOINT": "http://127.0.0.1:9"}
    more |= {"AOG_VERSION": None} if request.param == "other" else {}
    async with PluginHost(plugin_command(), environment | more) as host:
        for method in ("InstallEngine", "InitEnv", "StartEngine"):
            assert (await host.call(method)).code == 0
        yield host
        await host.kill()


async def test_every_rpc(started: PluginHost, request: pytest.FixtureRequest) -> None:
    lingers = "aog" in request.node.callspec.params.values()
    loop = asyncio.get_running_loop()
    count = 0

    def example(name: str, requests: list[bytes]) -> None:
        nonlocal count
        for answer in asyncio.run_coroutine_threadsafe(ask(started.channel, name, requests), loop).result():
            if hasattr(answer, "code"):
                assert answer.code in CODES, (name, requests, answer.code, answer.message)
                assert "Traceback" not in answer.message
                assert answer.message or answer.code in (0, 200)
        count += 1

    def fuzz(name: str) -> None:
        kind = message_factory.GetMessageClass(METHODS[name].input_type)
        several = st.lists(messages(kind), min_size=1, max_size=3 if METHODS[name].client_streaming else 1)
        quick = settings(
            max_examples=(LINGERS if lingers and name == "PullModelStream" else OFTEN) if kind.DESCRIPTOR.fields else 5,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        quick(given(several)(lambda requests: example(name, requests)))()

    for name in METHODS:
        await asyncio.to_thread(fuzz, name)
    assert count > 300
    assert await started.ping()
    answer = await started.call("InvokeService", service_name="chat", request_data=GOOD, timeout=30)
    assert answer.code in (0, 404), answer  # its model may have been deleted
    assert not [line for line in started.stderr if "Traceback" in line or '"@level": "error"' in line]
