"""Every format of speech by every way in and out: HTTP, AOG, the terminal, whole and live. All are heard alike."""

from __future__ import annotations

import base64
import io
import json
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.client import connect

from tests.faces.http.ways import FRAME
from tests.recordings import EVERY, SPOKEN, decoded, recorded

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.faces.http.ways import Aog, Terminal

SAID = "one two three stop"


class Ways:
    """Each method takes a recording by one way and returns what was heard."""

    def __init__(self, server: Any, client: httpx.Client, aog: Callable[[], Aog], terminal: Terminal) -> None:
        self._server, self._client, self._aog, self._terminal = server, client, aog, terminal

    def http_form(self, path: Path, *, address: str = "transcriptions", **fields: Any) -> str:
        files = {"file": (path.name, path.read_bytes())}
        data = {"model": "tiny/listener", "language": "en", **fields}
        answer = self._client.post(f"/v1/audio/{address}", data=data, files=files)
        assert answer.status_code == 200, answer.text
        return answer.text if fields else str(answer.json()["text"])

    def http_translations(self, path: Path) -> str:
        return self.http_form(path, address="translations")

    def http_stream(self, path: Path) -> str:
        *_, last = self.http_form(path, stream="true").strip().splitlines()
        return str(json.loads(last.removeprefix("data: "))["text"])

    def http_json(self, path: Path) -> str:
        body = {"model": "tiny/listener", "language": "en", "audio": base64.b64encode(path.read_bytes()).decode()}
        return str(self._client.post("/v1/audio/transcriptions", json=body).json()["text"])

    def http_live(self, path: Path) -> str:
        address = self._server.url.replace("http", "ws") + "/v1/realtime?intent=transcription"
        headers = {"authorization": f"Bearer {self._server.key}"}
        transcription = {"model": "tiny/listener", "language": "en"}
        # Raw samples have no head that tells their rate, recordings have.
        sound = {"input": {"format": {"type": "audio/pcm", "rate": 16000}, "transcription": transcription}}
        with connect(address, additional_headers=headers, proxy=None) as socket:

            def tell(kind: str, **fields: Any) -> None:
                socket.send(json.dumps({"type": kind, **fields}))

            tell("session.update", session={"type": "transcription", "audio": sound})
            data, said = path.read_bytes(), ""
            for at in range(0, len(data), FRAME):
                tell("input_audio_buffer.append", audio=base64.b64encode(data[at : at + FRAME]).decode())
            tell("input_audio_buffer.commit")
            while "stop" not in said:
                event = json.loads(socket.recv(30))
                assert event["type"] != "error", event
                said += f" {event.get('transcript', '')}".rstrip()
        return said.strip()

    def aog_path(self, path: Path) -> str:
        return str(self._aog().ask("speech-to-text", model="tiny/listener", language="en", audio=str(path))["text"])

    def aog_base64(self, path: Path) -> str:
        audio = base64.b64encode(path.read_bytes()).decode()
        return str(self._aog().ask("speech-to-text", model="tiny/listener", language="en", audio=audio)["text"])

    def aog_live(self, path: Path) -> str:
        return self._aog().listen(path.read_bytes(), path.suffix[1:])

    def terminal_file(self, path: Path) -> str:
        return self._terminal("transcribe", str(path), "--language", "en", "--model", "tiny/listener")

    def terminal_pipe(self, path: Path) -> str:
        return self._terminal("transcribe", "-", "--language", "en", "--model", "tiny/listener", piped=path)

    def terminal_call(self, path: Path) -> str:
        body = {"model": "tiny/listener", "language": "en", "audio": str(path)}
        return str(json.loads(self._terminal("call", "speech-to-text", json.dumps(body)))["text"])

    def terminal_live(self, path: Path) -> str:
        words = ("transcribe", "--live", "-", "--language", "en", "--model", "tiny/listener")
        return self._terminal(*words, piped=path)


UNNAMED = ("http_live", "terminal_live")
"""Ways of raw samples, which may begin as AAC without a container does, and that do not name a format."""
LIVE = ("aog_live", "terminal_live")
"""Ways on which the one service of live speech hears what it hears by ``http_live``, and every third format will do."""
WAYS = [name for name in vars(Ways) if not name.startswith("_")]


@pytest.mark.parametrize("way", WAYS)
def test_every_format_is_heard_by_every_way_in(
    way: str,
    server: Any,
    client: httpx.Client,
    terminal: Terminal,
    fixtures: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    take = getattr(Ways(server, client, lambda: request.getfixturevalue("aog"), terminal), way)
    sample = fixtures / "speech_to_text_samples" / "en_one_two_three.wav"
    heard = {}
    forms = [form for form in EVERY[:: 3 if way in LIVE else 1] if form != "aac" or way not in UNNAMED]
    for form in forms:
        path = tmp_path / f"recording.{form}"
        path.write_bytes(recorded(sample, form))
        heard[form] = take(path)
    assert heard == dict.fromkeys(forms, SAID)


@pytest.mark.parametrize("form", SPOKEN)
def test_speech_is_written_in_every_format_by_every_way(
    form: str, client: httpx.Client, aog: Aog, terminal: Terminal, tmp_path: Path
) -> None:
    body = {"model": "tiny/speaker", "input": "Hello.", "response_format": form}
    whole = client.post("/v1/audio/speech", json=body)
    assert whole.headers["content-type"] == {"mp3": "audio/mpeg"}.get(form, f"audio/{form}")
    streamed = client.post("/v1/audio/speech", json=body | {"stream_format": "audio"})
    spoken = aog.ask("text-to-speech", **body)["url"]
    assert spoken.endswith(f".{form}")
    file, called = tmp_path / f"said.{form}", tmp_path / f"called.{form}"
    terminal("say", "Hello.", "--out", str(file), "--model", "tiny/speaker")
    terminal("call", "text-to-speech", json.dumps(body), "--output", str(called))
    sounds = [whole.content, streamed.content, *(Path(each).read_bytes() for each in (spoken, file, called))]
    with wave.open(io.BytesIO(client.post("/v1/audio/speech", json=body | {"response_format": "wav"}).content)) as wav:
        seconds = wav.getnframes() / wav.getframerate()
    for sound in sounds:
        codec, length = decoded(sound, form)
        assert codec == SPOKEN[form]
        assert length == pytest.approx(seconds, abs=0.15)
