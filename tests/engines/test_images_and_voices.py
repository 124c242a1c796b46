"""Adapters, fixed sizes and voices: what graphs can say beyond their model."""

from __future__ import annotations

import io
import json
import struct
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import psutil
import pytest
import soundfile

from ovms_embedded.worker.image_options import devices, resolutions
from ovms_embedded.worker.pipe import Refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx

    from tests.engines.conftest import Engine

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
WIDTH = 16
"""Channels of the tiny model's middle block."""


def write_adapter(path: Path, seed: int) -> None:
    """Write random changes to two layers of the tiny model, as safetensors: a header in JSON, then the numbers."""
    random = np.random.default_rng(seed)
    header: dict[str, Any] = {}
    data = b""
    for layer in ("attn1.to_q", "attn2.to_q"):
        for half, shape in (("A", (2, WIDTH)), ("B", (WIDTH, 2))):
            values = (random.standard_normal(shape) * 5).astype(np.float32).tobytes()
            place = [len(data), len(data) + len(values)]
            header[f"{BLOCK}.{layer}.lora_{half}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": place}
            data += values
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def picture(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"][0]["b64_json"])


def test_adapters_are_models_of_their_own(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine()
    for name, seed in (("one", 1), ("two", 2)):
        write_adapter(engine.folder / f"{name}.safetensors", seed)
    extra = 'default_resolution: "64x64" default_num_inference_steps: 2 '
    extra += f'lora_adapters {{ alias: "one" path: "{engine.folder}/one.safetensors" }} '
    extra += f'lora_adapters {{ alias: "two" path: "{engine.folder}/two.safetensors" alpha: 0.5 }} '
    extra += 'composite_lora_adapters { alias: "both" components { adapter_alias: "one" } '
    extra += 'components { adapter_alias: "two" alpha: 0.5 } }'
    engine.entry("base", graph("image_generation", fixtures / "image_generation", extra))
    engine.list("base")
    engine.start().ready()
    engine.wait_for_line("Registered LoRA alias: both -> base")
    assert [each["id"] for each in engine.http.get("/v3/models").json()["data"]] == ["base", "one", "two", "both"]
    assert list(engine.states()) == ["base"]

    def draw(model: str, **fields: Any) -> httpx.Response:
        return engine.post("/v3/images/generations", model=model, prompt="a cat", rng_seed=1, **fields)

    pictures = {name: picture(draw(name)) for name in ("base", "one", "two", "both")}
    assert len(set(pictures.values())) == 4
    assert picture(draw("one", lora_alphas={"one": 0.0})) == pictures["base"]
    assert picture(draw("base", lora_alphas={"one": 1.0, "two": 0.5})) == pictures["both"]
    assert draw("one", lora_alphas={"two": 1.0}).status_code == 400
    assert draw("one", lora_alphas={"one": "1"}).status_code == 400


def test_a_single_resolution_is_compiled_in(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine()
    extra = 'resolution: "64x64" num_images_per_prompt: 1 guidance_scale: 7.5 default_num_inference_steps: 2'
    model = fixtures / "image_generation"
    engine.entry("static", graph("image_generation", model, extra + ' device: "CPU CPU CPU"'))
    engine.list("static")
    engine.start().ready()

    def draw(**fields: Any) -> httpx.Response:
        return engine.post("/v3/images/generations", model="static", prompt="a cat", rng_seed=1, **fields)

    assert picture(draw()) == picture(draw(size="64x64", n=1)) == picture(draw(width=64, height=64))
    for fields in ({"size": "128x128"}, {"n": 2}, {"guidance_scale": 3.5}):
        assert draw(**fields).status_code == 400


def test_sizes_that_a_graph_lists() -> None:
    options = {"max_resolution": "4096x4096", "resolution": "64x64 32x48", "given": ["resolution"]}
    sizes = resolutions(options)
    assert sizes.static is None
    assert sizes.choose([32, 48]) == (32, 48)
    with pytest.raises(Refused):
        sizes.choose([48, 32])
    for wrong in (
        {"resolution": "64x64 64x64"},
        {"resolution": "64"},
        {"resolution": "[64x64]"},
        {"default_resolution": "32x32"},
        {"num_images_per_prompt": 1},
        {"given": ["resolution", "max_resolution"]},
    ):
        with pytest.raises(ValueError, match=r"resolution|size"):
            resolutions(options | wrong)
    with pytest.raises(ValueError, match="2 devices"):
        devices("CPU CPU", sizes)
    with pytest.raises(ValueError, match="NPU"):
        devices("NPU", sizes)


def test_voices_sound_different(make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path) -> None:
    engine = make_engine()
    random = np.random.default_rng(1)
    for name in ("anna", "bob"):
        random.standard_normal((1, 512)).astype(np.float32).tofile(engine.folder / f"{name}.bin")
    (engine.folder / "short.bin").write_bytes(b"1234")
    named = "".join(f'voices {{ name: "{name}" path: "../{name}.bin" }} ' for name in ("anna", "bob"))
    model = fixtures / "text_to_speech"
    engine.entry("speaker", graph("text_to_speech", model, named + "speed_max: 2.0"))
    engine.entry("short", graph("text_to_speech", model, 'voices { name: "a" path: "../short.bin" }'))
    engine.entry("speeds", graph("text_to_speech", model, "speed_min: 2.0 speed_max: 1.0"))
    engine.list("speaker", "short", "speeds")
    engine.start().ready()
    assert [state for state, _ in engine.states().values()] == ["AVAILABLE", "LOADING", "LOADING"]

    def speak(**fields: Any) -> httpx.Response:
        return engine.post("/v3/audio/speech", model="speaker", input="hi", **fields)

    anna, bob, nobody, again = (
        speak(**fields).content for fields in ({"voice": "anna"}, {"voice": "bob"}, {}, {"voice": "anna"})
    )
    assert anna == again
    assert len({anna, bob, nobody}) == 3
    samples, rate = soundfile.read(io.BytesIO(anna))
    assert rate == 16000
    assert len(samples) > 1000
    assert 0.01 < np.abs(samples).max() <= 1.5
    for fields in ({"voice": "carl"}, {"speed": 3.0}, {"stream_format": "sse"}, {"language": 1}):
        assert speak(**fields).status_code == 400


def test_long_texts_take_little_memory_or_are_refused(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine()
    engine.entry("speaker", graph("text_to_speech", fixtures / "text_to_speech"))
    engine.list("speaker")
    engine.start().ready()
    assert engine.post("/v3/audio/speech", model="speaker", input="What a long sentence, " * 4).status_code == 200
    assert engine.process
    (worker,) = psutil.Process(engine.process.pid).children()
    assert worker.memory_info().rss < 7e8, "one shape after the other is kept"
    refused = engine.post("/v3/audio/speech", model="speaker", input="word " * 200)
    assert refused.status_code == 400
    assert refused.json()["error"].endswith("longer than allowed 600")


PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
"""FFmpeg would open what it names, if it were asked what this is."""


@pytest.mark.parametrize(("container", "codec"), [("webm", "libopus"), ("ipod", "aac"), ("mp4", "aac")])
def test_recordings_of_browsers_and_phones_are_understood(
    engine: Engine, fixtures: Path, container: str, codec: str
) -> None:
    samples, rate = soundfile.read(fixtures / "speech_to_text_samples" / "en_one_two_three.wav", dtype="float32")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=48000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.repeat(samples, 48000 // rate)[None], format="fltp", layout="mono")
        sound.sample_rate = 48000
        for frame in av.AudioResampler(stream.format.name, "mono", 48000, 960 if codec == "libopus" else 1024).resample(
            sound
        ):
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    answer = engine.http.post(
        "/v3/audio/transcriptions",
        data={"model": "speech_to_text", "language": "en"},
        files={"file": (f"a.{container}", buffer.getvalue())},
    )
    assert answer.json()["text"].strip() == "one two three stop"


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_recording_that_was_streamed_goes_on_to_its_end(engine: Engine, fixtures: Path, size: int) -> None:
    data = (fixtures / "speech_to_text_samples" / "en_one_two_three.wav").read_bytes()
    at = data.index(b"data") + 4
    streamed = data[:at] + size.to_bytes(4, "little") + data[at + 4 :]
    answer = engine.http.post(
        "/v3/audio/transcriptions",
        data={"model": "speech_to_text", "language": "en"},
        files={"file": ("a.wav", streamed)},
    )
    assert answer.json()["text"].strip() == "one two three stop"


def test_speech_comes_in_the_format_that_is_asked_for(engine: Engine) -> None:
    def speak(**fields: Any) -> httpx.Response:
        return engine.post("/v3/audio/speech", model="text_to_speech", input="hi", **fields)

    plain = speak()
    samples, rate = soundfile.read(io.BytesIO(plain.content))
    assert plain.headers["content-type"] == "audio/wav"
    for kind, (content_type, form) in SPOKEN.items():
        answer = speak(response_format=kind)
        assert answer.headers["content-type"] == content_type
        with soundfile.SoundFile(io.BytesIO(answer.content)) as file:
            assert file.format == form
            assert len(file) / file.samplerate == pytest.approx(len(samples) / rate, abs=0.1)
    raw = speak(response_format="pcm")
    assert raw.headers["content-type"] == "audio/pcm"
    heard = np.frombuffer(raw.content, "<i2")
    assert len(heard) / 24000 == pytest.approx(len(samples) / rate, abs=0.01)
    assert np.abs(heard).max() / 32767 == pytest.approx(min(np.abs(samples).max(), 1), abs=0.1)
    for wrong in ("aac", "au", "x" * 1000, 5):
        refused = speak(response_format=wrong)
        assert refused.status_code == 400
        assert "response_format" in refused.json()["error"]
        assert len(refused.json()["error"]) < 300


SPOKEN = {
    "wav": ("audio/wav", "WAV"),
    "mp3": ("audio/mpeg", "MP3"),
    "opus": ("audio/ogg", "OGG"),
    "flac": ("audio/flac", "FLAC"),
}


def test_recordings_of_other_rates_are_understood(engine: Engine, fixtures: Path) -> None:
    samples, rate = soundfile.read(fixtures / "speech_to_text_samples" / "en_one_two_three.wav", dtype="float32")
    # To 48 kHz by repeating every sample, in stereo; the model must hear the same.
    faster = np.repeat(samples, 3)
    for kind, subtype in (("WAV", "PCM_24"), ("MP3", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS")):
        buffer = io.BytesIO()
        soundfile.write(buffer, np.stack([faster, faster], axis=1), rate * 3, format=kind, subtype=subtype)
        answer = engine.http.post(
            "/v3/audio/transcriptions",
            data={"model": "speech_to_text", "language": "en"},
            files={"file": ("a", buffer.getvalue())},
        )
        assert answer.json()["text"].strip() == "one two three stop", kind
    for data, fields in (
        (b"OggS", {}),
        (b"", {}),
        (b"RIFF", {}),
        (b"....ftypM4A ", {}),
        (PLAYLIST, {}),
        (buffer.getvalue(), {"language": "xx"}),
    ):
        answer = engine.http.post(
            "/v3/audio/transcriptions", data={"model": "speech_to_text"} | fields, files={"file": ("a", data)}
        )
        assert answer.status_code == 400
        assert len(answer.json()["error"]) > 20
