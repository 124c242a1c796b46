"""Recordings: WAV and MP3 as the models want them, and what the models say as WAV."""

from __future__ import annotations

import io
import math
import os
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from ovms_embedded.worker.pipe import Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATE = 16000
CHANNELS = 2
FORMATS = {"WAV", "WAVEX", "MP3", "MPEG"}
SIZE_LIMIT = 1 << 30
FLOAT_FORMAT = 3
"""WAVE_FORMAT_IEEE_FLOAT."""
SHORTEST = 400
"""Samples; the features of a recording need at least half of that on either side."""
BLOCK = 10.0
MARGIN = 0.25
"""Seconds that are resampled at once, and that are thrown away on either side of that."""


def read(data: bytes) -> NDArray[np.float32]:
    """Return a recording as 16 kHz mono.

    :raises Refused: it is neither WAV nor MP3, or too long.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in FORMATS or file.channels > CHANNELS:
                raise Refused("Received input file is not valid wav nor mp3 audio file")
            limit = int(os.environ.get("OVMS_AUDIO_MAX_FILE_SIZE_BYTES") or SIZE_LIMIT)
            if file.frames * file.channels * 4 > limit:
                raise Refused(f"Audio is larger than the allowed {limit} bytes once it is decoded")
            rate = file.samplerate
            samples = file.read(dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.LibsndfileError, ValueError) as error:
        raise Refused("Received input file is not valid wav nor mp3 audio file") from error
    samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    samples = resample(samples, rate)
    if len(samples) < SHORTEST:
        samples = np.pad(samples, (0, SHORTEST - len(samples)))
    return np.ascontiguousarray(samples, np.float32)


def resample(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Return samples at 16 kHz, by cutting or extending the spectrum of blocks that overlap."""
    if rate == RATE or not len(samples):
        return samples
    common = math.gcd(rate, RATE)
    down, up = rate // common, RATE // common
    units = max(1, round(BLOCK * common))
    margin = max(1, round(MARGIN * common))
    block, edge = units * down, margin * down
    padded = np.pad(samples, (edge, edge + block))
    pieces: list[NDArray[Any]] = []
    for start in range(0, len(samples), block):
        piece = padded[start : start + block + 2 * edge]
        wanted = len(piece) * up // down
        spectrum = np.fft.rfft(piece)
        resized = np.zeros(wanted // 2 + 1, spectrum.dtype)
        kept = min(len(spectrum), len(resized))
        resized[:kept] = spectrum[:kept]
        resampled = np.fft.irfft(resized, wanted) * (wanted / len(piece))
        pieces.append(resampled[margin * up : margin * up + units * up])
    length = -(-len(samples) * up // down)
    return np.concatenate(pieces)[:length].astype(np.float32)


def write(samples: NDArray[np.float32], rate: int) -> bytes:
    """Return samples as a WAV file of 32-bit floats, the same bytes for the same samples.

    By hand, because libsndfile writes the time of day into such files.
    """
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, FLOAT_FORMAT, 1, rate, rate * 4, 4, 32)
    form += struct.pack("<4sII", b"fact", 4, len(samples)) + struct.pack("<4sI", b"data", len(data))
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data
