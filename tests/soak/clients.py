"""Clients of both faces that ask every service again and again, and know what a right answer is."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import random
import time
import wave
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import httpx
import websockets

from ovms_face_aog.client import PluginFailed, bidi_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.soak.faces import AogFace, HttpFace

SAMPLE = Path(__file__).parents[1] / "fixtures" / "speech_to_text_samples" / "en_turn_on_the_light.wav"
SAID = "turn on the light"
QUESTION = [{"role": "user", "content": "What is OpenVINO?"}]
ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."
CHAT = {"model": "tiny/chat", "messages": QUESTION, "temperature": 0}
CANCELLED = 0.15
"""Share of the requests whose client leaves at a random moment."""
LIMIT = 120.0
"""Seconds after the last fault within which each request has ended."""
UNNAMED = ("Internal error", "Traceback", "Internal server error")


class Told(Exception):
    """The answer was an error in words."""


class Wrong(Exception):
    """The answer is not what it has to be."""


@dataclass
class Counts:
    """What became of the requests of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    last_good: float = 0.0
    """By the monotonic clock."""


def has(condition: object, found: object) -> None:
    """Check an answer."""
    if not condition:
        raise Wrong(f"{found!r:.300}")


# -- over HTTP ---------------------------------------------------------------------------------------------------------


async def post(http: HttpFace, path: str, **options: Any) -> httpx.Response:
    """Send a request and return its answer if it is a good one."""
    answer = await http.client.post(path, **options)
    judge(answer.status_code, answer.text)
    return answer


def judge(status: int, text: str) -> None:
    """Tell an error in words from one without."""
    if status < 300:
        return
    try:
        error = json.loads(text)["error"]
        said = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError):
        said = ""
    if len(said) < 10 or status in (400, 404, 500) or any(each in said for each in UNNAMED):
        raise Wrong(f"{status} {text[:300]}")
    raise Told(said)


async def http_chat(http: HttpFace) -> None:
    found = (await post(http, "/v1/chat/completions", json=CHAT)).json()
    has(found["choices"][0]["message"]["content"] == ANSWER, found)


async def http_stream(http: HttpFace) -> None:
    said, whole = "", False
    async with http.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
        if answer.status_code != 200:
            judge(answer.status_code, (await answer.aread()).decode())
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                whole = True
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    judge(502, line[6:])
                said += "".join(each["delta"].get("content") or "" for each in event["choices"])
    has(whole and said == ANSWER, said)


async def http_completion(http: HttpFace) -> None:
    fields = {"model": "tiny/chat", "prompt": "The capital of France is", "max_tokens": 2, "temperature": 0}
    found = (await post(http, "/v1/completions", json=fields)).json()
    has("Paris" in found["choices"][0]["text"], found)


async def http_embed(http: HttpFace) -> None:
    found = (await post(http, "/v1/embeddings", json={"model": "tiny/embeddings", "input": ["a cat", "a car"]})).json()
    has(all(math.isfinite(sum(each["embedding"])) and len(each["embedding"]) == 64 for each in found["data"]), found)


async def http_rerank(http: HttpFace) -> None:
    fields = {"model": "tiny/rerank", "query": "kitten", "documents": ["a cat", "a car"]}
    found = (await post(http, "/v1/rerank", json=fields)).json()
    has(len(found["results"]) == 2, found)


async def http_tokenize(http: HttpFace) -> None:
    found = (await post(http, "/v1/tokenize", json={"model": "tiny/chat", "text": "hello"})).json()
    has(found["tokens"], found)


async def http_speech(http: HttpFace) -> None:
    fields = {"model": "tiny/speaker", "input": "hello", "voice": "alloy", "response_format": "wav"}
    found = (await post(http, "/v1/audio/speech", json=fields)).content
    has(found.startswith(b"RIFF") and len(found) > 1000, found[:100])


async def http_listen(http: HttpFace) -> None:
    files = {"file": ("a.wav", SAMPLE.read_bytes())}
    fields = {"model": "tiny/listener", "language": "en"}
    found = (await post(http, "/v1/audio/transcriptions", data=fields, files=files)).json()
    has(SAID in found["text"], found)


