"""The kernel as a host sees it, over a real engine process that does what the test says."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from ovms_kernel.api.services import (
    BadRequest,
    Call,
    Engine,
    EngineFailed,
    Message,
    NotFound,
    NotSupported,
    OvmsError,
    PreconditionFailed,
    Refused,
    Route,
    ServiceDefinition,
    TimedOut,
    Unavailable,
    forward,
    forward_stream,
    hookimpl,
)
from ovms_kernel.compose import compose_kernel
from ovms_kernel.extensions import Extensions
from ovms_kernel.settings import Settings, read_settings
from ovms_kernel.testing.contract import configured
from ovms_kernel.testing.platform import MisbehavingPlatform
from ovms_kernel.values import Answer, Host, Request
from tests.processes import end_by_force, freeze, thaw

HOST = Host("linux", "x86_64", "ubuntu", "24.04", memory=16 << 30)


class Chat:
    def __init__(self) -> None:
        self.definition = ServiceDefinition(
            "chat", "text_generation", "/v3/chat/completions", default_model="tiny/default", streaming=True
        )
        self._route = Route(self.definition)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        return await forward(self._route, call, engine)

    def stream(self, call: Call, engine: Engine) -> AsyncIterator[bytes]:
        return forward_stream(self._route, call, engine)


class Slow:
    definition = ServiceDefinition("slow", "text_generation", "/v3/slow", streaming=True)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        await anyio.sleep_forever()
        raise AssertionError

    async def stream(self, call: Call, engine: Engine) -> AsyncIterator[bytes]:
        yield b"data: {}\n\n"
        await anyio.sleep_forever()


class Careless:
    definition = ServiceDefinition("careless", "text_generation", "/v3/careless", streaming=True)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        return {"text": "not encoded"}  # type: ignore[return-value]

    async def stream(self, call: Call, engine: Engine) -> AsyncIterator[bytes]:
        yield "data: text\n\n"  # type: ignore[misc]


class Echo:
    definition = ServiceDefinition("echo", "speech_to_text", "/v3/echo", bidirectional=True)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        raise AssertionError

    async def converse(self, inbound: AsyncIterator[Message], engine: Engine) -> AsyncIterator[Message]:
        async for message in inbound:
            yield message


class Watcher:
    """Hears of requests, and refuses those that say so."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []
        self.forbidden = ""
        self.died = anyio.Event()

    @hookimpl
    def ovms_before_request(self, call: Call) -> None:
        if call.fields.get("forbidden") or call.service == self.forbidden:
            raise Refused("This is forbidden.")

    @hookimpl
    async def ovms_engine_exited(self) -> None:
        self.died.set()

    @hookimpl
    async def ovms_request_finished(self, call: Call, outcome: Any) -> None:
        self.outcomes.append(outcome)


class Setup:
    def __init__(self, settings: Settings) -> None:
        from ovms_graph_embeddings import Embeddings
        from ovms_graph_text_generation import TextGeneration

        self.platform, self.watcher = configured(MisbehavingPlatform), Watcher()
        self.extensions = Extensions(
            services={"chat": Chat(), "slow": Slow(), "careless": Careless(), "echo": Echo()},
            platforms={"misbehaving": self.platform},
            graphs={"embeddings": Embeddings({}), "text_generation": TextGeneration({})},
            observers={"watcher": self.watcher},
        )
        self.kernel = compose_kernel(settings, host=HOST, extensions=self.extensions)


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    setup = Setup(read_settings({}, data_dir=tmp_path / "data", restart_limit=1, rest_port=18766, grpc_port=18790))
    async with setup.kernel:
        yield setup


@pytest.fixture
async def ready(setup: Setup, fixtures: Path) -> Setup:
    await setup.kernel.install_engine()
    await setup.kernel.import_model(fixtures / "text_generation", "tiny/text")
    return setup


def ask(**fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "hi"}]} | fields).encode()


