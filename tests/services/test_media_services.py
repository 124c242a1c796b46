"""text-to-image, speech-to-text and text-to-speech against a stub: conversions, files, hosts and refusals."""

import base64
import io
import json
import os
import struct
import tracemalloc
import wave
from pathlib import Path

import anyio
import numpy as np
import pytest
import soundfile

from ovms_kernel.audio import language_of
from ovms_kernel.errors import BadRequest, EngineFailed, PreconditionFailed, Unavailable
from ovms_kernel.media import allowed_hosts, output_folder
from ovms_kernel.testing.contract import ServiceContract
from ovms_service_speech_to_text import SpeechToText, clock
from ovms_service_text_to_image import TextToImage
from ovms_service_text_to_speech import TextToSpeech

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
IMAGES, EDITS = "/v3/images/generations", "/v3/images/edits"
HEAR, SPEAK = "/v3/audio/transcriptions", "/v3/audio/speech"
PAINTED = {"data": [{"b64_json": base64.b64encode(PNG).decode()}]}


class TestTextToImage(ServiceContract):
    driver = TextToImage


class TestSpeechToText(ServiceContract):
    driver = SpeechToText


class TestTextToSpeech(ServiceContract):
    driver = TextToSpeech


def tone(rate=16000, seconds=1.0, channels=1):
    wave_ = (np.sin(np.arange(int(rate * seconds)) * 2 * np.pi * 440 / rate) * 0.5).astype("float32")
    return wave_ if channels == 1 else np.stack([wave_] * channels, axis=1)


def encoded(format_="WAV", subtype="PCM_16", **options):
    buffer = io.BytesIO()
    samples = tone(**options)
    soundfile.write(buffer, samples, options.get("rate", 16000), format=format_, subtype=subtype)
    return buffer.getvalue()


# -- images ---------------------------------------------------------------------------------------------------------


async def test_d2_25_d2_26_the_body_that_aog_sends(stub, ask):
    stub.answers[IMAGES] = PAINTED
    sent = {"prompt": "a fox", "size": "1024x1024", "num_inference_steps": 50, "rng_seed": 42}
    answer = await ask(TextToImage({}), model="painter", **sent)
    assert stub.requests[0].json == sent | {"model": "painter"}
    assert answer["data"] == PAINTED["data"]
    assert answer["model"] == "painter"
    assert isinstance(answer["created"], int)


async def test_the_names_that_users_write(stub, ask):
    stub.answers[IMAGES] = PAINTED
    await ask(
        TextToImage({}),
        model="painter",
        prompt="a fox",
        negative_prompt="blur",
        size="512*256",
        n=2.0,
        seed=7,
        guidance_scale=7,
        strength=None,
        stream=False,
    )
    body = stub.requests[0].body
    assert json.loads(body) == {
        "prompt": "a fox",
        "negative_prompt": "blur",
        "size": "512x256",
        "n": 2,
        "rng_seed": 7,
        "guidance_scale": 7.0,
        "model": "painter",
    }
    assert b'"guidance_scale":7.0' in body, "the engine refuses floats without a decimal point"
    assert b'"n":2,' in body


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "needs the field prompt"),
        ({"prompt": "x", "quality": "hd"}, "has no field quality; it takes prompt"),
        ({"prompt": "x", "size": "512"}, "must be like 512x512"),
        ({"prompt": "x", "size": "0x512"}, "must be like 512x512"),
        ({"prompt": "x", "size": "5000x512"}, "at most 4096"),
        ({"prompt": "x", "width": 5000}, "at most 4096"),
        ({"prompt": "x", "size": 512}, "must be a text"),
        ({"prompt": "x", "n": 11}, "At most 10"),
        ({"prompt": "x", "n": 0}, "number from 1 up, not 0"),
        ({"prompt": "x", "n": 1.5}, "whole number"),
        ({"prompt": "x", "seed": -1}, "field seed must be a whole number from 0 up"),
        ({"prompt": "x", "guidance_scale": 10**400}, "guidance_scale holds too large a number"),
        ({"prompt": "x", "n": True}, "whole number"),
        ({"prompt": "x", "guidance_scale": "7"}, "must be a number"),
        ({"prompt": "x", "response_format": "png"}, "b64_json or path"),
        ({"prompt": "x", "image": "!!", "image_type": "base64"}, "neither base64"),
        ({"prompt": "x", "image": "/no/such.png"}, "cannot be read"),
        ({"prompt": "x", "image": "pictures/fox.png", "image_type": "path"}, "must be absolute"),
        ({"prompt": "x", "image": "/dev/zero", "image_type": "path"}, "no regular file"),
        ({"prompt": "x", "image": "/tmp", "image_type": "path"}, "no regular file"),
        ({"prompt": "x", "image": "~nobody-of-that-name/x.png", "image_type": "path"}, "cannot be read"),
        ({"prompt": "x", "image": "file://[", "image_type": "path"}, "cannot be read"),
        ({"prompt": "x", "image": "x", "image_type": "ftp"}, "must be base64, path or url"),
        ({"prompt": "x", "image": "https://elsewhere.example/a.png"}, "Nothing is fetched from elsewhere.example"),
        ({"prompt": "x", "image": "file:///etc/passwd", "image_type": "url"}, "must begin with http"),
        ({"prompt": "x", "image": 7}, "must be base64"),
        ({"prompt": "x", "mask": base64.b64encode(PNG).decode()}, "needs the image"),
    ],
)
async def test_a_wrong_request_for_an_image(stub, ask, body, sentence):
    with pytest.raises(BadRequest, match=sentence):
        await ask(TextToImage({}), model="painter", **body)
    assert not stub.requests