async def http_image(http: HttpFace) -> None:
    fields = {"model": "tiny/image", "prompt": "a cat", "size": "64x64", "num_inference_steps": 1, "rng_seed": 42}
    found = (await post(http, "/v1/images/generations", json=fields)).json()
    has(base64.b64decode(found["data"][0]["b64_json"]).startswith(b"\x89PNG"), found)


async def http_ollama(http: HttpFace) -> None:
    fields = {"model": "tiny/chat", "messages": QUESTION, "stream": False, "options": {"temperature": 0}}
    found = (await post(http, "/api/chat", json=fields)).json()
    has(found["message"]["content"] == ANSWER, found)


async def http_anthropic(http: HttpFace) -> None:
    fields = {"model": "tiny/chat", "messages": QUESTION, "max_tokens": 60, "temperature": 0}
    found = (await post(http, "/v1/messages", json=fields)).json()
    has(found["content"][0]["text"] == ANSWER, found)


async def http_unload(http: HttpFace) -> None:
    """Unload a model that others ask for, now and then."""
    if random.random() < 0.1:
        await post(http, "/api/generate", json={"model": random.choice(MODELS), "keep_alive": 0})
    else:
        await post(http, "/api/show", json={"model": "tiny/chat"})


async def http_live(http: HttpFace) -> None:
    """Speak to a realtime session."""
    with wave.open(str(SAMPLE)) as file:
        rate, sound = file.getframerate(), file.readframes(file.getnframes())
    address = f"{http.url.replace('http', 'ws')}/v1/realtime?intent=transcription"
    transcription = {"model": "tiny/listener", "language": "en"}
    audio = {"input": {"format": {"type": "audio/pcm", "rate": rate}, "transcription": transcription}}
    said: list[str] = []
    headers = {"authorization": f"Bearer {http.key}"}
    async with websockets.connect(address, additional_headers=headers, proxy=None) as socket:
        await socket.send(json.dumps({"type": "session.update", "session": {"type": "transcription", "audio": audio}}))
        part = {"type": "input_audio_buffer.append", "audio": base64.b64encode(sound).decode()}
        await socket.send(json.dumps(part))
        await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        while SAID not in " ".join(said):
            event = json.loads(await socket.recv())
            if event["type"] == "error":
                judge(502, json.dumps(event))
            said += [event["transcript"]] if "transcript" in event else []


# -- over AOG's rpcs ---------------------------------------------------------------------------------------------------


def good(answer: Any) -> Any:
    """Return an answer if it is a good one."""
    if answer.code not in (0, 200):
        if (
            len(answer.message) < 10
            or answer.code in (400, 404, 500)
            or any(each in answer.message for each in UNNAMED)
        ):
            raise Wrong(f"{answer.code} {answer.message}")
        raise Told(answer.message)
    return answer


async def invoke(aog: AogFace, service: str, **fields: Any) -> Any:
    """Call a service and return its answer."""
    body = json.dumps(fields).encode()
    answer = await aog.host.call("InvokeService", service_name=service, request_data=body)
    return json.loads(good(answer).response_data)


async def aog_chat(aog: AogFace) -> None:
    found = await invoke(aog, "chat", **CHAT)
    has(ANSWER in json.dumps(found), found)


async def aog_stream(aog: AogFace) -> None:
    said, whole = b"", False
    body = json.dumps(CHAT | {"stream": True}).encode()
    async for piece in aog.host.stream("InvokeServiceStream", service_name="chat", request_data=body):
        said += good(piece).chunk_data
        whole |= piece.is_final
    has(whole and b"NPUs" in said, (whole, said))


async def aog_embed(aog: AogFace) -> None:
    found = await invoke(aog, "embed", model="tiny/embeddings", input=["one", "two"])
    has(len(found["data"]) == 2, found)


async def aog_rerank(aog: AogFace) -> None:
    found = await invoke(aog, "rerank", model="tiny/rerank", query="kitten", documents=["a cat", "a car"], top_n=2)
    has(found, found)


