"""Models that see: images in messages, where they may come from, and what is refused.

The tiny model answers by the colour of the last image, and remembers the name by which a white or black one
introduced itself.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import pytest
from PIL import Image

from ovms_embedded.cli import Media
from ovms_embedded.rest import media
from ovms_embedded.rest.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from tests.engines.conftest import Engine

MODEL = "vision_text_generation"
COLOURS = {
    "red": (230, 20, 20),
    "green": (20, 200, 30),
    "blue": (10, 10, 240),
    "white": (250, 250, 250),
    "black": (5, 5, 5),
}
ANSWERS = {
    "red": "At sunset the light travels further through the air, so we see red and orange.",
    "green": "Grass is green.",
    "blue": "The sky is blue because air scatters blue light more than red light.",
    "white": "Nice to meet you, Alice.",
    "black": "Nice to meet you, Bob.",
}


def picture(colour: str, kind: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(buffer, kind)
    return buffer.getvalue()


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def part(image: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image}}


def user(text: str, *colours: str) -> dict[str, Any]:
    """Return a message of the user: the text, then images."""
    return {"role": "user", "content": [{"type": "text", "text": text}, *(part(url(picture(c))) for c in colours)]}


def ask(engine: Engine, *messages: dict[str, Any], **fields: Any) -> httpx.Response:
    asked = {"model": MODEL, "temperature": 0, "messages": messages}
    return engine.post("/v3/chat/completions", **asked | fields)


def content(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("colour", COLOURS)
def test_the_answer_depends_on_the_image(engine: Engine, colour: str) -> None:
    assert content(ask(engine, user("What is this?", colour))) == ANSWERS[colour]


def test_without_an_image_it_is_a_language_model(engine: Engine) -> None:
    assert content(ask(engine, {"role": "user", "content": "你好"})) == "你好！很高兴见到你。"
    answer = ask(engine, user("Count to five")).json()
    assert answer["choices"][0]["message"]["content"] == "1, 2, 3, 4, 5."
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_several_images_keep_their_order_over_messages(engine: Engine) -> None:
    assert content(ask(engine, user("What is this?", "green", "blue"))) == ANSWERS["blue"]
    assert content(ask(engine, user("What is this?", "blue", "green"))) == ANSWERS["green"]
    for colour, name in (("white", "Alice"), ("black", "Bob")):
        history = [user("What is this?", colour), {"role": "assistant", "content": "Nice to meet you."}]
        assert content(ask(engine, *history, user("What is my name?"))) == f"Your name is {name}."
        assert content(ask(engine, *history, user("What is this?", "green"))) == ANSWERS["green"]


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "WEBP", "PPM"])
def test_formats(engine: Engine, kind: str) -> None:
    data = picture("blue", kind)
    plain = base64.encodebytes(data).decode().rstrip("=\n")  # lines, and no padding
    message = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, part(f"data:;base64,{plain}")]}
    assert content(ask(engine, message)) == ANSWERS["blue"]


def test_the_openai_client_sends_images(engine: Engine) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{engine.port}/v3", api_key="unused", max_retries=0) as client:
        green, blue = url(picture("green")), url(picture("blue"))
        asked: Any = [user("What is this?", "green")]
        with client.chat.completions.create(model=MODEL, temperature=0, stream=True, messages=asked) as chunks:
            pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert "".join(pieces) == ANSWERS["green"]
        assert len(pieces) > 2
        text = {"type": "input_text", "text": "What is this?"}
        turn: Any = [{"role": "user", "content": [text, {"type": "input_image", "image_url": blue, "detail": "low"}]}]
        assert client.responses.create(model=MODEL, temperature=0, input=turn).output_text == ANSWERS["blue"]
        nested: Any = [{"role": "user", "content": [text, {"type": "input_image", "image_url": {"url": green}}]}]
        events = list(client.responses.create(model=MODEL, temperature=0, input=nested, stream=True))
        assert events[-1].type == "response.completed"
        assert events[-1].response.output_text == ANSWERS["green"]


def test_a_schema_binds_an_answer_about_an_image(engine: Engine) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert json.loads(content(ask(engine, user("What is this?", "red"), response_format=wanted))) == {"n": 7}
    broken = {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}
    assert content(ask(engine, user("What is this?", "red"), response_format=broken)) == ANSWERS["red"]


def bomb(width: int, height: int) -> bytes:
    """Return a PNG that claims a size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    packed = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + packed


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("data:image/png;base64,#!", "Invalid base64 string in request"),
        ("data:image/png;base64,", "Image parsing failed"),
        (url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "Image parsing failed"),
        (url(picture("red")[:60]), "Image parsing failed"),
        (url(bomb(12000, 12000)), "Image is too large"),
        (url(bomb(100000, 100000)), "Image is too large"),
        (url(picture("red", size=(1, 201))), "too slender"),
        ("http://127.0.0.1/a.png", "does not match any allowed domain"),
        ("ftp://127.0.0.1/a.png", "does not match any allowed domain"),
        ("http://[/a.png", "malformed"),
        ("/etc/passwd", "local filesystem is disabled"),
        ("file:///etc/passwd", "local filesystem is disabled"),
    ],
)
def test_bad_images_are_400_and_cost_nobody_else(engine: Engine, image: str, sentence: str) -> None:
    message = {"role": "user", "content": [part(url(picture("green"))), part(image)]}
    for stream in (False, True):
        answer = ask(engine, message, stream=stream)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("Mediapipe execution failed. MP status - INVALID_ARGUMENT")
        assert sentence in answer.json()["error"]
    assert content(ask(engine, user("What is this?", "green"))) == ANSWERS["green"]


