"""Every trap of AOG (D1) and every fault of its sample plugin (D2) that the AOG face meets, by its number."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ovms_face_aog import quirks, sessions
from ovms_face_aog.client import bidi_request
from ovms_face_aog.framing import reframe_events
from ovms_face_aog.manifest import FLAVORS, PROVIDER
from ovms_kernel.errors import BadRequest, EngineFailed, NotFound, OvmsError, PreconditionFailed, TimedOut, Unavailable
from ovms_kernel.models.report import ResidentModel
from ovms_kernel.values import EngineStatus, Installation, LocalModel, Message, Progress, Request

MISSING = NotFound("Model x is not installed.")


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


async def load(face: Any, model: str) -> Any:
    return await face.call("LoadModel", request_json=body(model=model), timeout=20)


async def pull(face: Any, model: str = "tiny/chat", **more: Any) -> list[dict[str, Any]]:
    call = face.stream("PullModelStream", request_json=body(model=model, stream=True, **more), timeout=20)
    answers = []
    async for each in call:
        assert each.code == 0
        answers.append(json.loads(each.data))
    return answers


async def asked(face: Any, method: str) -> None:
    """Wait until the kernel was asked that."""
    async with asyncio.timeout(5):
        while not face.kernel.asked(method):  # noqa: ASYNC110 - the fake kernel has no events
            await asyncio.sleep(0.01)


# -- D1: AOG's server and SDK --------------------------------------------------------------------------------------


def test_d1_2_the_launcher_is_below_the_provider_s_name() -> None:
    from ovms_face_aog.manifest import executable

    assert PROVIDER == "ovms-plugin"
    assert executable("linux_amd64") == "bin/linux-amd64/ovms-plugin"
    assert executable("windows_amd64") == "bin/windows-amd64/ovms-plugin.exe"


async def test_d1_4_no_error_whatever_ends_the_process(aog: Any) -> None:
    for wrong in (KeyError("x"), SystemError("y"), RecursionError("z"), MemoryError()):
        aog.kernel.does["check_engine"] = wrong
        response = await aog.call("CheckEngine")
        assert response.code == 500
        assert type(wrong).__name__ in response.message
        assert "\n" not in response.message
    aog.kernel.does["check_engine"] = True
    assert (await aog.call("CheckEngine")).installed


async def test_d1_4_a_kernel_that_cannot_be_composed_is_told_by_every_rpc(uncomposed: Any) -> None:
    uncomposed.composed.set_exception(OvmsError("The config file is broken; fix it."))
    for method in ("CheckEngine", "StartEngine", "ListModels", "HealthCheck", "GetManifest", "UpgradeEngine"):
        response = await uncomposed.call(method, timeout=5)
        assert (response.code, response.message) == (500, "The config file is broken; fix it.")
    assert (await uncomposed.call("GetOperateStatus")).status == 1
    assert (await load(uncomposed, "x")).code == 0
    assert [each["status"] for each in await pull(uncomposed)] == ["error"]


async def test_d1_6_rpcs_before_the_kernel_is_composed_wait_for_it(uncomposed: Any) -> None:
    asked = asyncio.ensure_future(uncomposed.call("CheckEngine"))
    withdrawn = uncomposed.stream("InvokeServiceStream", service_name="chat", request_data=b"{}")
    await asyncio.wait([asked], timeout=0.1)
    withdrawn.cancel()
    assert not asked.done()
    uncomposed.composed.set_result(uncomposed.kernel)
    assert (await asked).installed


async def test_d1_9_stop_engine_is_never_relied_on_but_works(aog: Any) -> None:
    assert (await aog.call("StopEngine")).code == 0
    assert aog.kernel.asked("stop_engine")


async def test_d1_11_upgrade_engine_after_every_start_only_asks_the_kernel(aog: Any) -> None:
    assert (await aog.call("UpgradeEngine")).code == 0
    assert [name for name, _ in aog.kernel.calls] == ["upgrade_engine"]  # and it neither stops nor installs anything


async def test_d1_12_operate_status_is_always_told_as_it_is(aog: Any) -> None:
    assert (await aog.call("GetOperateStatus")).status == 1
    await aog.call("SetOperateStatus", status=0)
    assert (await aog.call("GetOperateStatus")).status == 0
    await aog.call("SetOperateStatus", status=1)
    for method, name in (("InstallEngine", "install_engine"), ("UpgradeEngine", "upgrade_engine")):
        finish = asyncio.Event()
        aog.kernel.does[name] = lambda finish=finish: finish.wait()
        installing = asyncio.ensure_future(aog.call(method))
        await asked(aog, name)
        assert (await aog.call("GetOperateStatus")).status == 0  # or AOG's keep-alive would start the engine meanwhile
        finish.set()
        await installing
        assert (await aog.call("GetOperateStatus")).status == 1


@pytest.mark.parametrize(
    ("mode", "device"), [("", ""), ("auto", ""), ("daemon", ""), ("standard", ""), ("cpu", "CPU"), ("gpu", "GPU")]
)
async def test_a_mode_is_the_device_of_models_that_name_none(aog: Any, mode: str, device: str) -> None:
    assert (await aog.call("StartEngine", mode=mode)).code == 0
    assert aog.kernel.asked("start_engine") == [(device,)]


async def test_a_mode_that_nobody_knows_is_refused(aog: Any) -> None:
    response = await aog.call("StartEngine", mode="turbo")
    assert (response.code, "turbo" in response.message) == (400, True)
    assert not aog.kernel.asked("start_engine")


async def test_d1_13_an_engine_that_is_not_installed_is_412(aog: Any) -> None:
    aog.kernel.does["start_engine"] = PreconditionFailed("The engine is not installed.")
    assert (await aog.call("StartEngine", mode="daemon")).code == 412


async def test_d1_14_health_is_false_while_the_engine_starts_or_is_down(aog: Any) -> None:
    aog.kernel.does["health"] = Unavailable("The engine is starting.")
    assert (await aog.call("HealthCheck")).code == 503


async def test_d1_15_d2_24_load_model_never_fails(aog: Any) -> None:
    for wrong in (MISSING, EngineFailed("broken"), KeyError("x")):
        aog.kernel.does["load_model"] = wrong
        response = await load(aog, "x")
        assert (response.code, response.message) == (0, "")
    for request in (b"", b"rubbish", b"[]", b'{"model":5}'):
        assert (await aog.call("LoadModel", request_json=request)).code == 0


async def test_d1_15_a_load_that_failed_is_told_by_the_next_request(aog: Any) -> None:
    broken = EngineFailed("The model is broken: no such layer.")
    aog.kernel.does |= {"load_model": broken, "invoke": broken}  # the kernel remembers it
    assert (await load(aog, "x/y")).code == 0
    response = await aog.call("InvokeService", service_name="chat", request_data=body(model="x/y"))
    assert (response.code, response.message) == (502, broken.message)


async def test_d1_15_d2_24_load_model_returns_long_before_aog_s_limit(
    aog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert quirks.LOAD_LIMIT < 240
    monkeypatch.setattr(quirks, "LOAD_LIMIT", 0.05)
    aog.kernel.does["load_model"] = lambda _: asyncio.Event().wait()
    assert (await load(aog, "slow")).code == 0
    assert (await load(aog, "slow")).code == 0


async def test_d1_17_unload_is_a_hint(aog: Any) -> None:
    hints: list[bool] = []
    aog.kernel.does["unload_models"] = lambda _models, hint=False: hints.append(hint)
    assert (await aog.call("UnloadModel", request_json=body(models=["tiny/chat"]))).code == 0
    assert aog.kernel.asked("unload_models") == [(["tiny/chat"],)]
    assert hints == [True]


async def test_d1_18_models_of_other_engines_are_unloaded_without_error(aog: Any) -> None:
    aog.kernel.does["unload_models"] = MISSING
    for request in (body(models=["llama3:8b"]), body(models=None), b"", b"rubbish", body(models=[5])):
        assert (await aog.call("UnloadModel", request_json=request)).code == 0
    await load(aog, "other")


async def test_d1_19_d1_52_d2_33_the_live_service_s_row_serves_a_plain_request(aog: Any) -> None:
    aog.kernel.does["invoke"] = b'{"text":"hello"}'
    response = await aog.call("InvokeService", service_name="speech-to-text-ws", request_data=body(model="x"))
    assert response.response_data == b'{"text":"hello"}'
    assert aog.kernel.asked("invoke")[0][0] == "speech-to-text"


async def test_d1_19_a_request_that_names_no_model_gets_the_one_that_was_loaded_for_it(aog: Any) -> None:
    aog.kernel.does["invoke"] = b"{}"
    tiny = LocalModel("tiny/chat", Path(), "text_generation", 1, "", datetime.now(UTC))
    latest = ResidentModel(tiny, "loaded", last_used=2.0)
    older = ResidentModel(replace(tiny, id="tiny/older"), "loaded", last_used=1.0)
    aog.kernel.does["resident_models"] = [latest, older]
    await aog.call("InvokeService", service_name="chat", request_data=body(messages=[]))
    await aog.call("InvokeService", service_name="embed", request_data=body(input="x"))
    chat, embed = (json.loads(each[1].body) for each in aog.kernel.asked("invoke"))
    assert chat["model"] == "tiny/chat"
    assert "model" not in embed  # none of its type was loaded


def test_d1_21_d1_22_every_service_has_a_template_that_aog_knows() -> None:
    from ovms_kernel.engine.host import read_host
    from ovms_kernel.extensions import compose
    from ovms_kernel.settings import read_settings

    extensions = compose(read_settings({}, data_dir=Path("nowhere")), read_host())
    definitions = [each.definition for each in extensions.services.values() if "aog" in each.definition.extras]
    assert len(definitions) >= 8
    for each in definitions:
        for reference in filter(None, (each.extras["aog"]["config_ref"], each.extras["aog"].get("config_ref_full"))):
            flavor, _, service = reference.partition(":")
            assert flavor in FLAVORS
            assert service


async def test_d1_26_a_pull_s_error_is_data_and_not_a_code(aog: Any) -> None:
    aog.kernel.does["pull_model"] = MISSING
    *_, last = await pull(aog)
    assert last == {"status": "error", "error": MISSING.message, "code": 404}
    aog.kernel.does["pull_model"] = KeyError("x")
    *_, last = await pull(aog)
    assert last["status"] == "error"
    response = await aog.call("PullModel", request_json=body(model="x"))
    assert response.code == 500  # without a stream it is a code


async def test_d1_26_d1_30_a_pull_lingers_after_its_last_word(aog: Any) -> None:
    for does in (aog.kernel.does["pull_model"], MISSING):
        aog.kernel.does["pull_model"] = does
        last = 0.0
        async for _ in aog.stream("PullModelStream", request_json=body(model="tiny/chat")):
            last = time.monotonic()
        assert time.monotonic() - last > 0.4


async def test_d1_27_a_pull_that_nobody_watches_any_more_goes_on(aog: Any) -> None:
    finish, done = asyncio.Event(), asyncio.Event()

    async def work(*_: Any, **__: Any) -> Any:
        await finish.wait()
        done.set()

    aog.kernel.does["pull_model"] = work
    call = aog.stream("PullModelStream", request_json=body(model="tiny/chat"))
    await call.read()
    call.cancel()
    finish.set()
    async with asyncio.timeout(5):
        await done.wait()


async def test_other_hosts_stop_a_pull_by_withdrawing_it(other: Any) -> None:
    cancelled = asyncio.Event()

    async def work(*_: Any, **__: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    other.kernel.does["pull_model"] = work
    call = other.stream("PullModelStream", request_json=body(model="tiny/chat"))
    await call.read()
    call.cancel()
    async with asyncio.timeout(5):
        await cancelled.wait()


async def test_d1_29_a_pull_s_error_can_be_pasted_into_json(aog: Any) -> None:
    aog.kernel.does["pull_model"] = NotFound('No "x"\nat C:\\models.')
    *_, last = await pull(aog)
    assert not set('"\n\\') & set(last["error"])


async def test_d1_33_d1_34_d1_35_streams_are_framed_exactly(aog: Any) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "a\n\nb"}}], "created": 1700000000, "model": "m"}
    usage = {"choices": [], "usage": {"total_tokens": 3}}

    async def stream(*_: Any, **__: Any) -> AsyncIterator[bytes]:
        yield b": ping\n\n"
        yield b"\n\n"
        yield b"event: x\r\ndata:" + json.dumps(chunk, indent=1).replace("\n", "").encode() + b"\r\n\r\n"
        yield b"data: " + json.dumps(usage).encode() + b"\n\n"
        yield b"data: not json\n\n"
        yield b"data: [DONE]\n\n"

    aog.kernel.does["stream"] = stream
    answers = [
        each async for each in aog.stream("InvokeServiceStream", service_name="chat", request_data=body(model="m"))
    ]
    assert [each.code for each in answers] == [0, 0]
    data, last = answers
    assert last.is_final
    assert not last.chunk_data
    assert data.chunk_data.startswith(b"data: {")
    assert data.chunk_data.endswith(b"}\n\n")
    assert data.chunk_data.count(b"\n\n") == 1
    assert json.loads(data.chunk_data[6:]) == chunk | {"created": "2023-11-14T22:13:20Z"}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["as engines write it", "with spaces"])
def test_d1_37_d1_33_an_event_is_one_that_aog_s_clients_can_add_up(separators: tuple[str, str]) -> None:
    # A client that adds `message.content` to its text prints "null" otherwise.
    text = 'not "created":1700000001, "content":null nor "error":'
    first = {"created": 1700000000, "choices": [{"index": 0, "delta": {"content": None, "role": "assistant"}}]}
    more = {"created": 1700000000, "choices": [{"index": 0, "delta": {"content": text}}]}
    for event, content in ((first, ""), (more, text)):
        framed = b"".join(reframe_events(b"data: " + json.dumps(event, separators=separators).encode() + b"\n\n"))
        assert framed.startswith(b"data: {")
        read = json.loads(framed[6:])
        assert read["created"] == "2023-11-14T22:13:20Z"
        assert read["choices"][0]["delta"]["content"] == content


@pytest.mark.parametrize("usage", [b"", b'data: {"choices":[],"usage":{},"created":1}\n\n'], ids=["plain", "usage"])
async def test_d1_33_events_that_arrived_together_are_all_framed(aog: Any, full: Any, usage: bytes) -> None:
    words = [f"w{number}" for number in range(20)]
    events = b"".join(
        b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}],"created":1700000000}\n\n' % each.encode()
        for each in words
    )

    async def stream(*_: Any, **__: Any) -> AsyncIterator[bytes]:
        yield events + usage + b"data: [DONE]\n\n"

    for face, prefix in ((aog, b"data: "), (full, b"data: data: ")):
        face.kernel.does["stream"] = stream
        call = face.stream("InvokeServiceStream", service_name="chat", request_data=body(model="m"))
        *pieces, last = [each async for each in call]
        assert last.is_final
        found = b"".join(each.chunk_data for each in pieces).split(b"\n\n")
        assert found.pop() == b""
        assert all(each.startswith(prefix + b"{") for each in found)
        read = [json.loads(each.removeprefix(prefix)) for each in found]
        assert [each["choices"][0]["delta"]["content"] for each in read] == words
        assert {each["created"] for each in read} == {"2023-11-14T22:13:20Z"}


async def test_other_hosts_get_streams_byte_for_byte(other: Any) -> None:
    events = [b'data: {"created":1}\n\n', b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n"]

    async def stream(*_: Any, **__: Any) -> AsyncIterator[bytes]:
        for each in events:
            yield each

    other.kernel.does |= {"stream": stream, "invoke": b'{"created": 1}'}
    call = other.stream("InvokeServiceStream", service_name="chat", request_data=b"{}")
    answers = [each async for each in call]
    assert b"".join(each.chunk_data for each in answers) == b"".join(events)
    assert answers[0].chunk_data == events[0]  # what somebody waits for is sent alone
    assert [each.is_final for each in answers[-2:]] == [False, True]
    answer = await other.call("InvokeService", service_name="chat", request_data=b"{}")
    assert answer.response_data == b'{"created": 1}'


async def test_d1_35_an_error_in_mid_stream_is_a_code(aog: Any) -> None:
    async def stream(*_: Any, **__: Any) -> AsyncIterator[bytes]:
        yield b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
        yield b'data: {"error":{"message":"The context is full."}}\n\n'

    aog.kernel.does["stream"] = stream
    call = aog.stream("InvokeServiceStream", service_name="chat", request_data=body(model="m"))
    first, last = [each async for each in call]
    assert first.code == 0
    assert (last.code, last.message) == (502, "The context is full.")
    with pytest.raises(EngineFailed, match="plain"):
        list(reframe_events(b'data: {"error": "plain"}\n\n'))


async def test_d1_35_a_stream_that_aog_does_not_convert_gets_the_prefix_that_aog_takes_away(full: Any) -> None:
    async def stream(*_: Any, **__: Any) -> AsyncIterator[bytes]:
        yield b'data: {"a":1}\n\n'

    full.kernel.does["stream"] = stream
    data, _ = [each async for each in full.stream("InvokeServiceStream", service_name="chat", request_data=b"{}")]
    assert data.chunk_data == b'data: data: {"a":1}\n\n'


async def test_bodies_that_aog_does_not_convert_name_vectors_as_it_does(full: Any, aog: Any) -> None:
    answer = b'{"object":"list","data":[{"embedding":[0.5],"index":0}],"model":"m"}'
    for face, key in ((full, "embeddings"), (aog, "data")):
        face.kernel.does["invoke"] = answer
        response = await face.call("InvokeService", service_name="embed", request_data=body(model="m"))
        assert json.loads(response.response_data)[key] == [{"embedding": [0.5], "index": 0}]
    for other in (b"rubbish", b"[]", b'{"data":[]}', b'{"data":[{"b64_json":""}]}'):
        full.kernel.does["invoke"] = other
        response = await full.call("InvokeService", service_name="embed", request_data=body(model="m"))
        assert response.response_data == other


async def test_d1_39_voices_that_aog_demands_are_not_demanded_of_the_model(full: Any) -> None:
    full.kernel.does["invoke"] = b"{}"
    for voice in ("female", "my-own"):
        await full.call("InvokeService", service_name="embed", request_data=body(model="m", voice=voice))
    first, second = (json.loads(each[1].body) for each in full.kernel.asked("invoke"))
    assert first == {"model": "m"}
    assert second == {"model": "m", "voice": "my-own"}


async def test_a_request_that_is_no_json_gets_to_who_refuses_it(aog: Any) -> None:
    # Half a character is what a client sends that cuts a text in the middle of an emoji.
    aog.kernel.does["invoke"] = BadRequest("The request is not valid JSON.")
    await load(aog, "tiny/chat")
    for sent in (b'{"prompt": "\\ud83d"}', b'{"model": "m", "voice": "girl", "text": "\\ud83d"}', b"[]", b"{"):
        response = await aog.call("InvokeService", service_name="chat", request_data=sent)
        assert (response.code, response.message) == (400, "The request is not valid JSON.")
        assert aog.kernel.asked("invoke")[-1][1].body == sent


async def test_d1_37_created_is_text(aog: Any) -> None:
    aog.kernel.does["invoke"] = b'{"created": 1700000000, "choices": []}'
    response = await aog.call("InvokeService", service_name="chat", request_data=body(model="m"))
    assert json.loads(response.response_data)["created"] == "2023-11-14T22:13:20Z"


async def test_d1_36_d1_38_the_rpc_decides_whether_an_answer_streams(aog: Any) -> None:
    aog.kernel.does["invoke"] = b"{}"
    response = await aog.call("InvokeService", service_name="chat", request_data=body(model="m", stream=True))
    assert response.code == 0
    assert not aog.kernel.asked("stream")


# -- live sessions -------------------------------------------------------------------------------------------------


class Talk:
    """One live session, with a service that writes down what it hears and answers in turn."""

    def __init__(self, face: Any) -> None:
        self.heard: list[Message] = []
        self.requests: asyncio.Queue[Any] = asyncio.Queue()
        self.fail: Exception | None = None
        self.conversations = 0
        face.kernel.does["converse"] = self.converse
        self.call = face.converse(self.outbound())

    async def outbound(self) -> AsyncIterator[Any]:
        while (each := await self.requests.get()) is not None:
            yield each

    async def converse(self, service: str, inbound: AsyncIterator[Message]) -> AsyncIterator[Message]:
        self.conversations += 1
        async for message in inbound:
            self.heard.append(message)
            action = json.loads(message.data).get("action") if message.kind == "text" else "audio"
            if self.fail:
                raise self.fail
            if action == "run-task":
                yield event("task-started")
            elif action == "audio":
                yield event("result-generated")
            else:
                yield event("task-finished")

    def say(self, data: bytes, kind: str = "text", **fields: Any) -> None:
        self.requests.put_nowait(bidi_request(data, kind, **fields))

    async def next(self) -> tuple[str, str]:
        async with asyncio.timeout(5):
            answer = await self.call.read()
        assert answer.code == 0
        self.last = json.loads(answer.data)
        return self.last["header"]["event"], answer.message_type


def event(name: str) -> Message:
    return Message(json.dumps({"header": {"task_id": "t", "event": name}, "payload": {}}).encode(), "text")


FIRST: dict[str, Any] = {
    "service_name": "speech-to-text-ws",
    "is_first": True,
    "metadata": {"ws_conn_id": "c7", "language": "en"},
}


async def test_d1_39_d2_35_actions_that_aog_lost_are_put_back(aog: Any) -> None:
    talk = Talk(aog)
    later: dict[str, Any] = {"metadata": {"model": "m", "sample_rate": "16000", "format": "pcm", "language": "en"}}
    talk.say(b"{}", **FIRST)
    talk.say(b"\0\1", "binary", **later)
    assert await talk.next() == ("result-generated", "text")
    talk.say(body(model="m"), **later)
    assert await talk.next() == ("task-finished", "text")
    talk.say(body(model="m"), **later)
    talk.say(b"\0\1", "binary", **later)
    assert await talk.next() == ("result-generated", "text")
    run, audio, finish, again, _ = talk.heard
    assert json.loads(run.data) == {
        "task": "speech-to-text-ws", "action": "run-task", "task_id": "c7", "parameters": {"language": "en"}
    }  # fmt: skip
    assert audio.data == b"\0\1"
    assert json.loads(finish.data)["action"] == "finish-task"
    assert json.loads(again.data)["action"] == "run-task"
    assert json.loads(again.data)["model"] == "m"
    assert json.loads(again.data)["parameters"] == {"language": "en", "format": "pcm", "sample_rate": 16000}
    assert {each.metadata["ws_conn_id"] for each in talk.heard} == {"c7"}
    talk.call.cancel()


async def test_d1_39_a_task_whose_run_task_was_lost_begins_with_its_sound_every_time(aog: Any) -> None:
    talk = Talk(aog)
    later: dict[str, Any] = {"metadata": {"model": "m", "sample_rate": "16000", "format": "pcm", "language": "en"}}
    talk.say(b"\0\1", "binary", **(FIRST | {"metadata": FIRST["metadata"] | later["metadata"]}))
    assert await talk.next() == ("result-generated", "text")
    talk.say(body(model="m"), **later)
    assert await talk.next() == ("task-finished", "text")
    talk.say(b"\0\2", "binary", **later)  # and not "Audio came while no task runs"
    assert await talk.next() == ("result-generated", "text")
    run, audio, finish, again, more = talk.heard
    assert [audio.data, more.data] == [b"\0\1", b"\0\2"]
    assert json.loads(finish.data)["action"] == "finish-task"
    for each in (run, again):
        task = json.loads(each.data)
        assert (task["action"], task["model"]) == ("run-task", "m")
        assert task["parameters"] == {"language": "en", "format": "pcm", "sample_rate": 16000}
    talk.call.cancel()


async def test_d1_39_a_task_whose_finish_task_was_lost_is_finished_after_silence(
    aog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SILENCE", 0.3)
    talk = Talk(aog)
    talk.say(b"{}", **FIRST)
    talk.say(b"\0", "binary")
    assert await talk.next() == ("result-generated", "text")
    assert await talk.next() == ("task-finished", "text")
    assert json.loads(talk.heard[-1].data)["action"] == "finish-task"
    talk.say(b"\0", "binary")
    assert await talk.next() == ("result-generated", "text")  # the session is as good as before
    talk.call.cancel()


async def test_d1_39_a_task_whose_sound_was_lost_is_finished(aog: Any) -> None:
    talk = Talk(aog)
    talk.say(b"{}", **FIRST)
    talk.say(b"{}")
    assert await talk.next() == ("task-finished", "text")
    talk.call.cancel()


async def test_a_message_that_is_no_json_gets_to_the_service_and_holds_up_nothing(aog: Any) -> None:
    talk, sent = Talk(aog), b'{"action": "run-task", "task": NaN}'
    talk.say(sent, **FIRST)
    talk.say(body(action="run-task"))
    talk.say(b"\0", "binary")
    assert await talk.next() == ("result-generated", "text")
    assert talk.heard[0].data == sent
    talk.call.cancel()


async def test_d1_39_d1_41_a_whole_action_is_left_alone_and_aog_s_greeting_not_repeated(aog: Any) -> None:
    talk = Talk(aog)
    run = {"action": "run-task", "model": "m", "parameters": {"use_vad": True}}
    talk.say(body(**run), **FIRST)
    talk.say(b"\0", "binary")
    assert await talk.next() == ("result-generated", "text")  # and not task-started
    assert json.loads(talk.heard[0].data) == run
    talk.call.cancel()


async def test_d1_40_a_session_that_nobody_closes_ends_when_idle(aog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for finish in (False, True):
        monkeypatch.setattr(sessions, "IDLE", 60.0 if finish else 0.5)
        monkeypatch.setattr(sessions, "IDLE_AFTER_TASK", 0.5 if finish else 60.0)
        talk = Talk(aog)
        talk.say(b"{}", **FIRST)
        talk.say(b"\0", "binary")
        assert await talk.next() == ("result-generated", "text")
        if finish:
            talk.say(b"{}")
            assert await talk.next() == ("task-finished", "text")
        async with asyncio.timeout(5):
            assert not await talk.call.read()  # the end
        talk.requests.put_nowait(None)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotFound("No such model."), "CLIENT_ERROR"),
        (EngineFailed("The model broke."), "MODEL_ERROR"),
        (Unavailable("No engine."), "SERVER_ERROR"),
        (KeyError("x"), "SERVER_ERROR"),
    ],
)
async def test_d1_42_d2_35_a_failure_is_an_event_and_the_session_goes_on(aog: Any, error: Exception, kind: str) -> None:
    talk = Talk(aog)
    talk.fail = error
    talk.say(b"{}", **FIRST)
    assert await talk.next() == ("task-failed", "text")
    assert talk.last["header"]["error_code"] == kind
    assert talk.last["header"]["task_id"] == "c7"
    assert talk.last["header"]["error_message"]
    talk.fail = None
    talk.say(b"\0", "binary")  # audio of the task that failed
    talk.say(body(action="run-task"))
    talk.say(b"\1", "binary")
    assert await talk.next() == ("result-generated", "text")
    assert [each.data for each in talk.heard if each.kind == "binary"] == [b"\1"]
    assert talk.conversations == 2
    talk.call.cancel()


async def test_other_hosts_get_codes_and_the_greeting(other: Any) -> None:
    talk = Talk(other)
    talk.say(body(action="run-task"), **FIRST)
    assert await talk.next() == ("task-started", "text")
    talk.fail = NotFound("No such model.")
    talk.say(b"\0", "binary")
    last = await talk.call.read()
    assert (last.code, last.message) == (404, "No such model.")
    talk.call.cancel()


async def test_d1_44_loading_twice_is_loading_once(aog: Any) -> None:
    both = await asyncio.gather(load(aog, "tiny/chat"), load(aog, "tiny/chat"))
    assert [each.code for each in both] == [0, 0]
    assert len(aog.kernel.asked("load_model")) <= 2


async def test_a_client_that_leaves_a_session_frees_it(aog: Any) -> None:
    left = asyncio.Event()

    async def converse(service: str, inbound: AsyncIterator[Message]) -> AsyncIterator[Message]:
        try:
            async for _ in inbound:
                yield event("result-generated")
        finally:
            left.set()

    talk = Talk(aog)
    aog.kernel.does["converse"] = converse
    talk.say(b"{}", **FIRST)
    await talk.next()
    talk.call.cancel()
    async with asyncio.timeout(5):
        await left.wait()


async def test_d1_50_a_stream_that_aog_reads_no_more_ends_with_its_deadline(aog: Any) -> None:
    stopped = asyncio.Event()

    async def stream(*_: Any, **__: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % (b"a" * (64 << 10))
        finally:
            stopped.set()

    aog.kernel.does["stream"] = stream
    # AOG's client waits for ever to hand on what nobody takes; only its deadline of 300 s, here shorter, is left.
    call = aog.stream("InvokeServiceStream", timeout=4, service_name="chat", request_data=body(model="m"))
    assert (await call.read()).code == 0
    async with asyncio.timeout(5):
        await stopped.wait()


async def test_d1_46_messages_are_for_people_as_aog_shows_only_them(aog: Any) -> None:
    response = await aog.call("InvokeService", service_name="paint", request_data=b"{}")
    assert (response.code, response.message) == (404, "There is no service 'paint'.")


async def test_d1_49_install_engine_ignores_cover(aog: Any) -> None:
    for cover in (False, True):
        assert (await aog.call("InstallEngine", cover=cover)).code == 0
    assert aog.kernel.asked("install_engine") == [(), ()]


# -- D2: what AOG's sample plugin does wrong -----------------------------------------------------------------------


async def test_d2_10_d2_11_version_and_config_are_real(aog: Any) -> None:
    version = await aog.call("GetVersion", request_json=b'{"version":""}')
    assert json.loads(version.response_json) == {"version": "2026.3"}
    program = Path("/data/engine/versions/1/ovms/bin/ovms")
    active = Installation("1", Path("/data/engine/versions/1"), "ubuntu2404")
    aog.kernel.does["engine_status"] = EngineStatus("ready", "http://127.0.0.1:17001", active, program)
    assert json.loads((await aog.call("GetConfig")).config_json) == {
        "host": "http://127.0.0.1:17001",
        "origin": "127.0.0.1",
        "scheme": "http",
        "recommend_model": "",
        "download_url": "",
        "download_path": str(aog.kernel.settings.models_dir),
        "engine_path": str(active.directory),
        "exec_path": str(program.parent),
        "exec_file": "ovms",
        "device_type": "CPU",
    }


async def test_d2_18_an_empty_model_id_deletes_nothing(aog: Any) -> None:
    for request in (b"", b"{}", body(model=""), body(model=None), b"[]"):
        assert (await aog.call("DeleteModel", request_json=request)).code == 400
    assert not aog.kernel.asked("delete_model")


async def test_deleting_twice_is_no_error_for_aog_only(aog: Any, other: Any) -> None:
    for face, code in ((aog, 0), (other, 404)):
        face.kernel.does["delete_model"] = MISSING
        assert (await face.call("DeleteModel", request_json=body(model="x"))).code == code


async def test_d2_19_progress_is_told_while_it_happens_and_never_holds_the_work_up(aog: Any) -> None:
    finished = asyncio.Event()

    async def work(*_: Any, report: Any, **__: Any) -> Any:
        for done in range(10_000):
            report(Progress("downloading", done, 10_000))
        await asyncio.sleep(0.3)
        report(Progress("success", 10_000, 10_000))
        finished.set()
        return aog.kernel.does["list_models"][0]

    aog.kernel.does["pull_model"] = work
    call = aog.stream("PullModelStream", request_json=body(model="tiny/chat"))
    await finished.wait()  # nobody has read yet
    answers = [json.loads(each.data) async for each in call]
    assert all(each["completed"] >= 1 for each in answers)
    assert [each["status"] for each in answers].count("success") == 1
    assert any(each["status"] == "downloading" and each["total"] == 10_000 for each in answers)
    assert len(answers) < 20


async def test_d2_20_success_is_told_only_after_everything_succeeded(aog: Any) -> None:
    async def work(*_: Any, report: Any, **__: Any) -> Any:
        report(Progress("success", 5, 5))
        raise EngineFailed("It could not be published.")

    aog.kernel.does["pull_model"] = work
    assert [each["status"] for each in await pull(aog)][-1] == "error"
    assert "success" not in [each["status"] for each in await pull(aog)]


@pytest.mark.parametrize("method", ["ListModels", "GetRunningModels"])
async def test_d2_23_models_are_told_as_aog_s_types_read_them(aog: Any, method: str) -> None:
    response = await aog.call(method)
    assert json.loads(response.response_json) == {
        "models": [
            {
                "name": "tiny/chat",
                "model": "tiny/chat",
                "modified_at": "2026-01-02T03:04:05+00:00",
                "size": 1234,
                "digest": "ab" * 32,
                "details": {
                    "format": "openvino",
                    "family": "qwen",
                    "families": ["qwen"],
                    "parameter_size": "",
                    "quantization_level": "",
                },
            }
        ]
    }


async def test_the_pull_request_s_service_name_is_a_model_type(aog: Any) -> None:
    seen: list[str] = []

    async def work(*_: Any, model_type: str, **__: Any) -> Any:
        seen.append(model_type)
        return aog.kernel.does["list_models"][0]

    aog.kernel.does["pull_model"] = work
    for given in ("chat", "embed", "rerank_type", ""):
        await aog.call("PullModel", request_json=body(model="x/y", stream=False, model_type=given))
    await aog.call("PullModel", request_json=body(model="x/y"))
    assert seen == ["text_generation", "embeddings", "rerank_type", "", ""]


async def test_a_model_of_ollama_s_is_refused_with_one_that_works(aog: Any) -> None:
    response = await aog.call("PullModel", request_json=body(model="bge-m3:567m", model_type="embed"))
    assert response.code == 404
    assert "OpenVINO/bge-int8-ov" in response.message


@pytest.mark.parametrize("method", ["SetAuth", "ValidateAuth", "RefreshAuth"])
async def test_remote_only_rpcs_answer_as_unsupported(aog: Any, method: str) -> None:
    assert (await aog.call(method)).code == 501


# -- deadlines and cancels -----------------------------------------------------------------------------------------


async def test_our_own_words_come_before_the_deadline(other: Any) -> None:
    async def invoke(_: str, request: Request) -> bytes:
        assert request.timeout
        await asyncio.sleep(request.timeout)
        raise TimedOut("It was not done in time.")

    other.kernel.does["invoke"] = invoke
    response = await other.call("InvokeService", timeout=1.0, service_name="chat", request_data=b"{}")
    assert (response.code, response.message) == (408, "It was not done in time.")


async def test_a_cancel_reaches_the_kernel(other: Any) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(*_: Any, **__: Any) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def stream(*_: Any, **__: Any) -> AsyncIterator[bytes]:
        await wait()
        yield b""

    other.kernel.does |= {"invoke": wait, "stream": stream}
    for start in (
        lambda: asyncio.ensure_future(other.call("InvokeService", service_name="chat")),
        lambda: other.stream("InvokeServiceStream", service_name="chat"),
    ):
        call = start()
        async with asyncio.timeout(5):
            await began.wait()
            call.cancel()
            await cancelled.wait()
        began.clear()
        cancelled.clear()


async def test_large_answers(aog: Any) -> None:
    picture = b'{"created": 1, "data": [{"b64_json": "' + b"A" * (64 << 20) + b'"}]}'
    aog.kernel.does["invoke"] = picture
    response = await aog.call("InvokeService", service_name="embed", request_data=body(model="m"))
    assert response.response_data == picture


async def test_hundreds_of_calls_at_once(aog: Any) -> None:
    together = asyncio.Barrier(300)

    async def invoke(*_: Any, **__: Any) -> bytes:
        await together.wait()
        return b'{"choices": []}'

    aog.kernel.does["invoke"] = invoke
    async with asyncio.timeout(30):
        answers = await asyncio.gather(
            *(aog.call("InvokeService", service_name="chat", request_data=b"{}") for _ in range(300))
        )
    assert {each.code for each in answers} == {0}
