"""Whatever bytes a program sends to whatever route of the HTTP face: an answer in words, and a server that lives on.

800 requests unless the environment variable ``OVMS_FUZZ_REQUESTS`` says another number.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
import websockets
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ovms_face_http import api
from ovms_kernel.compose import compose_kernel
from ovms_kernel.settings import read_settings
from tests.attack.mutations import bodies, damaged, mutated
from tests.faces.http.conftest import MODELS, serving

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.faces.http.conftest import Served

REQUESTS = int(os.environ.get("OVMS_FUZZ_REQUESTS", "800"))
TOGETHER = 5
"""Requests that are sent at the same time, as one example of hypothesis."""
GROWTH = 64 << 20
"""Bytes that a process may have more at the end than after the first third."""
PATIENCE = 60.0
HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
PNG = base64.b64encode(
    base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
).decode()
CHAT = {
    "model": "tiny/chat", "messages": [{"role": "system", "content": "Be kind."}, *HI], "max_tokens": 3, "stop": ["x"],
    "temperature": 0.5, "n": 1, "logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True},
    "logit_bias": {"5": 1}, "tools": [TOOL], "tool_choice": "none", "user": "me", "seed": 1,
}  # fmt: skip
STREAM = {"model": "tiny/chat", "messages": HI, "max_tokens": 3, "stream": True}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a{1,3}$"}}, "required": ["a"]}
STRUCTURED = STREAM | {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}}
SEEN = {
    "model": "tiny/vision", "max_tokens": 3,
    "messages": [{"role": "user", "content": [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
    ]}],
}  # fmt: skip
CALLED = {
    "model": "tiny/chat", "max_tokens": 3, "tools": [TOOL],
    "messages": [
        *HI,
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
    ],
}  # fmt: skip
ANTHROPIC = {
    "model": "tiny/chat", "max_tokens": 3, "system": [{"type": "text", "text": "Be kind."}], "stream": False,
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
}  # fmt: skip
RESPONSE = {
    "model": "tiny/chat", "max_output_tokens": 3, "instructions": "Be kind.", "store": True, "stream": False,
    "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
    "text": {"format": {"type": "text"}}, "tools": [{"type": "function", "name": "f", "parameters": {}}],
}  # fmt: skip
SEEDS: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [CHAT, STREAM, STRUCTURED, SEEN, CALLED],
    "/v1/completions": [
        {"model": "tiny/chat", "prompt": ["The capital", "A"], "max_tokens": 3, "echo": False, "n": 1},
        {"model": "tiny/chat", "prompt": "A", "max_tokens": 3, "stream": True, "stop": "x", "best_of": 1},
    ],
    "/v1/embeddings": [
        {"model": "tiny/embeddings", "input": ["a", "b"], "encoding_format": "float", "dimensions": None},
        {"model": "tiny/embeddings", "input": [[1, 2, 3]], "encoding_format": "base64"},
    ],
    "/v1/rerank": [{"model": "tiny/rerank", "query": "a", "documents": ["a", {"text": "b"}], "top_n": 1}],
    "/v1/tokenize": [{"model": "tiny/chat", "text": "hello", "max_length": 4, "pad_to_max_length": False}],
    "/v1/audio/speech": [{"model": "tiny/speaker", "input": "Hi", "voice": "alloy", "response_format": "wav"}],
    "/v1/audio/transcriptions": [
        {"model": "tiny/listener", "language": "en", "response_format": "verbose_json",
         "timestamp_granularities[]": "segment", "temperature": "0", "stream": "false"},
    ],
    "/v1/images/generations": [
        {"model": "tiny/image", "prompt": "a", "size": "64x64", "n": 1, "num_inference_steps": 1, "rng_seed": 1,
         "guidance_scale": 1.5, "response_format": "b64_json"},
    ],
    "/v1/images/edits": [
        {"model": "tiny/image", "prompt": "a", "size": "64x64", "num_inference_steps": "2", "strength": "1"},
    ],
    "/v1/responses": [RESPONSE, {"model": "tiny/chat", "input": "Hi", "max_output_tokens": 3, "stream": True}],
    "/v1/messages": [ANTHROPIC, {"model": "tiny/chat", "max_tokens": 3, "messages": HI, "stream": True}],
    "/v1/messages/count_tokens": [{"model": "tiny/chat", "messages": HI}],
    "/api/chat": [
        {"model": "tiny/chat", "messages": HI, "stream": False, "options": {"num_predict": 3, "stop": ["x"]},
         "keep_alive": "5m", "format": "json", "tools": [TOOL]},
    ],
    "/api/generate": [
        {"model": "tiny/vision", "prompt": "Hi", "options": {"num_predict": 3}, "stream": True, "images": [PNG]},
        {"model": "tiny/chat", "keep_alive": 0},
    ],
    "/api/embed": [{"model": "tiny/embeddings", "input": ["a"], "truncate": True}],
    "/api/embeddings": [{"model": "tiny/embeddings", "prompt": "a"}],
    "/api/show": [{"model": "tiny/chat", "verbose": True}],
    "/api/pull": [{"model": "no/such", "stream": False}],
    "/api/delete": [{"model": "tiny/spare"}],
}  # fmt: skip
SAME = {
    "/v1/audio/translations": "/v1/audio/transcriptions", "/v2/rerank": "/v1/rerank", "/rerank": "/v1/rerank",
}  # fmt: skip
EVENTS = [
    {"type": "session.update", "session": {"type": "transcription", "audio": {"input": {
        "format": {"type": "audio/pcm", "rate": 16000}, "transcription": {"model": "tiny/listener", "language": "en"},
        "turn_detection": {"type": "server_vad", "threshold": 0.5}, "noise_reduction": None}}}},
    {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(3200)).decode()},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear", "event_id": "e"},
]  # fmt: skip
HEADERS = st.sampled_from(
    [
        (b"content-type", each)
        for each in (b"", b"text/plain", b"application/json; charset=utf-16", b"multipart/form-data")
    ]
    + [(b"content-encoding", b"gzip"), (b"expect", b"100-continue"), (b"accept", b"image/png"), (b"origin", b"null")]
    + [
        (b"traceparent", b"00-zz-1-01"),
        (b"x-request-id", b"a" * 999),
        (b"range", b"bytes=5-"),
        (b"host", b"evil.example"),
    ]
)
WAYS = st.sampled_from(
    ["tiny/chat", "tiny%2Fchat", "no/such", "..%2f..%2fx", "", "tiny/chat/ready", "%00", "%ff", "a" * 5000]
)
JSON, FORM = (b"content-type", b"application/json"), (b"content-type", b"multipart/form-data; boundary=cut")
UNNAMED = re.compile("Traceback|internal error|internal server error", re.IGNORECASE)


@dataclass(frozen=True)
class Sent:
    """One request of the fuzz; ``leaves`` closes the connection when the answer begins."""

    method: str
    path: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    leaves: bool = False


@dataclass
class Seen:
    """What came back."""

    count: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """What is wrong with answers; one run finds several kinds."""


@dataclass(frozen=True)
class Target:
    """A server over all the tiny models and one that may be deleted."""

    served: Served
    routes: list[tuple[str, str]]
    sockets: list[str]
    sound: bytes
    """A good recording."""


@pytest.fixture(scope="module")
def sound(fixtures: Path) -> bytes:
    return (fixtures / "speech_to_text_samples" / "en_turn_on_the_light.wav").read_bytes()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, fixtures: Path, sound: bytes, inference: None) -> Iterator[Target]:
    """A server over all the tiny models and one that may be deleted, its routes, and its websockets."""
    folder = tmp_path_factory.mktemp("fuzz") / "data"

    async def fill() -> Any:
        async with compose_kernel(read_settings({}, data_dir=folder, platform="portable")) as kernel:
            await kernel.install_engine()
            for model, source in {**MODELS, "tiny/spare": "embeddings"}.items():
                await kernel.import_model(fixtures / source, model)
            return api.routes(kernel, "")

    with ThreadPoolExecutor(1) as thread:
        routes = thread.submit(asyncio.run, fill()).result()  # this one may have an event loop already
    found = [*routes.exact, *((method, f"{path}tiny/chat") for method, path, _ in routes.below)]
    for _, dialect in routes.dialects:
        found += [(method, each.path) for each in dialect for method in each.methods or ()]
    # The hubs are nowhere, so that a pull ends at once.
    (folder / "config.yaml").write_text("hubs: {modelscope: {endpoint: 'http://127.0.0.1:9', retries: 0}}")
    with serving(folder) as served:
        yield Target(served, sorted(found), sorted(routes.sockets), sound)


def requests(target: Target) -> st.SearchStrategy[Sent]:
    """Return requests to every route: mostly a good body that is changed in a few places, as JSON or as a form."""

    @st.composite
    def made(draw: st.DrawFn) -> Sent:
        method, path = draw(st.sampled_from(target.routes))
        headers, body = [JSON], b""
        if seeds := seeds_of(path):
            seed = draw(st.sampled_from(seeds))
            if (upload := upload_of(path, target.sound)) and draw(st.integers(0, 9)):
                headers, body = [FORM], draw(forms(seed, *upload))
            else:
                body = draw(bodies(seed))
        if draw(st.integers(0, 29)) == 0:
            method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW"]))
        if path.endswith("tiny/chat"):
            # Other requests need it, so another one is deleted.
            path = path.removesuffix("tiny/chat") + ("tiny/spare" if method == "DELETE" else draw(WAYS))
        if method == "DELETE":
            body = body.replace(b"tiny/chat", b"tiny/spare")
        if draw(st.integers(0, 9)) == 0:
            headers.append(draw(HEADERS))
        return Sent(method, path, body, tuple(headers), draw(st.integers(0, 19)) == 0)

    return made()


def goods(target: Target) -> Iterator[Sent]:
    """Yield requests that are answered well: what is changed in one of them gets past the first check."""
    for method, path in target.routes:
        for seed in seeds_of(path) if path not in ("/api/pull", "/api/delete") else ():
            if upload := upload_of(path, target.sound):
                yield Sent(method, path, form(seed, *upload), (FORM,))
            else:
                yield Sent(method, path, json.dumps(seed).encode(), (JSON,))


def seeds_of(path: str) -> list[dict[str, Any]]:
    """Return good requests to a path; none if it takes no body."""
    path = re.sub("^/v3/", "/v1/", path)
    return SEEDS.get(SAME.get(path, path), [])


def upload_of(path: str, sound: bytes) -> tuple[str, str, bytes] | None:
    """Return name, file name and content of the file that a path takes."""
    if path.endswith("/images/edits"):
        return "image", "a.png", base64.b64decode(PNG)
    return ("file", "a.wav", sound) if "/audio/trans" in path else None


def form(fields: Mapping[str, Any], name: str, filename: str, data: bytes) -> bytes:
    """Return a multipart form."""
    lines = b"".join(
        b'--cut\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        % (key.encode("utf-8", "replace"), str(value).encode("utf-8", "replace"))
        for key, value in fields.items()
    )
    file = b'--cut\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s\r\n--cut--\r\n'
    return lines + file % (name.encode(), filename.encode(), data)


@st.composite
def forms(draw: st.DrawFn, seed: Mapping[str, Any], name: str, filename: str, data: bytes) -> bytes:
    """Return a multipart form that is mostly well-formed."""
    fields = draw(mutated(dict(seed)))
    filename = draw(st.sampled_from([filename, filename, "", "../x", "a.mp4", "a.m3u8", 'a"b', "\x00"]))
    sent = draw(st.sampled_from([data, data[:100], data[:1000] + data[2000:]]) | damaged(data) | st.binary(max_size=50))
    whole = form(fields if isinstance(fields, dict) else {}, name, filename, sent)
    return draw(damaged(whole)) if draw(st.integers(0, 9)) == 0 else whole


async def send(client: httpx.AsyncClient, sent: Sent, seen: Seen) -> None:
    told = f"{sent.method} {sent.path} {sent.headers} {sent.body[:600]!r}"
    try:
        async with asyncio.timeout(PATIENCE):
            async with client.stream(sent.method, sent.path, content=sent.body, headers=list(sent.headers)) as answer:
                text = "" if sent.leaves else (await answer.aread()).decode("utf-8", "replace")
    except (httpx.HTTPError, TimeoutError) as error:
        seen.faults.append(f"{told}: {error!r}")
        return
    seen.count += 1
    seen.statuses[answer.status_code] += 1
    silent = answer.status_code >= 400 and not sent.leaves and sent.method != "HEAD" and len(sentence(text)) <= 10
    sound = answer.headers.get("content-type", "").startswith(("audio/", "image/"))
    if answer.status_code == 500 or silent or (not sound and UNNAMED.search(text)):
        seen.faults.append(f"{told}: {answer.status_code} {text[:500]}")


def sentence(text: str) -> str:
    """Return what an error says, in OpenAI's, Anthropic's or Ollama's object; what is no HTTP is told in plain text."""
    try:
        error = json.loads(text)["error"]
    except ValueError:
        return text
    return str(error["message"] if isinstance(error, dict) else error)


