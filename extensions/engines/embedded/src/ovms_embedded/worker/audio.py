"""Recordings as the models want them, and what the models say as a file."""

from __future__ import annotations

import io
import os
import struct
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

from ovms_embedded.worker.pipe import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

RATE = 16000
RATES = range(1000, 768_001)
"""Samples in a second that a recording may have; others would make hours of a second, or a second of hours."""
CHANNELS = 2
FORMATS = {"WAV", "WAVEX", "RF64", "MP3", "MPEG", "FLAC", "OGG"}
CONTAINERS = {b"\x1a\x45\xdf\xa3": "matroska", b"ftyp": "mov"}
"""Formats that FFmpeg reads, WebM and M4A, by their first bytes or those after a length."""
ADTS = 0xFFF0
"""The first bits of AAC without a container; the layer, which follows them, is 0, and never in an MP3."""
UNREADABLE = "The file is not audio that can be read; send WAV, MP3, FLAC, OGG, Opus, WebM or M4A"
SIZE_LIMIT = 1 << 30
AT_ONCE = 1 << 20
"""Frames that are decoded at once."""
WRITTEN = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "flac": ("FLAC", "PCM_16")}
"""Formats and codecs of libsndfile, by their names in OpenAI's API."""
CODED_RATES = (8000, 16000, 24000, 48000)
"""Samples in a second that all of them can have."""
PCM_RATE = 24000
"""OpenAI's, for a client that plays samples without a head."""
FLOAT_FORMAT = 3
"""WAVE_FORMAT_IEEE_FLOAT."""
SHORTEST = 400
"""Samples; the features of a recording need at least half of that on either side."""


def read(data: bytes) -> NDArray[np.float32]:
    """Return a recording as 16 kHz mono.

    :raises Refused: it is no audio, has an absurd rate, or is too long.
    """
    limit = int(os.environ.get("OVMS_AUDIO_MAX_FILE_SIZE_BYTES") or SIZE_LIMIT)
    kind = next((name for mark, name in CONTAINERS.items() if mark in (data[:4], data[4:8])), None)
    if int.from_bytes(data[:2], "big") & 0xFFF6 == ADTS:
        kind = "aac"
    blocks, rate = _decoded_by_ffmpeg(data, kind) if kind else _decoded(with_length(data))
    resampler = soxr.ResampleStream(rate, RATE, 1, dtype="float32")
    pieces: list[NDArray[np.float32]] = []
    size = 0
    try:
        for block in blocks:
            # Four bytes of a sample, of the longer of what was recorded and what the model gets.
            size += 4 * max(block.size, len(block) * RATE // rate)
            if size > limit:
                raise Refused(f"Audio is larger than the allowed {limit} bytes once it is decoded")
            mono = np.nan_to_num(block.mean(axis=1, dtype=np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
            pieces.append(resampler.resample_chunk(mono))
    except (soundfile.LibsndfileError, ValueError, OSError) as error:
        raise Refused(UNREADABLE) from error
    samples = np.concatenate([*pieces, resampler.resample_chunk(np.empty(0, np.float32), last=True)])
    if len(samples) < SHORTEST:
        samples = np.pad(samples, (0, SHORTEST - len(samples)))
    return np.ascontiguousarray(samples, np.float32)


def with_length(data: bytes) -> bytes:
    """Return a WAV that was written to a pipe, whose head says that it has no samples, with its real length."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return data
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        rest = len(data) - at - 8
        if name == b"data":
            follows = int.from_bytes(data[at + 12 : at + 16], "little") + 8
            if size or not rest or follows == rest:  # another chunk stands behind samples that are really none
                return data
            return data[: at + 4] + struct.pack("<I", rest) + data[at + 8 :]
        at += 8 + size + size % 2
    return data


def _check_rate(rate: int) -> None:
    if rate not in RATES:
        raise Refused(f"Audio has {rate} samples in a second; send it with {RATES[0]} to {RATES[-1]}")


def _decoded(data: bytes) -> tuple[Iterator[NDArray[np.float32]], int]:
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except (soundfile.LibsndfileError, ValueError) as error:
        raise Refused(UNREADABLE) from error
    if file.format not in FORMATS or file.channels > CHANNELS:
        raise Refused(UNREADABLE)
    _check_rate(file.samplerate)

    def blocks() -> Iterator[NDArray[np.float32]]:
        with file:
            while len(block := file.read(AT_ONCE, dtype="float32", always_2d=True)):
                yield block

    return blocks(), file.samplerate


def _decoded_by_ffmpeg(data: bytes, container: str) -> tuple[Iterator[NDArray[np.float32]], int]:
    """Decode the first audio stream; the container is named, so that no playlist in the data opens another file."""
    import av

    try:
        file = av.open(io.BytesIO(data), "r", format=container)
        stream = file.streams.audio[0]
        rate = stream.rate
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise Refused(UNREADABLE) from error
    _check_rate(rate)

    def blocks() -> Iterator[NDArray[np.float32]]:
        planar = av.AudioResampler(format="fltp", layout="mono", rate=rate)
        with file:
            for frame in file.decode(stream):
                for piece in planar.resample(frame):
                    yield np.asarray(piece.to_ndarray(), np.float32).T

    return blocks(), rate


def write(samples: NDArray[np.float32], rate: int, kind: str) -> bytes:
    """Return samples as a file.

    :param kind: ``wav``, ``mp3``, ``opus``, ``flac``, or ``pcm`` for 16-bit samples at 24 kHz without a head.
    """
    if kind == "wav":
        return _wave(samples, rate)
    if kind == "pcm" or rate not in CODED_RATES:
        samples, rate = soxr.resample(samples, rate, PCM_RATE), PCM_RATE
    if kind == "pcm":
        return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    form, subtype = WRITTEN[kind]
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), rate, format=form, subtype=subtype)
    return buffer.getvalue()


def _wave(samples: NDArray[np.float32], rate: int) -> bytes:
    """Return a WAV file of 32-bit floats, the same bytes for the same samples.

    By hand, because libsndfile writes the time of day into such files.
    """
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, FLOAT_FORMAT, 1, rate, rate * 4, 4, 32)
    form += struct.pack("<4sII", b"fact", 4, len(samples)) + struct.pack("<4sI", b"data", len(data))
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data
