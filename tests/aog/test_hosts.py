"""AOG's scenarios, played by go-plugin's own library and by the host in Python; both must be told the same."""

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf import json_format, message_factory

from ovms_face_aog.client import PluginHost, plugin_command
from ovms_face_aog.protos import aog_provider_pb2
from ovms_kernel.testing.hub import FakeHub

Step = dict[str, Any]
GO = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
SOURCE = Path(__file__).parents[1] / "hosts" / "go"
MODELS = {
    "OpenVINO/tiny-chat": ("chat", "text_generation"),
    "OpenVINO/tiny-embed": ("embed", "embeddings"),
    "OpenVINO/tiny-rerank": ("rerank", "rerank"),
    "OpenVINO/tiny-images": ("text-to-image", "image_generation"),
    "OpenVINO/tiny-ears": ("speech-to-text", "speech_to_text"),
    "OpenVINO/tiny-voice": ("text-to-speech", "text_to_speech"),
}
VOLATILE = re.compile(r"^(id|created|created_at|modified_at|url|usage|device_type|engine_path|exec_path|task_id)$")
PLACE = {"type": "object", "properties": {"at": {"enum": ["left", "right"]}}, "required": ["at"]}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": PLACE | {"additionalProperties": False}}}]
ANSWERS = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."


def coded(value: bytes | dict[str, Any]) -> str:
    return base64.b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).decode()


def about(call: str, **request: Any) -> Step:
    return {"call": call, "requests": [{"request_json": coded(request)}]}


def ask(service: str, *, stream: bool = False, **body: Any) -> Step:
    call = "InvokeServiceStream" if stream else "InvokeService"
    return {"call": call, "requests": [{"service_name": service, "request_data": coded(body)}], "seconds": 60}


def scenario(fixtures: Path) -> list[Step]:
    """What AOG asks from a first start to the end."""
    sample = fixtures / "speech_to_text_samples" / "en_turn_on_the_light.wav"
    question = [{"role": "user", "content": "What is OpenVINO?"}]
    chat, embed, rerank, images, ears, voice = MODELS
    return [
        # `aog server start` before anything is installed
        {"call": "StartEngine", "requests": [{"mode": "standard"}]},
        # service/install
        {"call": "CheckEngine"},
        {"call": "InstallEngine"},
        {"call": "CheckEngine"},
        {"call": "InitEnv"},
        {"call": "StartEngine", "requests": [{"mode": "daemon"}]},
        {"call": "UpgradeEngine"},
        {"call": "GetOperateStatus"},
        {"call": "ListModels"},
        *(about("PullModel", model=model, stream=False, model_type=service) for model, (service, _) in MODELS.items()),
        about("PullModelStream", model=chat, stream=True, model_type="generate"),
        about("PullModelStream", model="OpenVINO/nothing", stream=True, model_type="chat"),
        {"call": "ListModels"},
        # keep-alive, and what a user may look at
        {"call": "StartEngine", "requests": [{"mode": "daemon"}]},
        {"call": "GetManifest"},
        about("GetVersion", version=""),
        {"call": "SetAuth", "requests": [{"auth_type": "none"}]},
        # requests, each after what the queue does before
        about("LoadModel", model=chat),
        {"call": "HealthCheck"},
        ask("chat", model=chat, messages=question, temperature=0),
        ask("chat", stream=True, model=chat, messages=question, temperature=0, stream_options={"include_usage": True}),
        ask("chat", model=chat, messages=question, temperature=0, tools=TOOLS, tool_choice="none"),
        ask("chat", model=chat, messages=question, temperature=0, tools=TOOLS, tool_choice="required", max_tokens=999),
        ask(
            "chat",
            stream=True,
            model=chat,
            messages=question,
            temperature=0,
            tools=TOOLS,
            tool_choice="required",
            max_tokens=999,
        ),
        ask("chat", stream=True, model=chat, messages=question, max_tokens=400, ignore_eos=True, temperature=0),
        ask("generate", model=chat, prompt="What is OpenVINO?", max_tokens=5, temperature=0),
        ask("chat", model=chat, messages=[]),
        about("LoadModel", model=embed),
        ask("embed", model=embed, input=["one", "two"]),
        about("UnloadModel", models=[chat]),
        about("LoadModel", model=rerank),
        ask("rerank", model=rerank, query="kitten", documents=["a cat", "a car"], top_n=2),
        about("LoadModel", model=images),
        ask("text-to-image", model=images, prompt="a cat", size="64x64", num_inference_steps=1, rng_seed=42),
        about("LoadModel", model=ears),
        ask("speech-to-text", model=ears, audio=str(sample)),
        ask("speech-to-text-ws", model=ears, audio=str(sample)),
        {"call": "InvokeServiceBidi", "requests": session(ears, sample), "until": "task-finished", "seconds": 60},
        about("LoadModel", model=voice),
        ask("text-to-speech", model=voice, input="hello"),
        about("LoadModel", model="OpenVINO/nothing"),
        ask("chat", model="OpenVINO/nothing", messages=question),
        {"call": "GetRunningModels"},
        about("DeleteModel", model=rerank),
        about("DeleteModel", model=rerank),
        {"call": "ListModels"},
    ]