async def converse(served: Served, path: str, events: Sequence[bytes | str], seen: Seen) -> None:
    """Hold a session in which each mistake is told and none ends it."""
    address = f"{served.url.replace('http', 'ws')}{path}?intent=transcription"
    headers = {"authorization": f"Bearer {served.key}"}
    last = {"type": "no.such.event", "event_id": "last"}
    told: dict[str, Any] = {"type": ""}
    try:
        async with (
            asyncio.timeout(PATIENCE),
            websockets.connect(address, additional_headers=headers, proxy=None) as socket,
        ):
            for event in (*events, json.dumps(last)):
                await socket.send(event)
            while told["type"] != "error" or told["error"]["event_id"] != "last":
                told = json.loads(await socket.recv())
                if UNNAMED.search(json.dumps(told)):
                    seen.faults.append(f"{path} {events!r:.600}: {told!r:.300}")
    except (websockets.WebSocketException, TimeoutError) as error:
        seen.faults.append(f"{path} {events!r:.600}: {error!r} after {told!r:.300}")
    seen.count += len(events)


def sizes(served: Served) -> dict[int, tuple[str, int]]:
    """Return name and memory of the server, its engine and its guard, by process id; workers end with their models."""
    front = psutil.Process(served.process.pid)
    found = {
        each.pid: (" ".join(each.cmdline()[:6]), each.memory_info().rss)
        for each in (front, *front.children(recursive=True))
    }
    return {pid: found[pid] for pid in found if "worker" not in found[pid][0]}


