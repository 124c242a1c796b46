"""A recording in every format that speech is sent in, and what programs read in the formats that speech comes in."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import soundfile

if TYPE_CHECKING:
    from pathlib import Path

FORMATS: dict[str, tuple[str, str, int]] = {
    "mp3": ("mp3", "libmp3lame", 48000),
    "opus": ("ogg", "libopus", 48000),
    "webm": ("webm", "libopus", 48000),
    "m4a": ("ipod", "aac", 48000),
    "mp4": ("mp4", "aac", 44100),
    "aac": ("adts", "aac", 44100),
}
"""FFmpeg's container and codec, and the samples in a second, by the usual ending of a file."""
BITS = 128_000
"""Bits in a second, for the tiny model hears other words where much is left out."""
PCM: dict[str, tuple[str, str]] = {
    "wav": ("WAV", "PCM_16"),
    "24.wav": ("WAV", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
}
"""The same for libsndfile."""
STREAMED: dict[str, int] = {"0.wav": 0, "endless.wav": 0xFFFFFFFF}
"""What WAVs say about their length that were written to a pipe."""
EVERY = (*PCM, *STREAMED, *FORMATS)


def recorded(path: Path, form: str, **options: str) -> bytes:
    """Return a WAV file's sound in one of ``EVERY``.

    :param options: of FFmpeg's muxer.
    """
    if form in STREAMED:
        data, length = path.read_bytes(), STREAMED[form].to_bytes(4, "little")
        at = data.index(b"data") + 4
        return data[:4] + length + data[8:at] + length + data[at + 4 :]
    buffer = io.BytesIO()
    if form in PCM:
        samples, rate = soundfile.read(path, dtype="float32")
        soundfile.write(buffer, samples, rate, format=PCM[form][0], subtype=PCM[form][1])
        return buffer.getvalue()
    container, codec, rate = FORMATS[form]
    with av.open(str(path)) as source, av.open(buffer, "w", format=container, options=options) as out:
        stream: Any = out.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = BITS
        resampler = av.AudioResampler(stream.format.name, "mono", rate, stream.codec_context.frame_size or 1024)
        for frame in [*source.decode(audio=0), None]:
            for piece in resampler.resample(frame):
                out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return buffer.getvalue()


SPOKEN = {"mp3": "mp3float", "opus": "opus", "aac": "aac", "flac": "flac", "wav": "pcm_s16le", "pcm": "pcm_s16le"}
"""FFmpeg's codec by OpenAI's ``response_format``."""


def decoded(data: bytes, form: str) -> tuple[str, float]:
    """Return the codec of a sound and how many seconds it lasts; raw samples are of 24 kHz."""
    if form == "pcm":
        return "pcm_s16le", len(np.frombuffer(data, "<i2")) / 24000
    with av.open(io.BytesIO(data), mode="r") as file:
        stream = file.streams.audio[0]
        frames = list(file.decode(stream))
        return str(stream.codec_context.codec.name), sum(each.samples for each in frames) / frames[0].sample_rate
