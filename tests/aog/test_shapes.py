"""What AOG's clients send and read, made of OpenAI's answers: files, times as text, and nothing else."""

import base64
import io
import json
import wave
from pathlib import Path
from typing import Any

import pytest

from ovms_face_aog.shapes import clock, invoke_shaped, output_folder
from ovms_kernel.api.faces import Answer, BadRequest, EngineFailed, PreconditionFailed, Unavailable

PNG = b"\x89PNG..."
PAINTED = {"created": 1, "data": [{"b64_json": base64.b64encode(PNG).decode()}] * 2, "model": "painter"}
SEGMENT = {"id": 0, "seek": 0, "start": 0.0, "end": 3.5, "text": "one two", "tokens": [], "temperature": 0.0}
HEARD = {"text": "one two", "language": "english", "duration": 3.5, "segments": [SEGMENT], "model": "listener"}


def sound(seconds: float = 0.5) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 24000, 0, "NONE", ""))
        file.writeframes(bytes(int(48000 * seconds)))
    return buffer.getvalue()


class Kernel:
    """Answers each request with the same, and remembers what it was asked."""

    def __init__(self, body: Any, model: str = "") -> None:
        self.answer = Answer(body if isinstance(body, bytes) else json.dumps(body).encode(), model=model)
        self.asked: list[dict[str, Any]] = []

    async def invoke(self, body: bytes) -> Answer:
        self.asked.append(json.loads(body))
        return self.answer


async def shaped(kernel: Kernel, service: str, output_dir: str, **fields: Any) -> dict[str, Any]:
    answer = await invoke_shaped(service, json.dumps(fields).encode(), output_dir, kernel.invoke)
    return dict(json.loads(answer))


async def test_a_transcript_has_exactly_these_fields() -> None:
    kernel = Kernel(HEARD)
    answer = await shaped(kernel, "speech-to-text", "", audio="/a.wav", language="<|zh|>", response_format="text")
    assert answer == {
        "text": "one two",
        "segments": [{"id": 0, "start": "00:00:00.000", "end": "00:00:03.500", "text": "one two"}],
        "model": "listener",
    }
    assert kernel.asked == [{"audio": "/a.wav", "language": "<|zh|>", "response_format": "verbose_json"}]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "00:00:00.000"),
        (3.5, "00:00:03.500"),
        (59.9996, "00:01:00.000"),
        (36061.5, "10:01:01.500"),
        (-1, "00:00:00.000"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert clock(seconds) == text


async def test_speech_is_a_file_that_any_player_opens(tmp_path: Path) -> None:
    kernel = Kernel(sound(), "speaker")
    answer = await shaped(kernel, "text-to-speech", str(tmp_path), text="hello")
    assert answer == {"url": str(next(tmp_path.iterdir())), "model": "speaker", "duration": 0.5}
    assert Path(answer["url"]).suffix == ".wav"
    assert Path(answer["url"]).read_bytes() == sound()
    assert kernel.asked == [{"text": "hello", "response_format": "wav"}]
    other = await shaped(Kernel(b"ID3"), "text-to-speech", str(tmp_path), response_format="mp3")
    assert Path(other["url"]).suffix == ".mp3"
    assert Path(other["url"]).read_bytes() == b"ID3"


async def test_speech_inline_writes_nothing(tmp_path: Path) -> None:
    answer = await shaped(Kernel(sound(), "speaker"), "text-to-speech", str(tmp_path), response_format="b64_json")
    assert answer.keys() == {"audio", "model", "duration"}
    assert base64.b64decode(answer["audio"]) == sound()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", ["path", "url"])
async def test_images_are_files(tmp_path: Path, asked: str) -> None:
    folder, kernel = tmp_path / "new folder", Kernel(PAINTED)
    answer = await shaped(kernel, "text-to-image", str(folder), prompt="a fox", response_format=asked)
    paths = {each["url"] for each in answer["data"]}
    assert {Path(each).read_bytes() for each in paths} == {PNG}
    assert {str(each) for each in folder.iterdir()} == paths
    assert all(each["b64_json"] for each in answer["data"]), "AOG needs them too"
    assert kernel.asked == [{"prompt": "a fox", "response_format": "b64_json"}]


async def test_what_needs_no_change_is_passed_on() -> None:
    for service, fields in (("text-to-image", {"prompt": "a"}), ("chat", {"messages": []})):
        assert await shaped(Kernel(PAINTED), service, "", **fields) == PAINTED
    with pytest.raises(BadRequest, match="must be b64_json or path, not png"):
        await shaped(Kernel(PAINTED), "text-to-image", "", response_format="png")


async def test_an_answer_without_an_image(tmp_path: Path) -> None:
    kernel = Kernel({"data": [{"b64_json": "!"}]})
    with pytest.raises(EngineFailed, match="no image"):
        await shaped(kernel, "text-to-image", str(tmp_path), response_format="path")


async def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="set output_dir"):
        await shaped(Kernel(PAINTED), "text-to-image", str(tmp_path / "file"), response_format="path")


@pytest.mark.parametrize(
    "folder",
    [
        "pictures",
        # Windows does not ask who has a home: it is the folder beside one's own.
        pytest.param("~nobody-of-that-name/pictures", marks=pytest.mark.needs_posix),
    ],
)
@pytest.mark.parametrize(
    ("service", "fields"), [("text-to-image", {"response_format": "path"}), ("text-to-speech", {"text": "x"})]
)
async def test_a_folder_that_depends_on_where_we_run_is_refused_before_any_work(
    service: str, fields: dict[str, Any], folder: str
) -> None:
    kernel = Kernel(b"")
    with pytest.raises(PreconditionFailed, match="output_dir must be an absolute path"):
        await shaped(kernel, service, folder, **fields)
    assert not kernel.asked


def test_a_folder_is_as_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert output_folder(str(tmp_path)) == tmp_path
    assert output_folder("~/own") == tmp_path / "own"
    assert output_folder("").is_dir()


@pytest.mark.needs_posix  # Windows does not take its folders from variables
def test_the_default_folder_is_that_of_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DOWNLOAD_DIR", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert output_folder("") == tmp_path
    (tmp_path / "Downloads").mkdir()
    assert output_folder("") == tmp_path / "Downloads"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("XDG_DOWNLOAD_DIR", str(tmp_path / "elsewhere"))
    assert output_folder("") == tmp_path / "elsewhere"
