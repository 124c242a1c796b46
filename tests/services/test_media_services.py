"""text-to-image, speech-to-text and text-to-speech against a stub: conversions, files, hosts and refusals."""

import base64
import io
import json
import os
import struct
import tempfile
import tracemalloc
import wave
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import soundfile

from ovms_kernel.audio import language_of
from ovms_kernel.errors import BadRequest, EngineFailed
from ovms_kernel.media import host_names
from ovms_kernel.testing.contract import ServiceContract, configured
from ovms_kernel.values import Upload
from ovms_service_speech_to_text import SpeechToText, clock, subtitles
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
    answer = await ask(configured(TextToImage), model="painter", **sent)
    assert stub.requests[0].json == sent | {"model": "painter"}
    assert answer["data"] == PAINTED["data"]
    assert answer["model"] == "painter"
    assert isinstance(answer["created"], int)


async def test_the_names_that_users_write(stub, ask):
    stub.answers[IMAGES] = PAINTED
    await ask(
        configured(TextToImage),
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
        ({"prompt": "x", "qualitty": "hd"}, "has no field qualitty; it takes prompt"),
        ({"prompt": "x", "stream": True}, "Images are not streamed"),
        ({"prompt": "x", "background": "transparent"}, "no transparent background"),
        ({"prompt": "x", "output_format": "webp"}, "Images are PNG"),
        ({"prompt": "x", "image": ["a", "b"]}, "one image at a time"),
        ({"prompt": "x", "size": "512"}, "must be like 512x512"),
        ({"prompt": "x", "size": "0x512"}, "must be like 512x512"),
        ({"prompt": "x", "size": "5000x512"}, "at most 4096"),
        ({"prompt": "x", "width": 5000}, "at most 4096"),
        ({"prompt": "x", "size": 512}, "must be a text"),
        ({"prompt": "x", "n": 11}, "At most 10"),
        ({"prompt": "x", "n": 0}, "number from 1 up, not 0"),
        ({"prompt": "x", "n": 1.5}, "whole number"),
        ({"prompt": "x", "seed": -2}, "field seed must be a whole number from -1 up"),
        ({"prompt": "x", "guidance_scale": 10**400}, "guidance_scale holds too large a number"),
        ({"prompt": "x", "n": True}, "whole number"),
        ({"prompt": "x", "guidance_scale": "7"}, "must be a number"),
        ({"prompt": "x", "response_format": "png"}, "b64_json or url"),
        ({"prompt": "x", "image": "!!", "image_type": "base64"}, "neither base64"),
        ({"prompt": "x", "image": str(Path("/no/such.png").absolute())}, "cannot be read"),
        ({"prompt": "x", "image": "pictures/fox.png", "image_type": "path"}, "must be absolute"),
        pytest.param(
            {"prompt": "x", "image": "/dev/zero", "image_type": "path"},
            "not a regular file",
            marks=pytest.mark.needs_posix,  # Windows has no devices among its files
        ),
        ({"prompt": "x", "image": tempfile.gettempdir(), "image_type": "path"}, "not a regular file"),
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
        await ask(configured(TextToImage), model="painter", **body)
    assert not stub.requests


@pytest.mark.needs_posix  # Windows has no pipes among its files
async def test_a_pipe_that_nobody_writes_to_is_refused_at_once(ask, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with anyio.fail_after(5), pytest.raises(BadRequest, match="not a regular file"):
        await ask(configured(TextToImage), model="painter", prompt="x", image=str(tmp_path / "pipe"))


async def test_images_are_changed_from_base64_path_and_url(stub, ask, tmp_path):
    stub.answers |= {EDITS: PAINTED, "/fox.png": PNG}
    (tmp_path / "狐狸.png").write_bytes(PNG)
    host = configured(TextToImage, allowed_hosts="127.0.0.1, other")
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
    host = configured(TextToImage, allowed_hosts=["127.0.0.1"])
    for path, sentence in (("/moved", "answered 302"), ("/none", "answered 404"), ("/large", "leads to more than")):
        with pytest.raises(BadRequest, match=sentence):
            await ask(host, model="painter", prompt="x", image=stub.endpoint.rest + path)


async def test_the_fields_that_openais_clients_send(stub, ask):
    stub.answers[IMAGES] = {"data": PAINTED["data"] * 2}
    answer = await ask(
        configured(TextToImage), model="painter", prompt="a fox", n=2, response_format="url", quality="hd",
        style="vivid", user="x", background="auto", moderation="low", output_format="png", partial_images=0,
    )  # fmt: skip
    assert stub.requests[0].json == {"prompt": "a fox", "n": 2, "model": "painter"}
    url = f"data:image/png;base64,{PAINTED['data'][0]['b64_json']}"
    assert answer["data"] == [{"url": url}] * 2


@pytest.mark.parametrize(("seed", "sent"), [(-1, None), (1 << 40, 0), ((1 << 63) - 1, (1 << 32) - 1), (7.0, 7)])
async def test_seeds_of_other_tools(stub, ask, seed, sent):
    stub.answers[IMAGES] = PAINTED
    await ask(configured(TextToImage), model="painter", prompt="x", seed=seed)
    assert stub.requests[0].json.get("rng_seed") == sent


async def test_an_upload_is_changed_and_its_form_has_numbers(stub, ask):
    stub.answers[EDITS] = PAINTED
    for name in ("image", "image[]"):
        files = {name: Upload("a.png", PNG, "image/png"), "mask": Upload("m.png", PNG)}
        form = {"model": "painter", "prompt": "blue", "n": "2", "strength": "1", "size": "64x64", "seed": "-1"}
        await ask(configured(TextToImage), files=files, **form)
        wanted = {"prompt": "blue", "n": "2", "strength": "1.0", "size": "64x64", "model": "painter"}
        assert stub.requests[-1].form == wanted | {"image": PNG, "mask": PNG}
    for names, more, sentence in (
        (["image", "image[1]"], {}, "one image at a time"),
        (["mask"], {}, "needs the image"),
        (["image"], {"n": "two"}, "field n must be a whole number"),
    ):
        uploads = {name: Upload("a.png", PNG) for name in names}
        with pytest.raises(BadRequest, match=sentence):
            await ask(configured(TextToImage), files=uploads, model="painter", prompt="x", **more)
    assert len(stub.requests) == 2


@pytest.mark.parametrize(
    ("service", "field", "kind"), [(TextToImage, "image", "image_type"), (SpeechToText, "audio", "file_type")]
)
async def test_a_program_elsewhere_names_no_files_of_this_machine(stub, ask, tmp_path, service, field, kind):
    (tmp_path / "a.png").write_bytes(PNG)
    for path in (str(tmp_path / "a.png"), (tmp_path / "a.png").as_uri(), "/no/such.png"):
        for more in ({}, {kind: "path"}):
            with pytest.raises(BadRequest, match=r"upload it|neither base64"):
                await ask(configured(service), local_files=False, prompt="x", **{field: path}, **more)
    assert not stub.requests


def test_the_setting_of_hosts():
    assert host_names(()) == frozenset()
    assert host_names(("A.org ", "")) == {"a.org"}
    with pytest.raises(BadRequest, match="allowed_hosts must be a list, not 7"):
        configured(TextToImage, allowed_hosts=7)


# -- speech to text -------------------------------------------------------------------------------------------------


SEGMENTS = [{"start": 0.0, "end": 3.5, "text": " one two "}, {"start": 3.5, "end": 3723.004, "text": "stop"}]


async def test_what_the_engine_is_asked_for_a_transcript(stub, ask):
    stub.answers[HEAR] = {"text": " one two stop", "segments": SEGMENTS, "words": []}
    sound = encoded(seconds=4)
    audio = base64.b64encode(sound).decode()
    form = {"language": "<|zh|>", "temperature": 0, "prompt": "names", "response_format": "verbose_json", "user": "x"}
    answer = await ask(configured(SpeechToText), model="listener", audio=audio, **form)
    assert [(each["start"], each["end"], each["text"]) for each in answer["segments"]] == [
        (0.0, 3.5, "one two"),
        (3.5, 4.0, "stop"),
    ]
    assert (answer["language"], answer["duration"]) == ("chinese", 4.0)
    assert stub.requests[0].form == {
        "language": "zh",
        "temperature": "0",
        "prompt": "names",
        "timestamp_granularities[]": "segment",
        "model": "listener",
        "file": sound,
    }


async def test_a_transcript_without_segments_gets_one(stub, ask):
    stub.answers[HEAR] = {"text": "hello"}
    audio = base64.b64encode(encoded(seconds=1.5)).decode()
    body = {"model": "listener", "audio": audio, "response_format": "verbose_json"}
    (segment,) = (await ask(configured(SpeechToText), **body))["segments"]
    assert (segment["start"], segment["end"], segment["text"]) == (0.0, 1.5, "hello")
    for silence in ({"text": ""}, {"text": "", "segments": [{"start": 2.0, "end": 1.5, "text": " "}]}):
        stub.answers[HEAR] = silence
        assert (await ask(configured(SpeechToText), **body))["segments"] == []


async def test_every_format_of_a_transcript(stub, engine, call):
    stub.answers[HEAR] = {"text": "one two stop", "segments": SEGMENTS, "language": "en"}
    files = {"file": Upload("a.wav", encoded(seconds=4), "audio/wav")}
    said = {}
    for form in ("json", "text", "srt", "vtt", "verbose_json"):
        answer = await configured(SpeechToText).invoke(
            call(model="listener", files=files, response_format=form), engine
        )
        said[form] = (answer.content_type.partition(";")[0], answer.body.decode())
    times = "00:00:00,000 --> 00:00:03,500\none two\n\n2\n00:00:03,500 --> 00:00:04,000\nstop\n\n"
    assert said["text"] == ("text/plain", "one two stop\n")
    assert said["srt"] == ("application/x-subrip", f"1\n{times}".rstrip("\n") + "\n\n")
    vtt = times.replace(",", ".").replace("\n2\n", "\n").rstrip("\n")
    assert said["vtt"] == ("text/vtt", f"WEBVTT\n\n{vtt}\n\n")
    assert json.loads(said["json"][1])["text"] == json.loads(said["verbose_json"][1])["text"] == "one two stop"


def test_subtitles_keep_their_cues_whole():
    lines = subtitles([(0, 1, "a\n\nb --> c")], vtt=True).splitlines()
    assert lines == ["WEBVTT", "", "00:00:00.000 --> 00:00:01.000", "a b -> c", ""]
    assert subtitles([], vtt=False) == ""


async def test_translations_have_an_endpoint_of_their_own(stub, ask):
    stub.answers["/v3/audio/translations"] = {"text": "hello"}
    audio = base64.b64encode(encoded(seconds=2)).decode()
    body = {"model": "listener", "audio": audio, "language": "zh", "response_format": "verbose_json"}
    answer = await ask(configured(SpeechToText), **body, task="translate")
    assert (answer["text"], answer["language"], answer["segments"][0]["end"]) == ("hello", "english", 2.0)
    assert stub.requests[0].form.keys() == {"model", "file"}


async def test_words_are_asked_for_and_told(stub, ask):
    stub.answers[HEAR] = {"text": "one two", "words": [{"word": " one", "start": 0.1, "end": 0.4}]}
    audio = base64.b64encode(encoded()).decode()
    body = {"model": "listener", "audio": audio, "response_format": "verbose_json"}
    answer = await ask(configured(SpeechToText), **body, **{"timestamp_granularities[]": ["word"]})
    assert stub.requests[0].form["timestamp_granularities[]"] == ["segment", "word"]
    assert answer["words"] == [{"word": "one", "start": 0.1, "end": 0.4}]
    assert "segments" not in answer


async def test_a_transcript_is_streamed_as_openais_events(stub, engine, call):
    segments = [*SEGMENTS, {"start": 4, "end": 5, "text": "好"}, {"start": 5, "end": 6, "text": "的"}]
    stub.answers[HEAR] = {"text": "one two stop好的", "segments": segments}
    sound = base64.b64encode(encoded()).decode()
    events = [each async for each in configured(SpeechToText).stream(call(model="listener", audio=sound), engine)]
    *deltas, done = [json.loads(each.removeprefix(b"data: ")) for each in events]
    assert {each["type"] for each in deltas} == {"transcript.text.delta"}
    assert "".join(each["delta"] for each in deltas) == "one two stop好的"
    assert (done["type"], done["text"]) == ("transcript.text.done", "one two stop好的")


async def test_d2_32_every_way_to_name_the_audio(stub, ask, tmp_path):
    sound = encoded()
    path = tmp_path / "a.wav"
    path.write_bytes(sound)
    stub.answers |= {HEAR: {"text": "x"}, "/a.wav": sound}
    text = base64.b64encode(sound).decode()
    service = configured(SpeechToText, allowed_hosts=["127.0.0.1"])
    for given in (
        {"audio": text},
        {"audio": f"data:audio/wav;base64,{text}"},
        {"audio": str(path)},
        {"audio": path.as_uri()},
        {"audio": f"{stub.endpoint.rest}/a.wav"},
        {"file": text, "file_type": "base64"},
        {"file": str(path), "file_type": "path"},
        {"image": str(path), "file_type": "path"},  # what AOG makes of a url (docs/protocols/aog.md)
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
    await check_that_it_is_the_tone(stub, ask, sound, monkeypatch)


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("webm", "libopus", 48000),
        ("mp4", "aac", 44100),
        ("adts", "aac", 22050),
        ("ogg", "libopus", 48000),
        ("matroska", "pcm_s16le", 8000),
    ],
    ids=["webm", "m4a", "aac", "opus", "mka"],
)
async def test_what_browsers_and_phones_record(stub, ask, container, codec, rate, monkeypatch):
    await check_that_it_is_the_tone(stub, ask, recorded(container, codec, rate), monkeypatch)


def recorded(container, codec, rate):
    """A second of the tone in stereo, as FFmpeg writes it."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="stereo")
        samples = (tone(rate=rate) * 32767).astype("int16")
        frame = av.AudioFrame.from_ndarray(np.repeat(samples, 2).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 100_000])
async def test_a_wav_whose_head_does_not_know_its_length(stub, ask, size):
    stub.answers[HEAR] = {"text": "x"}
    sound = encoded()
    at = sound.index(b"data") + 4
    piped = sound[:at] + struct.pack("<I", size) + sound[at + 4 :]
    await ask(configured(SpeechToText), model="listener", audio=base64.b64encode(piped).decode())
    assert stub.requests[0].form["file"] == sound


async def check_that_it_is_the_tone(stub, ask, sound, monkeypatch):
    monkeypatch.setattr("ovms_kernel.audio.AT_ONCE", 5000)  # pieces of a second, as of a recording of hours
    stub.answers[HEAR] = {"text": "x"}
    await ask(configured(SpeechToText), model="listener", audio=base64.b64encode(sound).decode())
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
        ({"audio": str(Path("/no/such.wav").absolute())}, "cannot be read"),
        ({"audio": "data:audio/wav,plain"}, "data URI"),
        ({"audio": "x", "language": "Chinese please"}, "must be a code"),
        ({"audio": "x", "language": 7}, "must be a code"),
        ({"audio": "x", "temperature": "hot"}, "must be a number"),
        ({"audio": "x", "temperature": True}, "must be a number"),
        ({"audio": "x", "task": "sing"}, "transcribe or translate"),
        ({"audio": "x", "response_format": "docx"}, "one of json, verbose_json, text, srt, vtt"),
        ({"audio": "x", "timestamp_granularities": ["letter"]}, "segment or word"),
        ({"audio": base64.b64encode(b"\x1aE\xdf\xa3" + bytes(99)).decode()}, "cannot be decoded"),
        ({"audio": base64.b64encode(b"\0\0\0\x20ftypM4A " + bytes(99)).decode()}, "cannot be decoded"),
        ({"audio": base64.b64encode(b"#EXTM3U\n/etc/hosts\n").decode()}, "cannot be decoded"),
    ],
)
async def test_a_wrong_request_for_a_transcript(stub, ask, body, sentence):
    with pytest.raises(BadRequest, match=sentence):
        await ask(configured(SpeechToText), model="listener", **body)
    assert not stub.requests


async def test_a_long_recording_is_decoded_in_pieces(ask, stub, tmp_path, monkeypatch):
    stub.answers[HEAR] = {"text": "x"}
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros((120 * 48000, 2), "float32"), 48000)
    tracemalloc.start()
    try:
        await ask(configured(SpeechToText), model="listener", audio=str(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120 * 48000 * 2 * 4 / 2, "half of what it is when decoded"
    monkeypatch.setattr("ovms_kernel.audio.MAX_BODY", 1_000_000)
    with pytest.raises(BadRequest, match="too long"):
        await ask(configured(SpeechToText), model="listener", audio=str(path))


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
    assert clock(seconds, ".") == text


# -- text to speech -------------------------------------------------------------------------------------------------


def heard(data, form):
    """The samples of a sound and how many there are in a second, as a player reads them."""
    import av

    container = {"opus": "ogg", "aac": "aac", "pcm": "s16le"}.get(form, form)
    options = {"sample_rate": "24000", "ch_layout": "mono"} if form == "pcm" else {}
    with av.open(io.BytesIO(data), format=container, options=options) as opened:
        source: Any = opened
        stream = source.streams.audio[0]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=stream.rate)
        frames = [part for frame in source.decode(stream) for part in resampler.resample(frame)]
        return np.concatenate([each.to_ndarray()[0] for each in [*frames, *resampler.resample(None)]]), stream.rate


CONTENT_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


@pytest.mark.parametrize("form", [*CONTENT_TYPES, None])
@pytest.mark.parametrize("rate", [16000, 24000, 23456])
async def test_speech_in_every_format(stub, engine, call, form, rate):
    stub.answers[SPEAK] = encoded(subtype="FLOAT", rate=rate, seconds=0.5)
    body = {"model": "speaker", "input": "One. Two.", "voice": "af_heart", "speed": 1.5, "language": "en-us"}
    service = configured(TextToSpeech)
    answer = await service.invoke(call(response_format=form, **body), engine)
    assert stub.requests[0].json == body
    assert answer.content_type == CONTENT_TYPES[form or "mp3"]
    assert answer.model == "speaker"
    streamed = [each async for each in service.stream(call(response_format=form, **body), engine)]
    assert service.stream_content_type({"response_format": form}) == answer.content_type
    assert [each.json["input"] for each in stub.requests[1:]] == ["One. ", "Two."]
    for data, seconds in ((answer.body, 0.5), (b"".join(streamed), 1)):
        samples, played = heard(data, form or "mp3")
        assert len(samples) / played == pytest.approx(seconds, abs=0.15)
        assert np.abs(samples).max() == pytest.approx(0.5, abs=0.15)
        spectrum = np.abs(np.fft.rfft(samples[: int(played * 0.4)]))
        assert spectrum.argmax() * 2.5 == pytest.approx(440, abs=10), "it must be the same tone"


async def test_a_wav_is_16_bit_pcm_whose_head_knows_its_length(stub, engine, call):
    stub.answers[SPEAK] = encoded(subtype="FLOAT", rate=24000, seconds=0.5)
    answer = await configured(TextToSpeech).invoke(call(model="speaker", text="hello", response_format="wav"), engine)
    with wave.open(io.BytesIO(answer.body)) as sound:
        assert (sound.getframerate(), sound.getsampwidth(), sound.getnframes()) == (24000, 2, 12000)
        samples = np.frombuffer(sound.readframes(12000), "<i2")
    assert samples.max() == pytest.approx(0.5 * 32767, rel=0.01)


async def test_the_first_sentence_is_heard_before_the_second_is_spoken(stub, engine, call):
    go_on = anyio.Event()

    async def speak(request, reply):
        if "Two" in request.json["input"]:
            await go_on.wait()
        await reply.content(encoded(subtype="FLOAT"))

    stub.answers[SPEAK] = speak
    with anyio.fail_after(5):
        body = {"model": "speaker", "input": "One. Two.", "response_format": "pcm"}
        async for _ in configured(TextToSpeech).stream(call(**body), engine):
            go_on.set()
    assert go_on.is_set()


async def test_speech_as_openais_events(stub, engine, call):
    stub.answers[SPEAK] = encoded(subtype="FLOAT", seconds=0.5)
    body = {"model": "speaker", "input": "One. Two.", "stream_format": "sse", "response_format": "wav"}
    service = configured(TextToSpeech)
    assert service.stream_content_type(body) == "text/event-stream"
    events = [json.loads(each.removeprefix(b"data: ")) async for each in service.stream(call(**body), engine)]
    assert [each["type"] for each in events[:-1]] == ["speech.audio.delta"] * (len(events) - 1)
    samples, rate = heard(b"".join(base64.b64decode(each["audio"]) for each in events[:-1]), "wav")
    assert len(samples) / rate == pytest.approx(1)
    assert events[-1]["type"] == "speech.audio.done"
    assert events[-1]["usage"].keys() == {"input_tokens", "output_tokens", "total_tokens"}


async def test_openais_voices_give_way_to_the_models_own_and_others_do_not(stub, engine, call):
    async def speak(request, reply):
        if voice := request.json.get("voice"):
            await reply.json({"error": f"Requested voice: {voice} is not available"}, 400)
        else:
            await reply.content(encoded(subtype="FLOAT"))

    stub.answers[SPEAK] = speak
    for voice in ("alloy", {"id": "verse"}):
        body = {"model": "speaker", "input": "One. " * 100, "voice": voice}
        assert (await configured(TextToSpeech).invoke(call(**body), engine)).body
    said = [each.json.get("voice") for each in stub.requests]
    assert said == ["alloy", None, None, "verse", None, None], "it is asked for once"
    with pytest.raises(BadRequest, match="anna is not available"):
        await configured(TextToSpeech).invoke(call(model="speaker", input="a", voice="anna"), engine)


async def test_a_long_text_is_spoken_in_pieces(stub, engine, call):
    stub.answers[SPEAK] = encoded(subtype="FLOAT", seconds=0.5)
    text = 'She said: "Wait!" And he waited, as ever. ' * 10 + "最后他们走了。" * 60 + "x" * 700 + " word" * 100
    body = {"model": "speaker", "text": text, "voice": "anna", "response_format": "wav"}
    answer = await configured(TextToSpeech).invoke(call(**body), engine)
    said = [request.json["input"] for request in stub.requests]
    assert "".join(said) == text
    assert max(map(len, said)) <= 300
    assert said[0].endswith("as ever. ")
    assert said[1].endswith("他们走了。")
    assert said[-1].startswith("word")
    assert {request.json["voice"] for request in stub.requests} == {"anna"}
    with wave.open(io.BytesIO(answer.body)) as sound:
        assert sound.getnframes() == 16000 * 0.5 * len(said)
    del stub.requests[:]
    async for _ in configured(TextToSpeech).stream(call(**body), engine):
        pass
    said = [request.json["input"] for request in stub.requests]
    assert "".join(said) == text
    assert said[0] == 'She said: "Wait!" '
    assert max(map(len, said)) <= 300


async def test_loud_speech_is_clipped_and_what_is_no_number_is_silent(stub, engine, call):
    samples = struct.pack("<4f", 3.0, -3.0, float("nan"), 0.0)
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 52, b"WAVE", b"fmt ", 16, 3, 1, 16000, 64000, 4, 32, b"data", 16)
    stub.answers[SPEAK] = head + samples
    answer = await configured(TextToSpeech).invoke(call(model="speaker", text="x", response_format="wav"), engine)
    with wave.open(io.BytesIO(answer.body)) as sound:
        assert np.frombuffer(sound.readframes(4), "<i2").tolist() == [32767, -32767, 0, 0]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "needs the field input"),
        ({"text": ""}, "the text to speak"),
        ({"text": " \n"}, "not only blanks"),
        ({"text": ["a"]}, "the text to speak"),
        ({"text": "a", "speed": 9}, "between 0.25 and 4"),
        ({"text": "a", "voice": 1}, "must be a text"),
        ({"text": "a", "stream_format": "json"}, "sse or audio"),
        ({"text": "a", "response_format": "gif"}, "one of mp3, opus, aac, flac, wav, pcm"),
        ({"text": "a", "response_format": 5}, "one of mp3"),
        ({"text": "a", "response_format": ["mp3"]}, "one of mp3"),
    ],
)
async def test_a_wrong_request_for_speech(stub, ask, engine, call, body, sentence):
    with pytest.raises(BadRequest, match=sentence):
        await ask(configured(TextToSpeech), model="speaker", **body)
    with pytest.raises(BadRequest, match=sentence):
        await anext(configured(TextToSpeech).stream(call(model="speaker", **body), engine))
    assert not stub.requests


async def test_an_answer_that_is_no_sound(stub, ask):
    stub.answers[SPEAK] = b"{}"
    with pytest.raises(EngineFailed, match="not a WAV"):
        await ask(configured(TextToSpeech), model="speaker", text="x")