async def test_nothing_works_before_the_engine_is_installed_and_the_sentence_says_what_to_do(setup: Setup) -> None:
    kernel = setup.kernel
    assert not await kernel.check_engine()
    for question in (kernel.start_engine, kernel.health, kernel.upgrade_engine, kernel.engine_version):
        with pytest.raises(PreconditionFailed, match="ovms-plugin engine install"):
            await question()
    assert await kernel.running_models() == []


async def test_a_request_starts_the_engine_loads_the_model_and_is_answered(ready: Setup) -> None:
    kernel = ready.kernel
    assert kernel.supervisor.info is None
    answer = json.loads((await kernel.invoke("chat", Request(ask(model="tiny/text", seed=7)))).body)
    assert answer["asked"]["seed"] == 7, "unknown fields pass"
    assert [each.id for each in await kernel.running_models()] == ["tiny/text"]
    await kernel.health()
    chunks = [chunk async for chunk in kernel.stream("chat", Request(ask()))]
    assert b"".join(chunks).count(b"data: ") == 21
    assert chunks[-1].endswith(b"\n\ndata: [DONE]\n\n")
    assert [(each.code, each.bytes_out > 0) for each in ready.watcher.outcomes] == [(200, True), (200, True)]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "must be one JSON object, not list"),
        (b'{"model": 3}', "model must be a string"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
    ],
)
async def test_what_is_not_a_request_is_refused_before_the_engine_is_asked(
    setup: Setup, body: bytes, sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence):
        await setup.kernel.invoke("chat", Request(body))
    assert setup.kernel.supervisor.info is None


async def test_a_wrong_name_lists_what_there_is(ready: Setup) -> None:
    with pytest.raises(NotFound, match=r"no service 'paint' \(installed: careless, .*\); install ovms-service-paint"):
        await ready.kernel.invoke("paint", Request(b"{}"))
    with pytest.raises(
        NotFound, match=r"no/model is not installed; installed for text_generation: tiny/text\. Pull it"
    ):
        await ready.kernel.invoke("chat", Request(ask(model="no/model")))
    with pytest.raises(NotSupported, match="does not stream"):
        await anext(ready.kernel.stream("echo", Request(ask())))


async def test_a_request_that_no_engine_could_answer_starts_none(ready: Setup) -> None:
    kernel = ready.kernel
    with pytest.raises(NotFound, match="no/model is not installed"):
        await kernel.invoke("chat", Request(ask(model="no/model")))
    with pytest.raises(NotFound, match="no/model is not installed"):
        await anext(kernel.stream("chat", Request(ask(model="no/model"))))
    with pytest.raises(NotFound, match="no/model is not installed"):
        await kernel.load_model("no/model")
    assert not kernel.supervisor.started


async def test_a_model_that_a_user_listed_for_the_engine_is_no_stranger(ready: Setup, tmp_path: Path) -> None:
    await ready.kernel.init_environment()
    entry = {"config": {"name": "mine", "base_path": str(tmp_path / "mine")}}
    ready.kernel.settings.config_json.write_text(json.dumps({"model_config_list": [entry]}))
    assert json.loads((await ready.kernel.invoke("chat", Request(ask(model="mine")))).body)["object"] == "answer"


async def test_d1_36_a_model_of_another_type_is_refused_by_name(ready: Setup, fixtures: Path) -> None:
    await ready.kernel.import_model(fixtures / "embeddings", "tiny/embed")
    with pytest.raises(BadRequest, match="tiny/embed is for embeddings"):
        await ready.kernel.invoke("chat", Request(ask(model="tiny/embed")))
    assert not ready.kernel.supervisor.started


async def test_a_request_without_a_model_takes_the_only_one_the_last_one_or_the_default(
    setup: Setup, fixtures: Path
) -> None:
    kernel = setup.kernel
    await kernel.install_engine()

    async def chosen() -> str:
        return str(json.loads((await kernel.invoke("chat", Request(ask()))).body)["asked"]["model"])

    with pytest.raises(NotFound, match=r"tiny/default is not installed; .*`ovms-plugin pull tiny/default`"):
        await chosen()
    await kernel.import_model(fixtures / "text_generation", "tiny/a")
    assert await chosen() == "tiny/a"
    await kernel.import_model(fixtures / "text_generation", "tiny/b")
    await kernel.invoke("chat", Request(ask(model="tiny/b")))
    assert await chosen() == "tiny/b"
    await kernel.import_model(fixtures / "text_generation", "tiny/default")
    assert await chosen() == "tiny/default"