def session(model: str, sample: Path) -> list[Step]:
    """A live session as AOG's client drives it with its openvino template: actions are lost on the way."""
    with wave.open(str(sample)) as audio:
        assert audio.getframerate() == 16000
        pcm = audio.readframes(audio.getnframes())
    metadata = {"language": "en", "format": "pcm", "sample_rate": "16000", "model": model}
    text: Step = {"data": coded({"model": model}), "message_type": "text", "metadata": metadata}
    frames = [pcm[at : at + 6400] for at in range(0, len(pcm), 6400)]
    first = text | {
        "service_name": "speech-to-text-ws",
        "is_first": True,
        "metadata": {**metadata, "ws_conn_id": "c1"},
    }
    return [
        first,
        *({"data": coded(each), "message_type": "binary", "metadata": metadata} for each in frames),
        text,
    ]


async def play_in_python(host: PluginHost, steps: list[Step]) -> list[dict[str, Any]]:
    outcomes = []
    for step in steps:
        method = aog_provider_pb2.DESCRIPTOR.services_by_name["ProviderService"].methods_by_name[step["call"]]
        kind = message_factory.GetMessageClass(method.input_type)
        requests = [json_format.ParseDict(each, kind()) for each in step.get("requests", [{}])]
        responses: list[Any] = []
        if method.client_streaming:
            responses = await converse(host, requests, step["until"].encode())
        elif method.server_streaming:
            fields = {each.name: value for each, value in requests[0].ListFields()}
            responses = [each async for each in host.stream(step["call"], timeout=step.get("seconds"), **fields)]
        else:
            fields = {each.name: value for each, value in requests[0].ListFields()}
            responses = [await host.call(step["call"], timeout=step.get("seconds"), **fields)]
        plain = [json_format.MessageToDict(each, preserving_proto_field_name=True) for each in responses]
        outcomes.append({"call": step["call"], "responses": plain})
    return outcomes


async def converse(host: PluginHost, requests: list[Any], until: bytes) -> list[Any]:
    async def inbound() -> AsyncIterator[Any]:
        for each in requests:
            yield each
        await asyncio.Event().wait()  # AOG does not close

    call = host.converse(inbound())
    responses = []
    async with asyncio.timeout(60):
        async for each in call:
            responses.append(each)
            if until in each.data:
                break
    call.cancel()
    return responses