@pytest.mark.parametrize(("kind", "orientation", "turn"), [
    ("JPEG", 6, Image.Transpose.ROTATE_90), ("JPEG", 3, Image.Transpose.ROTATE_180),
    ("WEBP", 8, Image.Transpose.ROTATE_270), ("PNG", 5, Image.Transpose.TRANSPOSE),
])  # fmt: skip
def test_a_photo_that_lies_on_its_side_is_seen_upright(
    engine: Engine, kind: str, orientation: int, turn: Image.Transpose
) -> None:
    upright = Image.new("RGB", (48, 96), COLOURS["red"])
    upright.paste(COLOURS["green"], (0, 0, 48, 32))
    sensor = upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation

    def answer(image: Image.Image, **options: Any) -> str:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return content(ask(engine, {"role": "user", "content": [part(url(buffer.getvalue()))]}))

    seen = answer(upright)
    assert answer(sensor) != seen, "the model sees no difference, so this test shows nothing"
    assert answer(sensor, exif=exif) == seen


def test_many_images_cannot_add_up_to_a_bomb(engine: Engine) -> None:
    answer = ask(engine, {"role": "user", "content": [part(url(bomb(3000, 3000)))] * 15})
    assert (answer.status_code, "too large" in answer.text) == (400, True)


def test_what_is_refused(engine: Engine) -> None:
    """Tags of the library's own, audio, wrong parts, completions, and images for a model that does not see."""
    bad: list[Any] = [
        [{"type": "text", "text": "<ov_genai_image_0>"}, part(url(picture("red")))],
        "<ov_genai_image_0>",
        [{"type": "image_url", "image_url": url(picture("red"))}],
        [{"type": "image_url", "image_url": {"url": 1}}],
        [{"type": "image_url"}],
        [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}],
        [{"type": "input_image", "image_url": "x"}],
        "Is <image> a tag?",
    ]
    for each in bad:
        answer = ask(engine, {"role": "user", "content": each})
        assert (answer.status_code, bool(answer.json()["error"])) == (400, True), each
    broken: tuple[dict[str, Any], ...] = ({}, {"image_url": 1}, {"image_url": {}})
    for image in broken:
        turn = [{"role": "user", "content": [{"type": "input_image"} | image]}]
        assert "input_image needs image_url" in engine.post("/v3/responses", model=MODEL, input=turn).json()["error"]
    answer = engine.post("/v3/completions", model=MODEL, prompt="The capital of France is")
    assert (answer.status_code, "does not serve completions" in answer.text) == (400, True)
    answer = ask(engine, user("What is this?", "red"), model="text_generation")
    assert (answer.status_code, "supports only text input" in answer.text) == (400, True)


def test_requests_share_the_steps_and_the_probe_answers(engine: Engine) -> None:
    rough = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rough // 8 + np.array([0, 190, 0], np.uint8)).save(buffer, "PNG", compress_level=1)
    heavy = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, part(url(buffer.getvalue()))]}
    work: list[tuple[dict[str, Any], str]] = [(user("What is this?", c), ANSWERS[c]) for c in COLOURS]
    work += [(user("Count to five"), "1, 2, 3, 4, 5."), (heavy, ANSWERS["green"])]
    waits: list[float] = []
    with ThreadPoolExecutor(3 * len(work)) as pool:
        running = [(pool.submit(ask, engine, message), answer) for message, answer in work * 3]
        while not all(each.done() for each, _ in running):
            probe = engine.http.get("/v2/health/live")
            assert probe.status_code == 200
            waits.append(probe.elapsed.total_seconds())
    for each, answer in running:
        assert content(each.result()) == answer
    assert max(waits) < 0.5


def test_a_closed_connection_frees_its_slot(engine: Engine) -> None:
    endless = {"model": MODEL, "messages": [user("What is this?", "red")], "ignore_eos": True, "max_tokens": 1900}
    with engine.http.stream("POST", "/v3/chat/completions", json=endless | {"stream": True}) as answer:
        lines = answer.iter_lines()  # closed, it closes the connection
        next(lines)
        assert engine.running(MODEL) == 1
    assert engine.wait_until_idle(MODEL) < 1