async def test_a_service_that_answers_with_something_else_than_bytes_is_named(ready: Setup) -> None:
    with pytest.raises(OvmsError, match="service careless answered with dict, not Answer"):
        await ready.kernel.invoke("careless", Request(b"{}"))
    with pytest.raises(OvmsError, match="service careless answered with str, not bytes"):
        async with aclosing(ready.kernel.stream("careless", Request(b"{}"))) as chunks:
            await anext(chunks)


async def test_an_extension_may_veto_a_request(ready: Setup) -> None:
    with pytest.raises(Refused, match="This is forbidden"):
        await ready.kernel.invoke("chat", Request(ask(forbidden=True)))
    assert ready.watcher.outcomes[-1].code == 400


async def test_a_request_has_its_time_and_no_more(ready: Setup) -> None:
    with pytest.raises(TimedOut, match=r"request was not done within its limit of 0\.2 s"):
        await ready.kernel.invoke("slow", Request(ask(), timeout=0.2))
    assert ready.watcher.outcomes[-1].code == 408
    async with aclosing(ready.kernel.stream("slow", Request(ask(), timeout=0.2))) as pieces:
        assert await anext(pieces) == b"data: {}\n\n"
        with pytest.raises(TimedOut, match=r"request was not done within its limit of 0\.2 s"):
            await anext(pieces)
    assert ready.watcher.outcomes[-1].code == 408