async def test_every_route_and_websocket_of_the_http_face(target: Target) -> None:
    served, seen = target.served, Seen()
    loop = asyncio.get_running_loop()
    headers = {"authorization": f"Bearer {served.key}"}
    before: dict[int, tuple[str, int]] = {}

    async def together(client: httpx.AsyncClient, batch: Sequence[Sent], events: Sequence[bytes | str]) -> None:
        async with asyncio.TaskGroup() as group:
            for sent in batch:
                group.create_task(send(client, sent, seen))
            if events:
                group.create_task(converse(served, target.sockets[0], events, seen))

    async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=PATIENCE, trust_env=False) as client:

        def example(batch: Sequence[Sent], events: Sequence[bytes | str]) -> None:
            asyncio.run_coroutine_threadsafe(together(client, batch, events), loop).result()
            if not before and seen.count > REQUESTS / 3:
                before.update(sizes(served))

        some = st.lists(requests(target), min_size=TOGETHER, max_size=TOGETHER)
        event = st.one_of([bodies(each) for each in EVENTS])
        events: Any = st.just([]) | st.lists(
            event | event.map(lambda body: body.decode("utf-8", "replace")), max_size=4
        )
        often = settings(
            max_examples=REQUESTS // TOGETHER,
            deadline=None,
            database=None,
            derandomize=REQUESTS <= 800,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        for good in goods(target):
            answer = await client.request(good.method, good.path, content=good.body, headers=list(good.headers))
            if answer.status_code != 200:
                seen.faults.append(f"{good.path} {good.body[:500]!r}: {answer.text[:500]}")
        await asyncio.to_thread(often(given(some, events)(example)))
        answer = await client.post("/v1/chat/completions", json=STREAM | {"stream": False})
    if seen.faults:
        pytest.fail(f"{len(seen.faults)} faults:\n" + "\n\n".join(seen.faults[:12]), pytrace=False)
    print(f"\n{seen.count} requests: {dict(sorted(seen.statuses.items()))}")
    assert answer.status_code == 200, answer.text
    assert seen.count > REQUESTS * 0.8
    after = sizes(served)
    assert before.keys() <= after.keys(), "a process ended"
    grown = {f"{pid} {name}": after[pid][1] - size for pid, (name, size) in before.items()}
    assert max(grown.values()) < GROWTH, grown
    logs = [served.data_dir.with_name("data.serve.log"), *served.data_dir.glob("logs/*.log")]
    assert not [line for log in logs for line in log.read_text("utf-8", "replace").splitlines() if "Traceback" in line]