@pytest.mark.skipif(os.name != "posix", reason="Windows has no pipes among its files")
async def test_a_pipe_that_nobody_writes_to_is_refused_at_once(ask, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with anyio.fail_after(5), pytest.raises(BadRequest, match="no regular file"):
        await ask(TextToImage({}), model="painter", prompt="x", image=str(tmp_path / "pipe"))


async def test_images_are_changed_from_base64_path_and_url(stub, ask, tmp_path):
    stub.answers |= {EDITS: PAINTED, "/fox.png": PNG}
    (tmp_path / "狐狸.png").write_bytes(PNG)
    host = TextToImage({"allowed_hosts": "127.0.0.1, other"})
    text = base64.b64encode(PNG).decode()
    for given in (
        {"image": text, "image_type": "base64"},
        {"image": text.rstrip("=")},
        {"image": f"data:image/png;base64,{text}"},
        {"image": str(tmp_path / "狐狸.png"), "image_type": "path"},
        {"image": str(tmp_path / "狐狸.png")},
        {"image": (tmp_path / "狐狸.png").as_uri()},
        {"image": f"{stub.endpoint.rest}/fox.png", "image_type": "url"},
        {"image": f"{stub.endpoint.rest}/fox.png"},
    ):
        await ask(host, model="painter", prompt="blue", strength=1, n=2, mask=text, **given)
        form = stub.requests[-1].form
        assert form == {
            "prompt": "blue",
            "strength": "1.0",
            "n": "2",
            "model": "painter",
            "image": PNG,
            "mask": PNG,
        }, given


async def test_what_a_url_may_lead_to(stub, ask, monkeypatch):
    async def elsewhere(request, reply):
        await reply.raw(b"HTTP/1.1 302 Found\r\nlocation: http://localhost/\r\ncontent-length: 0\r\n\r\n")

    stub.answers |= {"/moved": elsewhere, "/large": bytes(2000)}
    monkeypatch.setattr("ovms_kernel.media.MAX_FETCH", 1000)
    host = TextToImage({"allowed_hosts": ["127.0.0.1"]})
    for path, sentence in (("/moved", "answered 302"), ("/none", "answered 404"), ("/large", "leads to more than")):
        with pytest.raises(BadRequest, match=sentence):
            await ask(host, model="painter", prompt="x", image=stub.endpoint.rest + path)


async def test_images_as_files(stub, ask, tmp_path):
    stub.answers[IMAGES] = {"data": PAINTED["data"] * 2}
    folder = tmp_path / "new folder"
    answer = await ask(
        TextToImage({"output_dir": str(folder)}), model="painter", prompt="a fox", n=2, response_format="path"
    )
    paths = {each["url"] for each in answer["data"]}
    assert {Path(each).read_bytes() for each in paths} == {PNG}
    assert {str(each) for each in folder.iterdir()} == paths
    assert all(each["b64_json"] for each in answer["data"]), "AOG needs them too"
    assert "response_format" not in stub.requests[0].json


async def test_a_folder_that_cannot_be_written(stub, ask, tmp_path):
    (tmp_path / "file").write_text("")
    stub.answers[IMAGES] = PAINTED
    with pytest.raises(Unavailable, match="set output_dir"):
        await ask(
            TextToImage({"output_dir": str(tmp_path / "file")}), model="painter", prompt="x", response_format="path"
        )


def test_the_default_folder_is_that_of_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("XDG_DOWNLOAD_DIR", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert output_folder({}) == tmp_path
    (tmp_path / "Downloads").mkdir()
    assert output_folder({}) == tmp_path / "Downloads"
    if os.name == "posix":
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.setenv("XDG_DOWNLOAD_DIR", str(tmp_path / "elsewhere"))
        assert output_folder({}) == tmp_path / "elsewhere"
    assert output_folder({"output_dir": str(tmp_path)}) == tmp_path
    assert output_folder({"output_dir": "~/own"}) == tmp_path / "own"


@pytest.mark.parametrize("folder", ["pictures", "~nobody-of-that-name/pictures", 7])
@pytest.mark.parametrize(
    ("service", "body"), [(TextToImage, {"prompt": "x", "response_format": "path"}), (TextToSpeech, {"text": "x"})]
)
async def test_a_folder_that_depends_on_where_we_run_is_refused_before_any_work(stub, ask, service, body, folder):
    with pytest.raises(PreconditionFailed, match="output_dir must be an absolute path"):
        await ask(service({"output_dir": folder}), **body)
    assert not stub.requests


def test_the_setting_of_hosts():
    assert allowed_hosts({"allowed_hosts": None}) == allowed_hosts({}) == frozenset()
    assert allowed_hosts({"allowed_hosts": ["A.org ", ""]}) == allowed_hosts({"allowed_hosts": "a.org,"}) == {"a.org"}
    with pytest.raises(BadRequest, match="allowed_hosts must be a list of hosts, or a text with commas, not 7"):
        allowed_hosts({"allowed_hosts": 7})


# -- speech to text -------------------------------------------------------------------------------------------------


async def test_a_transcript_has_exactly_these_fields(stub, ask):
    segments = [{"start": 0.0, "end": 3.5, "text": " one two "}, {"start": 3.5, "end": 3723.004, "text": "stop"}]
    stub.answers[HEAR] = {"text": " one two stop", "segments": segments, "words": []}
    sound = encoded(seconds=4)
    answer = await ask(SpeechToText({}), model="listener", audio=base64.b64encode(sound).decode(), language="<|zh|>")
    assert answer == {
        "text": "one two stop",
        "segments": [
            {"id": 0, "start": "00:00:00.000", "end": "00:00:03.500", "text": "one two"},
            {"id": 1, "start": "00:00:03.500", "end": "00:00:04.000", "text": "stop"},
        ],
        "model": "listener",
    }
    assert stub.requests[0].form == {
        "language": "zh",
        "timestamp_granularities[]": "segment",
        "model": "listener",
        "file": sound,
    }


async def test_a_transcript_without_segments_gets_one(stub, ask):
    stub.answers[HEAR] = {"text": "hello"}
    audio = base64.b64encode(encoded(seconds=1.5)).decode()
    answer = await ask(SpeechToText({}), model="listener", audio=audio)
    assert answer["segments"] == [{"id": 0, "start": "00:00:00.000", "end": "00:00:01.500", "text": "hello"}]
    for silence in ({"text": ""}, {"text": "", "segments": [{"start": 2.0, "end": 1.5, "text": " "}]}):
        stub.answers[HEAR] = silence
        assert (await ask(SpeechToText({}), model="listener", audio=audio))["segments"] == []


async def test_d2_32_every_way_to_name_the_audio(stub, ask, tmp_path):
    sound = encoded()
    path = tmp_path / "a.wav"
    path.write_bytes(sound)
    stub.answers |= {HEAR: {"text": "x"}, "/a.wav": sound}
    text = base64.b64encode(sound).decode()
    service = SpeechToText({"allowed_hosts": ["127.0.0.1"]})
    for given in (
        {"audio": text},
        {"audio": f"data:audio/wav;base64,{text}"},
        {"audio": str(path)},
        {"audio": path.as_uri()},
        {"audio": f"{stub.endpoint.rest}/a.wav"},
        {"file": text, "file_type": "base64"},
        {"file": str(path), "file_type": "path"},
        {"image": str(path), "file_type": "path"},  # what AOG makes of a url (aog-plugin.md C7)
    ):
        await ask(service, model="listener", **given)
        assert stub.requests[-1].form["file"] == sound, given


@pytest.mark.parametrize(
    "sound",
    [
        encoded("FLAC", rate=44100, channels=2),
        encoded("OGG", "VORBIS", rate=48000),
        encoded("WAV", "ULAW", rate=8000),
        encoded("AIFF", "PCM_16", rate=22050),
        encoded("MP3", "MPEG_LAYER_III", rate=44100),
        encoded("WAV", "PCM_16", channels=4),
    ],
    ids=["flac", "ogg", "ulaw", "aiff", "mp3", "four channels"],
)
async def test_other_sounds_become_16_khz_mono(stub, ask, sound, monkeypatch):
    monkeypatch.setattr("ovms_kernel.audio.AT_ONCE", 5000)  # pieces of a second, as of a recording of hours
    stub.answers[HEAR] = {"text": "x"}
    await ask(SpeechToText({}), model="listener", audio=base64.b64encode(sound).decode())
    with wave.open(io.BytesIO(stub.requests[0].form["file"])) as sent:
        assert (sent.getnchannels(), sent.getframerate(), sent.getsampwidth()) == (1, 16000, 2)
        samples = np.frombuffer(sent.readframes(sent.getnframes()), "<i2") / 32768
    assert len(samples) == pytest.approx(16000, abs=1600)
    loudest = np.abs(np.fft.rfft(samples[2000:14000])).argmax() * 16000 / 12000
    assert loudest == pytest.approx(440, abs=5), "it must be the same tone"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "The field audio must be"),
        ({"audio": ""}, "The field audio must be"),
        ({"audio": base64.b64encode(b"no sound at all").decode()}, "cannot be decoded"),
        ({"audio": base64.b64encode(encoded(seconds=0)).decode()}, "is empty"),
        ({"audio": base64.b64encode(encoded(rate=1, seconds=9)).decode()}, "has 1 samples in a second"),
        ({"audio": base64.b64encode(encoded(rate=2**31 - 1, seconds=1e-6)).decode()}, "to 768000"),
        ({"audio": "/no/such.wav"}, "cannot be read"),
        ({"audio": "data:audio/wav,plain"}, "data URI"),
        ({"audio": "x", "language": "Chinese please"}, "must be a code"),
        ({"audio": "x", "language": 7}, "must be a code"),
        ({"audio": "x", "temperature": "hot"}, "must be a number"),
    ],
)
async def test_a_wrong_request_for_a_transcript(stub, ask, body, sentence):
    with pytest.raises(BadRequest, match=sentence):
        await ask(SpeechToText({}), model="listener", **body)
    assert not stub.requests


