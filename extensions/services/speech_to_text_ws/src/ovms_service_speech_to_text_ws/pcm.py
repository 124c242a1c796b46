"""PCM in frames of any size to blocks of 16 kHz mono samples."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from ovms_kernel.api.services import BadRequest
from ovms_service_speech_to_text_ws.segments import BLOCK, RATE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

RIFF = b"RIFF"
HEAD_LIMIT = 65536
"""Bytes in which a WAV's sound has to begin."""
INTEGERS, FLOATS, NAMED_LATER = 1, 3, 0xFFFE
"""WAVE_FORMAT_PCM, WAVE_FORMAT_IEEE_FLOAT, and WAVE_FORMAT_EXTENSIBLE, whose real kind begins its GUID."""
KINDS = {(INTEGERS, 8), (INTEGERS, 16), (INTEGERS, 24), (INTEGERS, 32), (FLOATS, 32), (FLOATS, 64)}
"""Kinds and bits of samples that a WAV may have."""


class Decoder:
    """Takes s16le PCM, or a WAV, in frames of any size and yields blocks.

    :param rate: samples in a second, if no WAV head says otherwise.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._channels = 1
        self._kind, self._bits = INTEGERS, 16
        self._head: bytearray | None = None
        self._odd = b""
        self._begun = False
        self._rest: NDArray[np.int16] = np.empty(0, np.int16)
        self._resampler: Any = None

    def push(self, data: bytes) -> Iterator[NDArray[np.int16]]:
        """Yield the blocks that are complete with this frame.

        :raises BadRequest: the frame begins a WAV of a kind that is not supported.
        """
        data, self._odd = self._odd + data, b""
        if not self._begun:
            if len(data) < len(RIFF):  # a WAV, perhaps
                self._odd = data
                return
            self._begun = True
        if data.startswith(RIFF):
            self._head = bytearray()
        if self._head is not None:
            self._head += data
            begin = self._read_head(bytes(self._head))
            if begin is None:
                return
            data, self._head = bytes(self._head[begin:]), None
        width = self._bits // 8 * self._channels
        whole = len(data) // width * width
        self._odd = data[whole:]
        samples = as_16_bits(data[:whole], self._kind, self._bits)
        if self._channels > 1:
            samples = samples.reshape(-1, self._channels).mean(axis=1).astype(np.int16)
        yield from self.take(self._to_rate(samples, last=False))

    def finish(self) -> Iterator[NDArray[np.int16]]:
        """Yield what is left, filled up with silence."""
        last = self._to_rate(np.empty(0, np.int16), last=True)
        yield from self.take(last)
        if len(self._rest):
            rest, self._rest = self._rest, np.empty(0, np.int16)
            yield np.concatenate([rest, np.zeros(BLOCK - len(rest), np.int16)])

    def take(self, samples: NDArray[np.int16]) -> Iterator[NDArray[np.int16]]:
        """Yield the blocks that are complete with these samples, which have the right rate."""
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) // BLOCK * BLOCK
        # Copies: a block that is kept must not keep the whole frame, which may have megabytes.
        self._rest = samples[whole:].copy()
        for block in samples[:whole].reshape(-1, BLOCK):
            yield block.copy()

    def _to_rate(self, samples: NDArray[np.int16], *, last: bool) -> NDArray[np.int16]:
        if self._rate == RATE:
            return samples
        if self._resampler is None:
            import soxr

            self._resampler = soxr.ResampleStream(self._rate, RATE, 1, dtype="int16")
        resampled: NDArray[np.int16] = self._resampler.resample_chunk(samples, last=last)
        return resampled

    def _read_head(self, head: bytes) -> int | None:
        """Return where the sound begins in a WAV, or ``None`` as long as that is not known."""
        at = 12
        while len(head) >= at + 8:
            name, size = struct.unpack_from("<4sI", head, at)
            if name == b"data":
                return at + 8
            if name == b"fmt " and len(head) >= at + 8 + size:
                kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head.ljust(at + 24), at + 8)
                if kind == NAMED_LATER and size >= 26:
                    (kind,) = struct.unpack_from("<H", head, at + 32)
                if (kind, bits) not in KINDS or not 0 < channels <= 8:
                    raise BadRequest("Live audio in a WAV must be PCM of 8 to 32 bits or floats, of 1 to 8 channels.")
                self._kind, self._bits = kind, bits
                if rate != self._rate:
                    self._rate, self._resampler = checked_rate(rate), None
                self._channels = channels
            at += 8 + size + size % 2
        if len(head) > HEAD_LIMIT:
            raise BadRequest("The WAV's head is damaged: no sound follows it.")
        return None


def as_16_bits(data: bytes, kind: int, bits: int) -> NDArray[np.int16]:
    """Return the samples of a WAV, of one of ``KINDS``, as 16-bit samples."""
    if (kind, bits) == (INTEGERS, 16):
        return np.frombuffer(data, "<i2")
    if kind == FLOATS:
        values = np.nan_to_num(np.frombuffer(data, f"<f{bits // 8}"))
        samples: NDArray[np.int16] = np.rint(np.clip(values, -1, 1) * 32767).astype(np.int16)
        return samples
    if bits == 8:  # these alone have no sign
        return (np.frombuffer(data, np.uint8).astype(np.int16) - 128) << 8
    # The upper 16 bits of each.
    return np.frombuffer(data, np.uint8).reshape(-1, bits // 8)[:, -2:].copy().view("<i2")[:, 0]


def checked_rate(rate: int) -> int:
    """Return the rate.

    :raises BadRequest: no microphone has it.
    """
    if not 4000 <= rate <= 192_000:
        raise BadRequest(f"The sample_rate must be between 4000 and 192000, not {rate}.")
    return rate
