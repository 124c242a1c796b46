"""Small requests that stand for much work: each is a 4xx in words, in little time and memory, and delays nobody."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.attack.conftest import Watch
    from tests.engines.conftest import Engine

SECONDS = 10.0
"""On two busy cores; unbounded, each of these takes minutes or the machine's memory."""
MEGABYTES = 400
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


def schema(inner: dict[str, Any]) -> dict[str, Any]:
    wanted = {"type": "json_schema", "json_schema": {"schema": inner}}
    return HELLO | {"response_format": wanted}


def nested(levels: int) -> dict[str, Any]:
    """Return a schema of objects within each other."""
    made: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        made = {"type": "object", "properties": {"a": made}, "required": ["a"]}
    return made


def wave(rate: int, size: int) -> bytes:
    """Return a WAV of 16-bit samples that claims a rate."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, min(2 * rate, 0xFFFFFFFF), 2, 16)
    data = struct.pack("<4sI", b"data", size) + bytes(size)
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data


def picture(side: int) -> str:
    """Return a white picture of one bit a pixel, which packs to nothing."""
    buffer = io.BytesIO()
    Image.new("1", (side, side), 1).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def see(side: int) -> dict[str, Any]:
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": picture(side)}}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2}


NESTED = "^((((a{1,1000}){1,1000}){1,1000}){1,1000})$"
CHAT, TOKENIZE, EMBED, TEXT = "chat/completions", "tokenize", "embeddings", "text_generation"
BOMBS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "properties": (
        CHAT, TEXT, schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5_000)}}),
        "properties",
    ),
    "many_objects": (
        CHAT, TEXT, schema({"anyOf": [{"properties": {f"p{i}{j}": {} for i in range(300)}} for j in range(9)]}),
        "optional properties",
    ),
    "free_schema": (
        CHAT, TEXT, schema({"anyOf": [{"properties": {f"p{i}{j}": {} for i in range(400)}} for j in range(3)]}),
        "optional properties",
    ),
    "deep_schema": (CHAT, TEXT, schema(nested(33)), "levels"),
    "pattern": (CHAT, TEXT, schema({"type": "string", "pattern": NESTED}), "repeats"),
    "long_schema": (CHAT, TEXT, schema({"enum": ["x" * 50] * 20_000}), "characters"),
    "digits": (CHAT, TEXT, HELLO | {"repetition_penalty": 10**4000}, "repetition_penalty"),
    "padding": (
        TOKENIZE, TEXT, {"text": "a", "max_length": 100_000_000, "pad_to_max_length": True}, "filled up",
    ),
    "padding_of_embeddings": (
        TOKENIZE, "embeddings", {"text": ["a"] * 100, "max_length": 1_000_000, "pad_to_max_length": True}, "filled up",
    ),
    "long_text": (TOKENIZE, TEXT, {"text": "hello world " * 1_000_000}, "characters"),
    "long_prompt": (CHAT, TEXT, {"messages": [{"role": "user", "content": "hello world " * 1_000_000}]}, "exceeds"),
    "long_completion": ("completions", TEXT, {"prompt": "hello world " * 1_000_000}, "exceeds model max length"),
    "long_input": (EMBED, "embeddings", {"input": "hello world " * 1_000_000}, "characters"),
    "long_speech": ("audio/speech", "text_to_speech", {"input": "hello world " * 1_000_000}, "characters"),
    "picture": (CHAT, "vision_text_generation", see(11_500), "too large"),
}  # fmt: skip


def send(target: Engine, bomb: str) -> httpx.Response:
    path, model, fields, _ = BOMBS[bomb]
    return target.http.post(f"/v3/{path}", content=json.dumps({"model": model} | fields), headers=JSON)


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_is_too_much_is_refused_in_words(target: Engine, watch: Callable[[], Watch], bomb: str) -> None:
    with watch() as seen:
        answer = send(target, bomb)
    assert answer.status_code in (400, 412, 413), answer.text[:300]
    assert BOMBS[bomb][3] in answer.json()["error"], answer.text[:300]
    assert len(answer.json()["error"]) < 500
    assert seen.seconds < SECONDS
    assert seen.grown < MEGABYTES


@pytest.mark.parametrize(("rate", "size"), [(1, 200_000), (99_999_989, 1000), (0xFFFFFFFF, 1000), (999, 100_000)])
def test_a_recording_of_an_absurd_rate_is_refused(
    target: Engine, watch: Callable[[], Watch], rate: int, size: int
) -> None:
    with watch() as seen:
        answer = target.http.post(
            "/v3/audio/transcriptions", data={"model": "speech_to_text"}, files={"file": ("a.wav", wave(rate, size))}
        )
    assert answer.status_code == 400
    assert seen.seconds < SECONDS
    assert seen.grown < MEGABYTES


def test_the_largest_picture_takes_bounded_memory(target: Engine, watch: Callable[[], Watch]) -> None:
    with watch() as seen:
        answer = target.http.post(f"/v3/{CHAT}", json={"model": "vision_text_generation"} | see(8_000))
    assert answer.status_code == 200
    assert seen.grown < 1500


def test_what_is_usual_still_goes_through(target: Engine) -> None:
    """Bounds that refuse what people send would be no better than none."""
    usual = {
        "type": "object",
        "properties": {f"p{i}": {"type": "string", "pattern": "^[a-z]{1,64}$"} for i in range(60)},
        "required": ["p0"],
    }
    answers = [
        target.post(f"/v3/{CHAT}", model=TEXT, **schema(usual)),
        target.post("/v3/tokenize", model=TEXT, text=["hello world " * 5000, "a"]),
        target.post("/v3/tokenize", model="embeddings", text="a", max_length=512, pad_to_max_length=True),
        target.post("/v3/embeddings", model="embeddings", input=["hello"] * 200),
    ]
    assert [each.status_code for each in answers] == [200] * 4, [each.text[:200] for each in answers]


@contextmanager
def streaming(target: Engine) -> Iterator[list[float]]:
    """Stream from a model meanwhile, and collect the seconds between two pieces."""
    gaps: list[float] = []
    stopped = threading.Event()

    def read() -> None:
        while not stopped.is_set():
            fields = {"model": TEXT, "prompt": "Count to fifty", "max_tokens": 200, "ignore_eos": True, "stream": True}
            with target.http.stream("POST", "/v3/completions", json=fields) as answer:
                last = time.monotonic()
                for _ in answer.iter_lines():
                    gaps.append(time.monotonic() - last)
                    last = time.monotonic()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield gaps
    finally:
        stopped.set()
        reader.join()


def test_a_stream_of_one_model_goes_on_while_bombs_go_to_others(target: Engine) -> None:
    """The gaps between its pieces stay those of a busy machine: none is as long as the bombs together take."""
    others = [bomb for bomb in BOMBS if BOMBS[bomb][1] != TEXT]
    with streaming(target) as gaps:
        for bomb in others * 2:
            assert send(target, bomb).status_code in (400, 412, 413)
    assert len(gaps) > 100
    assert max(gaps) < 1.0


def test_no_token_waits_for_a_schema_that_compiles(target: Engine) -> None:
    """Neither those of the same model: compiling takes several times as long as the longest gap of a stream."""
    slow = {
        "type": "object",
        "properties": {f"p{i}": {"type": "string", "pattern": f"^[a-z]{{3,{9 + i}}}$"} for i in range(100)},
    }
    fields = {"model": TEXT} | schema(slow)
    with streaming(target) as gaps:
        began = time.monotonic()
        assert target.http.post(f"/v3/{CHAT}", json=fields).status_code == 200
        first = time.monotonic() - began
    assert len(gaps) > 100
    assert max(gaps) < first / 3
    began = time.monotonic()
    assert target.http.post(f"/v3/{CHAT}", json=fields).status_code == 200
    assert time.monotonic() - began < first / 3, "a schema is compiled once"


ENDLESS = {"type": "object", "patternProperties": {f"^x{i}[a-z]{{1,50}}$": {"type": "integer"} for i in range(300)}}
"""A schema of 16 kB that the library compiles for minutes."""


def test_a_compile_that_nobody_waits_for_is_stopped(target: Engine) -> None:
    """What began it leaves; the processor rests, and neither a stream nor the next schema has noticed."""
    assert target.process
    front = psutil.Process(target.process.pid)

    def compiling() -> bool:
        with contextlib.suppress(psutil.Error):
            return any("ovms_embedded.worker.trial" in each.cmdline() for each in front.children(recursive=True))
        return True

    with streaming(target) as gaps:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{target.http.base_url}/v3/{CHAT}", json={"model": TEXT} | schema(ENDLESS), timeout=5)
        deadline = time.monotonic() + SECONDS
        while compiling():
            assert time.monotonic() < deadline
        assert target.http.post(f"/v3/{CHAT}", json={"model": TEXT} | schema({"type": "boolean"})).status_code == 200
    assert len(gaps) > 100
    assert max(gaps) < 1.0
    used = [sum(each.cpu_times()[:2]) for each in front.children(recursive=True)]
    time.sleep(1)
    rest = [sum(each.cpu_times()[:2]) for each in front.children(recursive=True)]
    assert sum(rest) - sum(used) < 0.2
