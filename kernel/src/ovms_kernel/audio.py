"""Sounds for the engine and for people, through libsndfile, soxr and FFmpeg.

The kernel does not depend on numpy, soundfile, soxr or av: a service that calls one of these declares them.
"""

from __future__ import annotations

import io
import json
import re
import struct
import wave
from typing import TYPE_CHECKING, Any

import msgspec

from ovms_kernel.errors import BadRequest, EngineFailed
from ovms_kernel.services import MAX_BODY, check, decode_answer
from ovms_kernel.values import Upload

if TYPE_CHECKING:
    from collections.abc import Mapping

    import soundfile
    from numpy.typing import NDArray

    from ovms_kernel.drivers import Engine

RATE = 16000
"""Samples in a second, as the engine's speech models want them."""
RATES = range(1000, 768_001)
"""Samples in a second that a recording may have; a damaged head with others would make hours of a second."""
AT_ONCE = 1 << 20
"""Samples of a recording that are decoded at once: one of an hour has gigabytes."""
AS_THEY_ARE = {("WAV", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT")}
"""Sounds that the engine reads itself; MP3 too, but not every build of it."""


WEBM = b"\x1aE\xdf\xa3"
UNKNOWN = "The audio cannot be decoded; send WAV, MP3, FLAC, OGG, Opus, WebM or M4A, or raw PCM with a WAV header."


def sound_for_engine(data: bytes) -> tuple[bytes, float]:
    """Return a WAV that the engine reads and its length in seconds; what it reads already is not touched.

    :raises BadRequest: no decoder knows the format, there is no sound in it, or too much.
    """
    import soundfile

    if container := container_of(data):
        return _decoded_by_ffmpeg(data, container)
    data = with_length(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            if sound.samplerate not in RATES:
                raise BadRequest(
                    f"The audio has {sound.samplerate} samples in a second; send it with {RATES[0]} to {RATES[-1]}."
                )
            if (sound.format, sound.subtype) in AS_THEY_ARE and sound.channels <= 2 and sound.frames:
                return data, sound.frames / sound.samplerate
            data, frames = _converted(sound)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadRequest(UNKNOWN) from error
    if not frames:
        raise BadRequest("The audio is empty; send a recording with sound in it.")
    return data, frames / sound.samplerate


def container_of(data: bytes) -> str:
    """Return FFmpeg's name of the container that a recording comes in; empty for those that libsndfile reads.

    FFmpeg is told the name and never guesses: some formats of its list are playlists, which open other files.
    """
    if data.startswith(WEBM):
        return "matroska"
    if data[4:8] == b"ftyp":
        return "mov"
    return "aac" if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0 else ""


def with_length(data: bytes) -> bytes:
    """Return a WAV whose head says how long it is: one that was written to a pipe says 0 or more than there is."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return data
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        rest = len(data) - at - 8
        if name == b"data":
            if 0 < size <= rest or not rest:
                return data
            riff = struct.pack("<I", min(len(data) - 8, 0xFFFFFFFF))
            return data[:4] + riff + data[8 : at + 4] + struct.pack("<I", min(rest, 0xFFFFFFFF)) + data[at + 8 :]
        at += 8 + size + size % 2
    return data


def _decoded_by_ffmpeg(data: bytes, container: str) -> tuple[bytes, float]:
    """Return a recording as a 16-bit PCM WAV at 16 kHz, mono, and its length in seconds."""
    import av

    buffer = io.BytesIO()
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    try:
        with av.open(io.BytesIO(data), "r", format=container) as source, wave.open(buffer, "wb") as out:
            out.setparams((1, 2, RATE, 0, "NONE", ""))
            if not source.streams.audio:
                raise BadRequest("There is no sound in the recording, only pictures; send one with sound.")
            for frame in source.decode(source.streams.audio[0]):
                for part in resampler.resample(frame):
                    out.writeframesraw(part.to_ndarray().tobytes())
                if buffer.tell() > MAX_BODY:
                    raise BadRequest("The audio is too long for one request; send it in parts of some hours.")
            for part in resampler.resample(None):
                out.writeframesraw(part.to_ndarray().tobytes())
            frames = out.tell()
    except (av.FFmpegError, ValueError) as error:
        raise BadRequest(UNKNOWN) from error
    if not frames:
        raise BadRequest("The audio is empty; send a recording with sound in it.")
    return buffer.getvalue(), frames / RATE


def _converted(sound: soundfile.SoundFile) -> tuple[bytes, int]:
    """Return a sound as a 16-bit PCM WAV at 16 kHz, mono, and how many frames it had."""
    import soundfile
    import soxr

    resampler = soxr.ResampleStream(sound.samplerate, RATE, 1, dtype="float32")
    frames, buffer = 0, io.BytesIO()
    with soundfile.SoundFile(buffer, "w", RATE, 1, format="WAV", subtype="PCM_16") as out:
        while len(samples := sound.read(AT_ONCE // sound.channels, dtype="float32", always_2d=True)):
            frames += len(samples)
            out.write(resampler.resample_chunk(samples.mean(axis=1)))
            if buffer.tell() > MAX_BODY:
                raise BadRequest("The audio is too long for one request; send it in parts of some hours.")
        out.write(resampler.resample_chunk(samples[:, 0], last=True))
    return buffer.getvalue(), frames


def wav(samples: NDArray[Any], rate: int) -> bytes:
    """Return a 16-bit PCM WAV of mono samples; floats beyond full scale are clipped, not wrapped."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def spoken_samples(spoken: bytes) -> tuple[NDArray[Any], int]:
    """Return the mono samples of what the engine spoke, between -1 and 1, and how many there are in a second.

    :raises EngineFailed: it is not a WAV.
    """
    import numpy as np
    import soundfile

    try:
        samples, rate = soundfile.read(io.BytesIO(spoken), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise EngineFailed("The engine's answer is not a WAV.") from error
    return np.clip(np.nan_to_num(samples.mean(axis=1)), -1.0, 1.0), rate


class Segment(msgspec.Struct, frozen=True):
    """A stretch of speech, in seconds from the beginning of the recording."""

    start: float
    end: float
    text: str


class Heard(msgspec.Struct, frozen=True):
    """What was said."""

    text: str
    segments: tuple[Segment, ...]
    words: tuple[Segment, ...] = ()
    """Where asked for."""
    language: str = ""
    """Its code, such as ``en``; empty where neither the caller nor the engine says it."""


TRANSCRIPTIONS, TRANSLATIONS = "/v3/audio/transcriptions", "/v3/audio/translations"


def transcription_fields(fields: Mapping[str, Any], *, words: bool = False) -> dict[str, str | list[str]]:
    """Return the form that asks for a transcript with times, from a caller's fields.

    :param words: times of each word are wanted, too.
    :raises BadRequest: the language or the temperature is none.
    """
    wanted: dict[str, str | list[str]] = {}
    temperature = fields.get("temperature")
    if isinstance(temperature, str):  # as in a form
        try:
            temperature = float(temperature)
        except ValueError:
            raise BadRequest(f"The field temperature must be a number, not {temperature!r}.") from None
    check({"temperature": temperature}, "temperature", (int, float), "a number")
    if temperature is not None:
        wanted["temperature"] = json.dumps(temperature)
    if prompt := check(fields, "prompt", str, "a text"):
        wanted["prompt"] = prompt
    if language := language_of(check(fields, "language", str, "a code such as zh or en") or ""):
        wanted["language"] = language
    wanted["timestamp_granularities[]"] = ["segment", "word"] if words else ["segment"]
    return wanted


def language_of(text: str) -> str:
    """Return ``zh`` for ``zh``, ``<|zh|>``, ``ZH`` or ``zh-CN``; empty where the model is to find out.

    :raises BadRequest: it is no code of a language.
    """
    code = re.split("[-_]", text.strip().removeprefix("<|").removesuffix("|>"))[0].lower()
    if code in ("", "auto"):
        return ""
    if not re.fullmatch("[a-z]{2,3}", code):
        raise BadRequest(
            f"The field language must be a code such as zh or en, not {text!r}; leave it out to detect it."
        )
    return code


async def transcribe(
    engine: Engine,
    model: str,
    sound: bytes,
    fields: Mapping[str, str | list[str]],
    *,
    translate: bool = False,
) -> Heard:
    """Return what is said in a WAV or MP3.

    :param fields: from ``transcription_fields``.
    :param translate: into English; the engine then tells no times.
    """
    form = {**fields, "model": model}
    if translate:
        form = {name: value for name, value in form.items() if name not in ("language", "timestamp_granularities[]")}
    path = TRANSLATIONS if translate else TRANSCRIPTIONS
    answer = await engine.upload(path, form, {"file": Upload("audio.wav", sound, "audio/wav")})
    heard = decode_answer(answer.body)
    text = str(heard.get("text") or "").strip()
    segments = _segments(heard.get("segments"), "text")
    if text and not segments:
        segments = (Segment(0, 0, text),)
    language = "en" if translate else str(heard.get("language") or fields.get("language") or "")
    return Heard(text, segments, _segments(heard.get("words"), "word"), language_of(language))


def _segments(found: object, name: str) -> tuple[Segment, ...]:
    return tuple(
        Segment(float(each.get("start") or 0), float(each.get("end") or 0), str(each[name]).strip())
        for each in (found if isinstance(found, list) else ())
        if isinstance(each, dict) and str(each.get(name) or "").strip()  # silence is none
    )
