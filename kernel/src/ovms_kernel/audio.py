"""Sounds for the engine and for people, through libsndfile and soxr.

The kernel does not depend on numpy, soundfile or soxr: a service that calls one of these declares them.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovms_kernel.errors import BadRequest, EngineFailed
from ovms_kernel.services import MAX_BODY, check, decode_answer
from ovms_kernel.values import Upload

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
"""Sounds that the engine reads itself (spec/ovms.md E.11); MP3 too, but not every build of it."""


def sound_for_engine(data: bytes) -> tuple[bytes, float]:
    """Return a WAV that the engine reads and its length in seconds; what it reads already is not touched.

    :raises BadRequest: the decoder does not know the format, there is no sound in it, or too much.
    """
    import soundfile

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
        raise BadRequest(
            "The audio cannot be decoded; send WAV, MP3, FLAC or OGG, or raw PCM with a WAV header."
        ) from error
    if not frames:
        raise BadRequest("The audio is empty.")
    return data, frames / sound.samplerate


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


def playable_sound(spoken: Sequence[bytes]) -> tuple[bytes, float]:
    """Return what one voice of the engine spoke piece by piece as a 16-bit PCM WAV that any player opens.

    :return: the WAV, and its length in seconds.
    :raises EngineFailed: a piece is not a WAV.
    """
    import numpy as np
    import soundfile

    try:
        pieces = [soundfile.read(io.BytesIO(piece), dtype="float32") for piece in spoken]
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise EngineFailed("The engine's answer is not a WAV.") from error
    samples, rate = np.nan_to_num(np.concatenate([samples for samples, _ in pieces])), pieces[0][1]
    return wav(samples, rate), len(samples) / rate


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech, in seconds from the beginning of the recording."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Heard:
    """What was said."""

    text: str
    segments: tuple[Segment, ...]


TRANSCRIPTIONS = "/v3/audio/transcriptions"
NOT_PASSED_ON = {"audio", "file", "file_type", "image", "model", "stream", "timestamp_granularities", "response_format"}


def transcription_fields(fields: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Return the form that asks for a transcript with times, from a caller's fields.

    :raises BadRequest: the language or the temperature is none.
    """
    wanted: dict[str, str | list[str]] = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in fields.items()
        if name not in NOT_PASSED_ON and not name.endswith("[]")
    }
    check(fields, "temperature", (int, float), "a number")
    wanted.pop("language", None)
    if language := language_of(check(fields, "language", str, "a code such as zh or en") or ""):
        wanted["language"] = language
    wanted["timestamp_granularities[]"] = ["segment"]
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
    engine: Engine, model: str, sound: bytes, fields: Mapping[str, str | list[str]], *, timeout: float | None = None
) -> Heard:
    """Return what is said in a WAV or MP3.

    :param fields: from ``transcription_fields``.
    """
    answer = await engine.upload(
        TRANSCRIPTIONS, {**fields, "model": model}, {"file": Upload("audio.wav", sound, "audio/wav")}, timeout=timeout
    )
    heard = decode_answer(answer.body)
    text = str(heard.get("text") or "").strip()
    segments = [
        Segment(float(each.get("start") or 0), float(each.get("end") or 0), str(each.get("text") or "").strip())
        for each in heard.get("segments") or ()
        if isinstance(each, dict) and str(each.get("text") or "").strip()  # silence is none
    ]
    if text and not segments:
        segments = [Segment(0, 0, text)]
    return Heard(text, tuple(segments))