async def aog_generate(aog: AogFace) -> None:
    found = await invoke(aog, "generate", model="tiny/chat", prompt="The capital of France is", temperature=0)
    has("Paris" in json.dumps(found), found)


async def aog_image(aog: AogFace) -> None:
    found = await invoke(aog, "text-to-image", model="tiny/image", prompt="a cat", size="64x64", rng_seed=1)
    has(found, found)


async def aog_listen(aog: AogFace) -> None:
    found = await invoke(aog, "speech-to-text", model="tiny/listener", audio=str(SAMPLE), language="en")
    has(SAID in json.dumps(found), found)


async def aog_speech(aog: AogFace) -> None:
    found = await invoke(aog, "text-to-speech", model="tiny/speaker", input="hello")
    has(found, found)


async def aog_models(aog: AogFace) -> None:
    """Do what AOG does between requests: load, list, look."""
    good(await aog.host.call("LoadModel", request_json=b'{"model":"tiny/embeddings"}'))
    found = json.loads(good(await aog.host.call("ListModels")).response_json)
    has({each["name"] for each in found["models"]} >= set(MODELS), found)


async def aog_live(aog: AogFace) -> None:
    """Hold a session as AOG's client does."""
    with wave.open(str(SAMPLE)) as file:
        sound, rate = file.readframes(file.getnframes()), str(file.getframerate())
    metadata = {"language": "en", "format": "pcm", "sample_rate": rate, "model": "tiny/listener", "ws_conn_id": "c1"}
    text = json.dumps({"model": "tiny/listener"}).encode()
    done = asyncio.Event()

    async def inbound() -> AsyncIterator[Any]:
        yield bidi_request(text, service_name="speech-to-text-ws", is_first=True, metadata=metadata)
        for at in range(0, len(sound), 6400):
            yield bidi_request(sound[at : at + 6400], "binary", metadata=metadata)
        yield bidi_request(text, metadata=metadata)
        await done.wait()

    said = b""
    async for each in aog.host.converse(inbound()):
        said += good(each).data
        if b"task-failed" in each.data:
            judge(502, json.dumps({"error": json.loads(each.data)["header"].get("error_message", "")}))
        if b"task-finished" in each.data:
            done.set()
            break
    has(SAID.encode() in said, said)


MODELS = (
    "tiny/chat", "tiny/vision", "tiny/embeddings", "tiny/rerank", "tiny/image", "tiny/listener", "tiny/speaker",
)  # fmt: skip
HTTP = (
    http_chat, http_stream, http_completion, http_embed, http_rerank, http_tokenize, http_speech, http_listen,
    http_image, http_ollama, http_anthropic, http_unload, http_live,
)  # fmt: skip
AOG = (
    aog_chat, aog_stream, aog_embed, aog_rerank, aog_generate, aog_image, aog_listen, aog_speech, aog_models, aog_live,
)  # fmt: skip
BROKEN = (
    httpx.TransportError, grpc.aio.AioRpcError, grpc.aio.UsageError, websockets.WebSocketException, PluginFailed,
    OSError, EOFError,
)  # fmt: skip


async def ask(request: Callable[[Any], Awaitable[None]], face: Any, counts: Counts, *, leaves: float = 0.0) -> None:
    """Send one request and note what became of it. It may wait for as long as faults follow each other.

    :param leaves: seconds after which its client goes away; 0 = it stays.
    """
    name = request.__name__
    try:
        async with asyncio.timeout(leaves or None):
            await face.up.wait()
            await request(face)
        counts.outcomes["answered"] += 1
        counts.last_good = time.monotonic()
    except TimeoutError:
        counts.outcomes["left"] += 1
    except Told as error:
        counts.outcomes["refused in words"] += 1
        with suppress(TypeError):
            face.told[str(error)[:160]] += 1
    except Wrong as error:
        counts.outcomes["wrong"] += 1
        counts.wrong.append(f"{name}: {error}")
    except BROKEN as error:
        counts.outcomes["connection lost"] += 1
        if time.monotonic() - face.last_fault > LIMIT:
            counts.wrong.append(f"{name}: the connection broke without a fault: {error!r:.200}")