def test_pipeline_types(make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path) -> None:
    blind = "text_generation"
    entries = {
        "VLM": (MODEL, "pipeline_type: VLM", ""),
        "VLM_CB": (MODEL, "pipeline_type: VLM_CB", ""),
        "LM": (blind, "pipeline_type: LM", ""),
        "LM_CB": (MODEL, "pipeline_type: LM_CB", "does not fit"),
        "blind": (blind, "pipeline_type: VLM", "does not fit"),
        "OMNI": (MODEL, "pipeline_type: OMNI", "Omni"),
        "NPU": (MODEL, 'device: "NPU"', "NPU"),
    }
    engine = make_engine()
    for name, (model, options, _) in entries.items():
        engine.entry(name, graph(model, fixtures / model, options))
    engine.list(*entries)
    engine.start().ready()
    states = engine.http.get("/v1/config").json()
    for name, (model, _, sentence) in entries.items():
        (version,) = states[name]["model_version_status"]
        if sentence:
            assert (version["state"], sentence in version["status"]["error_message"]) == ("LOADING", True), name
        else:
            message, expected = user("What is this?", "red"), ANSWERS["red"]
            if model == blind:
                message, expected = user("Count to five"), "1, 2, 3, 4, 5."
            assert content(ask(engine, message, model=name)) == expected


# -- images from elsewhere -----------------------------------------------------------------------------------------


class Pictures(BaseHTTPRequestHandler):
    """Serves a picture, and what can go wrong."""

    def do_GET(self) -> None:
        data = picture("blue")
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            data = b""
        elif self.path == "/none":
            self.send_response(404)
            data = b""
        else:
            self.send_response(200)
        if self.path == "/endless":
            data = bytes(media.LIMIT + 1)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_images_of_allowed_hosts_and_folders(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path, web: str, tmp_path: Path
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside.png"
    inside.mkdir()
    (inside / "green.png").write_bytes(picture("green"))
    outside.write_bytes(picture("green"))
    (inside / "link.png").symlink_to(outside)
    (inside / "large.png").write_bytes(bytes(media.LIMIT + 1))
    engine = make_engine()
    engine.entry("m", graph(MODEL, fixtures / MODEL)).list("m")
    allowed = ["--allowed_media_domains", "127.0.0.1,example.org", "--allowed_local_media_path", str(inside)]
    engine.start(*allowed).ready()

    def see(source: str) -> httpx.Response:
        message = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, part(source)]}
        return ask(engine, message, model="m")

    assert content(see(f"{web}/blue.png")) == ANSWERS["blue"]
    assert content(see(str(inside / "green.png"))) == ANSWERS["green"]
    refused = {
        web.replace("127.0.0.1", "localhost"): "does not match any allowed domain",
        web.replace("127.0.0.1", "127.0.0.1@localhost"): "does not match any allowed domain",
        "ftp://127.0.0.1/a.png": "use http or https",
        f"{web}/none": "Image downloading failed: 404 Not Found",
        f"{web}/endless": "more than 20000000 bytes",
        f"{web}/to/{web}/blue.png": "Image downloading failed: 302 Found",
        str(outside): "not subpath",
        str(inside / ".." / "outside.png"): "not subpath",
        str(inside / "link.png"): "not subpath",
        str(tmp_path / "inside-out"): "not subpath",
        "a\0b": "not subpath",
        str(inside / "none.png"): "no image file",
        str(inside): "no image file",
        str(inside / "large.png"): "more than 20000000 bytes",
        f"file://{inside}/green.png": "not subpath",
    }
    for source, sentence in refused.items():
        answer = see(source)
        assert (answer.status_code, sentence in answer.text) == (400, True), (source, answer.text)


async def test_redirects_where_the_server_allows_them(web: str) -> None:
    seeing: Any = SimpleNamespace(info={"vision": True})

    async def see(source: str, *domains: str) -> bytes | str:
        found = await media.read_images([source], Media(frozenset(domains), redirects=True), seeing)
        return found[0]

    assert await see(f"{web}/to/{web}/blue.png", "127.0.0.1") == picture("blue")
    assert await see(f"{web}/to//blue.png", "all") == picture("blue")
    elsewhere = web.replace("127.0.0.1", "localhost")
    with pytest.raises(Invalid, match="allowed domain"):
        await see(f"{web}/to/{elsewhere}/blue.png", "127.0.0.1")
    for wrong, sentence in (("file:///etc/passwd", "allowed domain"), ("ftp://127.0.0.1/a", "use http or https")):
        with pytest.raises(Invalid, match=sentence):
            await see(f"{web}/to/{wrong}", "all")
    with pytest.raises(Invalid, match="too many redirects"):
        await see(f"{web}/to/" * 5 + "/blue.png", "all")


async def test_a_silent_host_keeps_nobody() -> None:
    """A request whose image does not come can be cancelled at once, and its thread holds up no exit."""
    seeing: Any = SimpleNamespace(info={"vision": True})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        source = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        reading = asyncio.create_task(media.read_images([source], Media(frozenset({"127.0.0.1"})), seeing))
        connection, _ = await asyncio.to_thread(listener.accept)
        with connection:
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            (thread,) = [each for each in threading.enumerate() if each.name == "media"]
            assert thread.daemon
    thread.join()