def play_in_go(program: Path, environment: dict[str, str], steps: list[Step]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [program, *plugin_command()],
        env=environment,
        input="\n".join(json.dumps(each) for each in steps).encode(),
        capture_output=True,
        timeout=200,
        check=False,
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (outcomes[-1:], done.stderr.decode()[-3000:])
    assert outcomes[-1]["exited"]
    log = done.stderr.decode()
    # go-plugin's own judgement of how the plugin ended, and of the lines that it logged
    assert "failed to exit gracefully" not in log
    assert "plugin process exited" in log
    assert not re.findall(r'"@level":"debug","@message":"(?:\{|Traceback)', log)
    return outcomes


def told(outcome: dict[str, Any]) -> Any:
    """Return what a host was told, without what differs from run to run."""
    assert not outcome.get("error"), outcome
    if outcome["call"] == "InvokeServiceStream":
        # Where one message ends and the next begins means nothing to AOG.
        *pieces, last = outcome["responses"]
        events = b"".join(base64.b64decode(each["chunk_data"]) for each in pieces).split(b"\n\n")
        assert events.pop() == b""
        assert all(each.startswith(b"data: {") for each in events)
        chunks = [json.loads(each[6:]) for each in events]
        deltas = [choice["delta"] for each in chunks for choice in each["choices"]]
        text = "".join(each.get("content") or "" for each in deltas)
        calls = [call["function"] for each in deltas for call in each.get("tool_calls", [])]
        called = [each["name"] for each in calls if "name" in each]
        arguments = "".join(each.get("arguments", "") for each in calls)
        models = {each["model"] for each in chunks}
        return {"text": text, "called": called, "arguments": arguments, "last": last, "models": models}
    answers = [plain_answer(each) for each in outcome.get("responses", [])]
    if outcome["call"] == "PullModelStream":
        return [{**each["data"], "completed": 0} for each in answers if each["data"]["status"] in ("success", "error")]
    if outcome["call"] == "InvokeServiceBidi":
        heard = [(each["data"]["header"]["event"], each["message_type"]) for each in answers]
        texts = [
            each["data"]["payload"]["output"]["sentence"]["text"]
            for each in answers
            if each["data"]["header"]["event"] == "result-generated"
            and each["data"]["payload"]["output"]["sentence"]["end_time"] is not None
        ]
        return {"last": heard[-1], "kinds": {kind for _, kind in heard}, "final": texts}
    return answers


def plain_answer(answer: dict[str, Any]) -> dict[str, Any]:
    return {
        name: stable(decoded(value)) if name == "data" or name.endswith(("_json", "_data")) else value
        for name, value in answer.items()
        if name != "metadata"
    }


def decoded(value: str) -> Any:
    raw = base64.b64decode(value).decode()
    return json.loads(raw) if raw else None


def stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: type(each).__name__ if VOLATILE.match(name) else stable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [stable(each) for each in value]
    if isinstance(value, float):
        return round(value, 4)
    return value


@pytest.fixture(scope="module")
def hub(fixtures: Path) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        for model, (_, kind) in MODELS.items():
            hub.add(model, fixtures / kind)
        yield hub


@pytest.fixture
def real(environment: dict[str, str | None], hub: FakeHub, tmp_path: Path, inference: None) -> dict[str, str | None]:
    """An environment with the embedded engine and a hub on this machine."""
    (tmp_path / "Downloads").mkdir()
    return environment | {
        "OVMS_PLUGIN_PLATFORM": "portable",
        "OVMS_PLUGIN_GRAPHS__TEXT_GENERATION__TOOL_PARSER": "hermes3",
        "OVMS_PLUGIN_HUBS__MODELSCOPE__ENDPOINT": hub.url,
        "OVMS_PLUGIN_DATA_DIR": str(tmp_path / "data"),
        "HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host in Go, built once; a system without Go may be given one that was built elsewhere."""
    if given := os.environ.get("OVMS_TESTS_GO_HOST"):
        return Path(given)
    if GO is None:
        print("The Go host is not played: there is no `go` on this machine.", file=sys.stderr)
        pytest.skip("there is no `go` on this machine")
    built = tmp_path_factory.mktemp("go") / "host"
    done = subprocess.run([GO, "build", "-o", built, "."], cwd=SOURCE, capture_output=True, text=True, check=False)
    if done.returncode and re.search(r"dial tcp|no such host|i/o timeout|GOPROXY", done.stderr):
        print("The Go host is not played: its modules cannot be fetched.", file=sys.stderr)
        pytest.skip("Go's modules cannot be fetched")
    assert done.returncode == 0, done.stderr
    return built


def joined(environment: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in {**os.environ, **environment}.items() if value is not None}


@pytest.mark.timeout(300)
async def test_both_hosts_are_told_the_same(
    program: Path, real: dict[str, str | None], fixtures: Path, tmp_path: Path
) -> None:
    steps = scenario(fixtures)
    async with PluginHost(plugin_command(), real | {"OVMS_PLUGIN_DATA_DIR": str(tmp_path / "python")}) as host:
        assert host.address.startswith("unix:")
        in_python = await play_in_python(host, steps)
        await host.kill()
    environment = joined(real | {"OVMS_PLUGIN_DATA_DIR": str(tmp_path / "go")})
    start, *in_go, _ = await asyncio.to_thread(play_in_go, program, environment, steps)
    assert start["seconds"] < 5
    assert [each["call"] for each in in_go] == [each["call"] for each in steps]
    for one, other, step in zip(in_python, in_go, steps, strict=True):
        assert told(one) == told(other), step
    judge(dict(enumerate(map(told, in_python))), [each["call"] for each in steps])


def judge(answers: dict[int, Any], calls: list[str]) -> None:
    """Compare one host's answers with what is known of the tiny models."""
    of = {call: [answers[at] for at, each in enumerate(calls) if each == call] for call in set(calls)}
    assert of["StartEngine"][0][0]["code"] == 412
    assert [each[0].get("installed", False) for each in of["CheckEngine"]] == [False, True]
    assert of["GetOperateStatus"][0][0]["status"] == 1
    assert len(of["ListModels"][1][0]["response_json"]["models"]) == len(MODELS)
    assert len(of["ListModels"][2][0]["response_json"]["models"]) == len(MODELS) - 1
    assert of["PullModelStream"][0][-1]["status"] == "success"
    assert of["PullModelStream"][1][-1]["code"] == 404
    assert of["SetAuth"][0][0]["code"] == 501
    assert not any("code" in each[0] for each in of["LoadModel"] + of["UnloadModel"] + of["DeleteModel"])
    chat, tools, call, generate, empty, embed, rerank, image, speech, live, voice, missing = of["InvokeService"]
    assert chat[0]["response_data"]["choices"][0]["message"]["content"] == ANSWERS
    assert chat[0]["response_data"]["created"] == "str"
    assert tools[0]["response_data"]["choices"][0]["message"]["role"] == "assistant"
    [asked] = call[0]["response_data"]["choices"][0]["message"]["tool_calls"]
    assert asked["function"]["name"] == "look"
    assert json.loads(asked["function"]["arguments"])["at"] in ("left", "right")
    assert generate[0]["response_data"]["choices"][0]["text"]
    assert empty[0]["code"] == 400
    assert len(embed[0]["response_data"]["data"]) == 2
    assert {each["index"] for each in rerank[0]["response_data"]["results"]} == {0, 1}
    assert base64.b64decode(image[0]["response_data"]["data"][0]["b64_json"]).startswith(b"\x89PNG")
    assert speech[0]["response_data"]["text"].strip() == "turn on the light"
    assert live == speech  # D1-19
    assert voice[0]["response_data"]["url"] == "str"
    assert missing[0]["code"] == 404
    stream, streamed_call, long = of["InvokeServiceStream"]
    assert streamed_call["called"] == ["look"]
    assert streamed_call["arguments"] == asked["function"]["arguments"]
    assert len(long["text"]) > 2 * len(ANSWERS)
    assert long["last"] == {"is_final": True}
    assert stream["text"] == ANSWERS
    assert stream["last"] == {"is_final": True}
    [session] = of["InvokeServiceBidi"]
    assert session["last"] == ("task-finished", "text")
    assert "turn on the light" in " ".join(session["final"])


def test_the_go_host_over_tcp(program: Path, environment: dict[str, str | None], tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    steps: list[Step] = [
        {"call": "InstallEngine"},
        {"call": "InitEnv"},
        {"call": "StartEngine"},
        {"call": "CheckEngine"},
    ]
    big = ask("chat", model="x/y", messages="a" * (20 << 20))
    outcomes = play_in_go(program, joined(environment | {"PLUGIN_UNIX_SOCKET_DIR": str(deep)}), [*steps, big])
    assert outcomes[4]["responses"][0]["installed"]
    assert outcomes[5]["responses"][0]["code"] == 400
    assert "messages" in outcomes[5]["responses"][0]["message"]
    assert not list(deep.iterdir())


def test_the_go_host_plays_a_day_over_a_stub_engine(
    program: Path, environment: dict[str, str | None], hub: FakeHub, tmp_path: Path
) -> None:
    chat = next(iter(MODELS))
    question = ask("chat", model=chat, messages=[{"role": "user", "content": "What is OpenVINO?"}])
    stream = ask("chat", stream=True, model=chat, messages=[{"role": "user", "content": "What is OpenVINO?"}])
    steps: list[Step] = [
        {"call": "StartEngine", "requests": [{"mode": "standard"}]},
        {"call": "InstallEngine"},
        {"call": "InitEnv"},
        {"call": "StartEngine", "requests": [{"mode": "daemon"}]},
        about("PullModel", model=chat, stream=False, model_type="chat"),
        {"call": "ListModels"},
        about("LoadModel", model=chat),
        question,
        stream,
        about("UnloadModel", models=[chat]),
        about("DeleteModel", model=chat),
        {"call": "StopEngine"},
    ]
    folder = tmp_path / "数据 with spaces"
    more = {"OVMS_PLUGIN_HUBS__MODELSCOPE__ENDPOINT": hub.url, "OVMS_PLUGIN_DATA_DIR": str(folder)}
    _, *outcomes, _ = play_in_go(program, joined(environment | more | {"NO_PROXY": "127.0.0.1"}), steps)
    assert [each["call"] for each in outcomes] == [each["call"] for each in steps]
    early, *rest = outcomes
    assert early["responses"][0]["code"] == 412
    assert [each for each in rest if each.get("error") or each["responses"][0].get("code")] == []
    by_call = {each["call"]: each["responses"] for each in outcomes}
    assert decoded(by_call["InvokeService"][0]["response_data"])["asked"]["model"] == chat
    pieces = b"".join(base64.b64decode(each.get("chunk_data", "")) for each in by_call["InvokeServiceStream"])
    assert pieces.count(b'"content"') == 20
    assert not list((folder / "models").glob("OpenVINO/*"))


class GoHost:
    """The host in Go, step by step."""

    def __init__(self, program: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [program, *plugin_command()], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        self.pid = self.read()["pid"]

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        return dict(json.loads(self.process.stdout.readline()))

    def begin(self, step: Step) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(step).encode() + b"\n")
        self.process.stdin.flush()

    def do(self, step: Step) -> dict[str, Any]:
        self.begin(step)
        return self.read()

    def code(self, step: Step) -> int:
        return int(self.do(step)["responses"][0].get("code", 0))

    def wait_for_health(self) -> None:
        deadline = time.monotonic() + 30
        while self.code({"call": "HealthCheck"}):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def close(self) -> tuple[dict[str, Any], str]:
        out, log = self.process.communicate(timeout=60)
        return json.loads(out.splitlines()[-1]), log.decode()


@pytest.mark.skipif(sys.platform != "linux", reason="only there a parent process keeps the socket")
def test_the_go_host_knows_of_no_death_of_the_plugin_s_process(program: Path, real: dict[str, str | None]) -> None:
    chat, _, rerank, *_ = MODELS
    question = ask("chat", model=chat, messages=[{"role": "user", "content": "What is OpenVINO?"}], temperature=0)
    documents = ask("rerank", model=rerank, query="kitten", documents=["a cat", "a car"], top_n=1)
    host = GoHost(program, joined(real))
    for step in ({"call": "InstallEngine"}, {"call": "StartEngine"}):
        assert host.code(step) == 0
    host.wait_for_health()
    for model, service in ((chat, "chat"), (rerank, "rerank")):
        assert host.code(about("PullModel", model=model, stream=False, model_type=service)) == 0
    # Two models in turn, as AOG drives them: both fit, so neither is loaded twice.
    for model, other, request in ((chat, rerank, question), (rerank, chat, documents), (chat, rerank, question)):
        assert host.code(about("UnloadModel", models=[other])) == 0
        assert host.code(about("LoadModel", model=model)) == 0
        assert host.code(request) == 0
    running = told(host.do({"call": "GetRunningModels"}))[0]["response_json"]["models"]
    assert {each["name"] for each in running} == {chat, rerank}
    for during in (False, True):
        [process] = psutil.Process(host.pid).children()
        if during:
            host.begin(question | {"count": 1000})
            time.sleep(0.3)  # any moment of it will do
        process.kill()
        if during:
            assert "Unavailable" in host.read()["error"]
        answer = host.do(question)
        while answer.get("error"):  # gRPC in Go dials again after its first pause, of a second
            assert "Unavailable" in answer["error"]
            time.sleep(0.1)
            answer = host.do(question)
        assert decoded(answer["responses"][0]["response_data"])["choices"][0]["message"]["content"] == ANSWERS
    # An engine whose workers were killed loads its models again, and a request waits for that.
    below = psutil.Process(host.pid).children(recursive=True)
    [engine] = [each for each in below if "--rest_port" in each.cmdline()]
    for worker in engine.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one may end by itself meanwhile
            if "ovms_embedded.worker" in worker.cmdline():  # others render templates
                worker.kill()
    answer = host.do(question)["responses"][0]
    if "was killed" in answer.get("message", ""):  # it reached the worker before anybody knew of its death
        answer = host.do(question)["responses"][0]
    assert not answer.get("code"), answer
    assert decoded(answer["response_data"])["choices"][0]["message"]["content"] == ANSWERS
    kill, log = host.close()
    assert kill["exited"]
    assert "failed to exit gracefully" not in log
    assert not psutil.pid_exists(host.pid)


def test_the_go_host_says_why_a_plugin_does_not_start(program: Path, environment: dict[str, str | None]) -> None:
    done = subprocess.run(
        [program, *plugin_command()],
        env=joined(environment | {"PLUGIN_CLIENT_CERT": "certificate"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    [line] = [json.loads(line) for line in done.stderr.splitlines() if "AutoMTLS" in line]
    assert line["@level"] == "error"
