"""Every format of picture, upright and lying on its side, by every way in: HTTP and its dialects, AOG, the terminal."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx

    from tests.faces.http.ways import Aog, Terminal

WHITE, BLUE = (250, 250, 250), (10, 10, 240)
ABOUT_BLUE = "The sky is blue because air scatters blue light more than red light."
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}
SIDEWAYS = {
    "png": (5, Image.Transpose.TRANSPOSE),
    "jpg": (6, Image.Transpose.ROTATE_90),
    "webp": (8, Image.Transpose.ROTATE_270),
}
"""Formats with EXIF data: an orientation, and how the sensor then lies."""
ORIENTATION = 0x0112
QUESTION = "What is this?"
EDIT = {"model": "tiny/image", "prompt": "blue", "num_inference_steps": 2, "seed": 1, "strength": 0.5, "size": "64x64"}


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def data_uri(path: Path) -> str:
    return f"data:image/{path.suffix[1:].replace('jpg', 'jpeg')};base64,{encoded(path)}"


class Looking:
    """Each method asks a model what is in a picture, by one way, and returns what it says."""

    def __init__(self, client: httpx.Client, aog: Callable[[], Aog], terminal: Terminal) -> None:
        self._client, self._aog, self._terminal = client, aog, terminal

    def _post(self, address: str, **body: Any) -> Any:
        answer = self._client.post(address, json={"model": "tiny/vision", **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    @staticmethod
    def _chat(path: Path) -> dict[str, Any]:
        parts = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": data_uri(path)}}]
        return {"messages": [{"role": "user", "content": parts}], "temperature": 0}

    def chat(self, path: Path) -> str:
        return str(self._post("/v1/chat/completions", **self._chat(path))["choices"][0]["message"]["content"])

    def responses(self, path: Path) -> str:
        parts = [{"type": "input_text", "text": QUESTION}, {"type": "input_image", "image_url": data_uri(path)}]
        answer = self._post("/v1/responses", input=[{"role": "user", "content": parts}], temperature=0)
        return str(answer["output"][0]["content"][0]["text"])

    def anthropic(self, path: Path) -> str:
        source = {"type": "base64", "media_type": "image/png", "data": encoded(path)}
        parts = [{"type": "text", "text": QUESTION}, {"type": "image", "source": source}]
        asked = {"messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 100}
        return str(self._post("/v1/messages", **asked)["content"][0]["text"])

    def ollama(self, path: Path) -> str:
        message = {"role": "user", "content": QUESTION, "images": [encoded(path)]}
        return str(
            self._post("/api/chat", messages=[message], options={"temperature": 0}, stream=False)["message"]["content"]
        )

    def aog(self, path: Path) -> str:
        answer = self._aog().ask("chat", model="tiny/vision", **self._chat(path))
        return str(answer["choices"][0]["message"]["content"])

    def terminal(self, path: Path) -> str:
        return self._terminal("chat", QUESTION, "--model", "tiny/vision", "--image", str(path), "--temperature", "0")

    def terminal_call(self, path: Path) -> str:
        body = json.dumps({"model": "tiny/vision", **self._chat(path)})
        return str(json.loads(self._terminal("call", "chat", body))["choices"][0]["message"]["content"])


class Changing:
    """Each method has a picture changed, by one way, and returns the new one."""

    def __init__(self, client: httpx.Client, aog: Callable[[], Aog], terminal: Terminal, folder: Path) -> None:
        self._client, self._aog, self._terminal, self._folder = client, aog, terminal, folder

    @staticmethod
    def _picture(answer: Any) -> bytes:
        return base64.b64decode(answer["data"][0]["b64_json"])

    def form(self, path: Path) -> bytes:
        answer = self._client.post("/v1/images/edits", data=EDIT, files={"image": (path.name, path.read_bytes())})
        assert answer.status_code == 200, answer.text
        return self._picture(answer.json())

    def json(self, path: Path) -> bytes:
        answer = self._client.post("/v1/images/generations", json=EDIT | {"image": data_uri(path)})
        assert answer.status_code == 200, answer.text
        return self._picture(answer.json())

    def aog_path(self, path: Path) -> bytes:
        return self._picture(self._aog().ask("text-to-image", **EDIT, image=str(path), image_type="path"))

    def aog_base64(self, path: Path) -> bytes:
        return self._picture(self._aog().ask("text-to-image", **EDIT, image=encoded(path), image_type="base64"))

    def terminal(self, path: Path) -> bytes:
        out = self._folder / "painted.png"
        words = ("--model", "tiny/image", "--size", "64x64", "--steps", "2", "--seed", "1")
        self._terminal("imagine", "blue", "--image", str(path), "--out", str(out), *words)
        return out.read_bytes()

    def terminal_call(self, path: Path) -> bytes:
        body = json.dumps(EDIT | {"image": str(path)})
        return self._picture(json.loads(self._terminal("call", "text-to-image", body)))


def ways(kind: type) -> list[str]:
    return [name for name in vars(kind) if not name.startswith("_")]


def lying(kind: type, way: str, *forms: str) -> list[str]:
    """Return which formats lie on their side by a way: all by the first, and by each of the others another one.

    Every way takes every format, and what turns a picture comes after that.
    """
    at = ways(kind).index(way)
    return list(forms) if at == 0 else [forms[at % len(forms)]]


@pytest.fixture
def lazy_aog(request: pytest.FixtureRequest) -> Callable[[], Aog]:
    return lambda: request.getfixturevalue("aog")


def saved(picture: Image.Image, path: Path, **options: Any) -> Path:
    if path.suffix == ".webp":
        options["lossless"] = True
    picture.save(path, FORMATS[path.suffix[1:]], **options)
    return path


@pytest.fixture
def sideways(tmp_path: Path) -> Callable[..., tuple[Path, Path, Path]]:
    """Write a picture upright, as the sensor of a camera has it, and the latter with its orientation."""

    def write(form: str, size: int) -> tuple[Path, Path, Path]:
        upright = Image.new("RGB", (size, size), WHITE)
        upright.paste(BLUE, (0, 0, size, size // 3))
        orientation, turn = SIDEWAYS[form]
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        turned = upright.transpose(turn)
        names = (tmp_path / f"{name}.{form}" for name in ("upright", "turned", "noted"))
        return (
            saved(upright, next(names)),
            saved(turned, next(names)),
            saved(turned, next(names), exif=exif),
        )

    return write


@pytest.mark.parametrize("way", ways(Looking))
def test_every_format_is_seen_upright_by_every_way_in(
    way: str,
    client: httpx.Client,
    lazy_aog: Callable[[], Aog],
    terminal: Terminal,
    tmp_path: Path,
    sideways: Callable[..., tuple[Path, Path, Path]],
) -> None:
    look = getattr(Looking(client, lazy_aog, terminal), way)
    for form in FORMATS:
        assert look(saved(Image.new("RGB", (64, 48), BLUE), tmp_path / f"blue.{form}")) == ABOUT_BLUE, form
    for form in lying(Looking, way, *SIDEWAYS):
        upright, turned, noted = (look(each) for each in sideways(form, 96))
        assert upright != turned, "the model sees no difference, so this test shows nothing"
        assert noted == upright, form


@pytest.mark.parametrize("way", ways(Changing))
def test_every_format_is_changed_upright_by_every_way_in(
    way: str,
    client: httpx.Client,
    lazy_aog: Callable[[], Aog],
    terminal: Terminal,
    tmp_path: Path,
    sideways: Callable[..., tuple[Path, Path, Path]],
) -> None:
    change = getattr(Changing(client, lazy_aog, terminal, tmp_path), way)
    for form in FORMATS:
        changed = change(saved(Image.new("RGB", (64, 64), BLUE), tmp_path / f"blue.{form}"))
        with Image.open(io.BytesIO(changed)) as picture:
            assert (picture.format, picture.size) == ("PNG", (64, 64)), form
    for form in lying(Changing, way, "png", "webp"):  # they lose nothing, so that the same pixels are changed
        upright, turned, noted = (change(each) for each in sideways(form, 64))
        assert upright != turned
        assert noted == upright, form