async def test_a_long_recording_is_decoded_in_pieces(ask, stub, tmp_path, monkeypatch):
    stub.answers[HEAR] = {"text": "x"}
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros((120 * 48000, 2), "float32"), 48000)
    tracemalloc.start()
    try:
        await ask(SpeechToText({}), model="listener", audio=str(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120 * 48000 * 2 * 4 / 2, "half of what it is when decoded"
    monkeypatch.setattr("ovms_kernel.audio.MAX_BODY", 1_000_000)
    with pytest.raises(BadRequest, match="too long"):
        await ask(SpeechToText({}), model="listener", audio=str(path))


@pytest.mark.parametrize(
    ("text", "code"), [("zh", "zh"), ("<|en|>", "en"), ("zh-CN", "zh"), ("YUE", "yue"), ("auto", ""), ("", "")]
)
def test_languages(text, code):
    assert language_of(text) == code


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
def test_clock(seconds, text):
    assert clock(seconds) == text


# -- text to speech -------------------------------------------------------------------------------------------------


async def test_speech_becomes_a_file_that_any_player_opens(stub, ask, tmp_path):
    stub.answers[SPEAK] = encoded(subtype="FLOAT", rate=24000, seconds=0.5)
    service = TextToSpeech({"output_dir": str(tmp_path)})
    answer = await ask(service, model="speaker", text="hello", voice="af_heart", speed=1.5, language="en-us")
    assert stub.requests[0].json == {
        "input": "hello",
        "voice": "af_heart",
        "speed": 1.5,
        "language": "en-us",
        "model": "speaker",
    }
    assert answer == {"url": str(next(tmp_path.iterdir())), "model": "speaker", "duration": 0.5}
    with wave.open(answer["url"]) as sound:
        assert (sound.getframerate(), sound.getsampwidth(), sound.getnframes()) == (24000, 2, 12000)
        samples = np.frombuffer(sound.readframes(12000), "<i2")
    assert samples.max() == pytest.approx(0.5 * 32767, rel=0.01)


async def test_d2_34_speech_inline_writes_nothing(stub, ask, tmp_path):
    stub.answers[SPEAK] = encoded(subtype="FLOAT")
    service = TextToSpeech({"output_dir": str(tmp_path)})
    answer = await ask(service, model="speaker", input="hello", response_format="b64_json")
    assert stub.requests[0].json == {"input": "hello", "model": "speaker"}
    assert answer.keys() == {"audio", "model", "duration"}
    assert base64.b64decode(answer["audio"])[:4] == b"RIFF"
    assert not list(tmp_path.iterdir())


async def test_a_long_text_is_spoken_sentence_by_sentence(stub, ask, tmp_path):
    stub.answers[SPEAK] = encoded(subtype="FLOAT", seconds=0.5)
    text = 'She said: "Wait!" And he waited, as ever. ' * 10 + "最后他们走了。" * 60 + "x" * 700 + " word" * 100
    answer = await ask(TextToSpeech({"output_dir": str(tmp_path)}), model="speaker", text=text, voice="anna")
    said = [request.json["input"] for request in stub.requests]
    assert "".join(said) == text
    assert max(map(len, said)) <= 300
    assert said[0].endswith("as ever. ")
    assert said[1].endswith("他们走了。")
    assert said[-1].startswith("word")
    assert {request.json["voice"] for request in stub.requests} == {"anna"}
    assert answer["duration"] == 0.5 * len(said)
    with wave.open(answer["url"]) as sound:
        assert sound.getnframes() == 16000 * 0.5 * len(said)


async def test_loud_speech_is_clipped_and_what_is_no_number_is_silent(stub, ask, tmp_path):
    samples = struct.pack("<4f", 3.0, -3.0, float("nan"), 0.0)
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 52, b"WAVE", b"fmt ", 16, 3, 1, 16000, 64000, 4, 32, b"data", 16)
    stub.answers[SPEAK] = head + samples
    answer = await ask(TextToSpeech({"output_dir": str(tmp_path)}), model="speaker", text="x")
    with wave.open(answer["url"]) as sound:
        assert np.frombuffer(sound.readframes(4), "<i2").tolist() == [32767, -32768, 0, 0]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "needs the field input"),
        ({"text": ""}, "the text to speak"),
        ({"text": ["a"]}, "the text to speak"),
        ({"text": "a", "speed": 9}, "between 0.25 and 4"),
        ({"text": "a", "voice": 1}, "must be a text"),
        ({"text": "a", "stream_format": "sse"}, "does not stream"),
    ],
)
async def test_a_wrong_request_for_speech(stub, ask, body, sentence):
    with pytest.raises(BadRequest, match=sentence):
        await ask(TextToSpeech({}), model="speaker", **body)
    assert not stub.requests


async def test_an_answer_that_is_no_sound(stub, ask):
    stub.answers[SPEAK] = b"{}"
    with pytest.raises(EngineFailed, match="not a WAV"):
        await ask(TextToSpeech({}), model="speaker", text="x")
