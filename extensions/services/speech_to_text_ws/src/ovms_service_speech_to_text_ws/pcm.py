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


class Decoder:
    """Takes s16le PCM, or a WAV of it, in frames of any size and yields blocks.

    :param rate: samples in a second, if no WAV head says otherwise.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._channels = 1
        self._head: bytearray | None = None
        self._odd = b""
        self._begun = False
        self._rest: NDArray[np.int16] = np.empty(0, np.int16)
        self._resampler: Any = None

    def push(self, data: bytes) -> Iterator[NDArray[np.int16]]:
        """Yield the blocks that are complete with this frame.

        :raises BadRequest: the frame begins a WAV that is no 16-bit PCM.
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
        width = 2 * self._channels
        whole = len(data) // width * width
        self._odd = data[whole:]
        samples = np.frombuffer(data, "<i2", whole // 2)
        if self._channels > 1:
            samples = samples.reshape(-1, self._channels).mean(axis=1).astype(np.int16)
        yield from self._blocks(self._to_rate(samples, last=False))

    def finish(self) -> Iterator[NDArray[np.int16]]:
        """Yield what is left, filled up with silence."""
        last = self._to_rate(np.empty(0, np.int16), last=True)
        yield from self._blocks(last)
        if len(self._rest):
            rest, self._rest = self._rest, np.empty(0, np.int16)
            yield np.concatenate([rest, np.zeros(BLOCK - len(rest), np.int16)])

    def _blocks(self, samples: NDArray[np.int16]) -> Iterator[NDArray[np.int16]]:
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
            if name == b"fmt " and len(head) >= at + 24:
                kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head, at + 8)
                # 0xFFFE: the true kind stands further on; 16 bits are PCM in practice.
                if kind not in (1, 0xFFFE) or bits != 16 or not 0 < channels <= 8:
                    raise BadRequest("Live audio in a WAV must be 16-bit PCM.")
                if rate != self._rate:
                    self._rate, self._resampler = checked_rate(rate), None
                self._channels = channels
            at += 8 + size + size % 2
        if len(head) > HEAD_LIMIT:
            raise BadRequest("The WAV's head is damaged: no sound follows it.")
        return None


def checked_rate(rate: int) -> int:
    """Return the rate.

    :raises BadRequest: no microphone has it.
    """
    if not 4000 <= rate <= 192_000:
        raise BadRequest(f"The sample_rate must be between 4000 and 192000, not {rate}.")
    return rate