async def test_the_limit_of_a_request_holds_while_its_model_is_loaded(
    ready: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def never_ready(*_: Any, **__: Any) -> AsyncIterator[None]:
        await anyio.sleep_forever()
        yield

    monkeypatch.setattr(ready.kernel.residency, "use", never_ready)
    with pytest.raises(TimedOut, match=r"model was not ready within its limit of 0\.05 s"):
        await ready.kernel.invoke("chat", Request(ask(), timeout=0.05))
    with pytest.raises(TimedOut, match=r"model was not ready within its limit of 0\.05 s"):
        await anext(ready.kernel.stream("chat", Request(ask(), timeout=0.05)))


async def test_a_cancelled_request_is_told_as_such(ready: Setup) -> None:
    await ready.kernel.engine()
    with anyio.move_on_after(0.1):
        await ready.kernel.invoke("slow", Request(ask()))
    assert ready.watcher.outcomes[-1].code == 499
    stream = ready.kernel.stream("chat", Request(ask()))
    async with aclosing(stream) as chunks:
        await anext(chunks)
    assert ready.watcher.outcomes[-1].code == 499


async def test_an_engine_that_breaks_off_in_mid_stream_is_an_error_and_the_next_request_is_answered(
    ready: Setup,
) -> None:
    ready.platform.how = "cut"
    chunks: list[bytes] = []

    async def collect() -> None:
        async for chunk in ready.kernel.stream("chat", Request(ask())):
            chunks.append(chunk)  # noqa: PERF401 - what came before the error counts

    with pytest.raises((EngineFailed, Unavailable)):
        await collect()
    assert chunks
    assert ready.watcher.outcomes[-1].code in (502, 503)
    ready.platform.how = ""
    with anyio.fail_after(20):
        await ready.watcher.died.wait()
    assert json.loads((await ready.kernel.invoke("chat", Request(ask()))).body)["object"] == "answer"


async def test_an_engine_that_dies_fails_the_requests_in_flight_at_once(ready: Setup) -> None:
    ready.platform.how = "exit-after=1"
    with pytest.raises((EngineFailed, Unavailable)), anyio.fail_after(10):
        await ready.kernel.invoke("chat", Request(ask()))


async def test_models_are_served_again_after_a_crash(ready: Setup) -> None:
    kernel = ready.kernel
    await kernel.load_model("tiny/text")
    info = await kernel.engine()
    assert info.pid is not None
    end_by_force(info.pid)
    with anyio.fail_after(20):
        await ready.watcher.died.wait()
    assert json.loads((await kernel.invoke("chat", Request(ask()))).body)["object"] == "answer"
    assert [each.id for each in await kernel.running_models()] == ["tiny/text"]


async def test_a_stopped_kernel_admits_nothing(ready: Setup) -> None:
    await ready.kernel.invoke("chat", Request(ask()))
    await ready.kernel.stop()
    await ready.kernel.stop()
    for question in (ready.kernel.invoke("chat", Request(ask())), ready.kernel.start_engine()):
        with pytest.raises(Unavailable, match="stopping"):
            await question


async def test_an_install_that_is_up_to_date_does_nothing_even_twenty_times_at_once(setup: Setup) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(setup.kernel.install_engine)
    assert [each.version for each in setup.kernel.installations.versions()] == ["1.0"]
    assert await setup.kernel.check_engine()


async def test_a_host_that_no_platform_fits_is_told_what_to_install(tmp_path: Path) -> None:
    kernel = compose_kernel(read_settings({}, data_dir=tmp_path), host=HOST, extensions=Extensions())
    with pytest.raises(NotSupported, match="install ovms-platform-portable"):
        kernel.control.choice()
    named = compose_kernel(read_settings({}, data_dir=tmp_path, platform="beos"), host=HOST, extensions=Extensions())
    with pytest.raises(NotSupported, match="No platform extension named beos"):
        named.control.choice()


async def test_a_start_may_name_the_device_of_models_that_name_none(ready: Setup, fixtures: Path) -> None:
    kernel = ready.kernel
    with pytest.raises(PreconditionFailed, match="shows no GPU"):
        await kernel.start_engine("GPU")
    assert kernel.supervisor.info is None
    await kernel.start_engine("CPU")
    model = await kernel.load_model("tiny/text")
    assert 'device: "CPU"' in (model.directory / "graph.pbtxt").read_text("utf-8")
    await kernel.start_engine()


async def test_health_is_bad_when_the_engine_hangs(ready: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovms_kernel.engine.control.HEALTH_LIMIT", 0.5)
    info = await ready.kernel.engine()
    assert info.pid is not None
    await ready.kernel.health()
    freeze(info.pid)
    try:
        with pytest.raises(Unavailable, match="did not answer"):
            await ready.kernel.health()
    finally:
        thaw(info.pid)


async def test_the_version_is_what_the_program_says(ready: Setup) -> None:
    assert await ready.kernel.engine_version() == "2026.3.0-misbehaving"


async def test_a_session_is_a_request_that_is_told_and_can_be_refused(setup: Setup) -> None:
    await setup.kernel.install_engine()

    async def inbound() -> AsyncIterator[Message]:
        for _ in range(3):
            yield Message(b"12345678")

    assert len([each async for each in setup.kernel.converse("echo", inbound())]) == 3
    async with aclosing(setup.kernel.converse("echo", inbound())) as left:
        await anext(left)
    assert [(each.code, each.bytes_out) for each in setup.watcher.outcomes] == [(200, 24), (499, 8)]
    setup.watcher.forbidden = "echo"
    with pytest.raises(Refused, match="forbidden"):
        await anext(setup.kernel.converse("echo", inbound()))
    assert setup.watcher.outcomes[-1].code == Refused.code


async def test_a_request_waits_while_the_engine_loads_its_model_again(ready: Setup) -> None:
    from ovms_kernel.engine.client import NotLoadedYet

    kernel = ready.kernel
    await kernel.load_model("tiny/text")
    client, refused = await kernel.control.client(), 0
    post = client.post

    async def reloading(*arguments: Any, **more: Any) -> Any:
        nonlocal refused
        if refused < 3:
            refused += 1
            raise NotLoadedYet("The model is not loaded yet.")
        return await post(*arguments, **more)

    client.post = reloading  # type: ignore[method-assign]
    assert json.loads((await kernel.invoke("chat", Request(ask()))).body)["object"] == "answer"
    refused = -1000
    with pytest.raises((NotLoadedYet, TimedOut)):
        await kernel.invoke("chat", Request(ask(), timeout=0.5))
