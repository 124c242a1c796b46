"""Live sound in a recorded format, such as the WebM of a browser's microphone: FFmpeg decodes it as it arrives."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread

from ovms_kernel.api.services import BadRequest
from ovms_service_speech_to_text_ws.pcm import checked_rate
from ovms_service_speech_to_text_ws.segments import RATE

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

HEAD = 12
"""Bytes that tell a format from samples."""
MARKS = {b"OggS": "ogg", b"fLaC": "flac", b"\x1a\x45\xdf\xa3": "matroska", b"ftyp": "mov", b"ID3": "mp3"}
"""FFmpeg's formats by their first bytes, or by those behind a length."""
UNMARKED = {"mp3": "mp3", "aac": "aac"}
"""Formats whose first bytes may be samples as well; the client says that it sends one."""
FORMATS = ("pcm", "wav", "mp3", "flac", "ogg", "opus", "webm", "m4a", "mp4", "aac")
SAMPLES = ("pcm", "wav")
"""Formats that need no decoder."""
WAITING = 4
"""Pieces of decoded sound that wait to be judged."""
SPOOL = 64 << 20
"""Bytes of an MP4 that are kept: its index may stand at its end."""
UNKNOWN = "The audio cannot be decoded; send raw PCM, WAV, MP3, FLAC, OGG, Opus, WebM or M4A."
LONGEST_TYPE = 4096
"""Bytes of the box ``ftyp``, which holds a few names of four letters."""
PROMPT = {"probesize": "32", "analyzeduration": "0"}
"""Options that make FFmpeg decode the first bytes as soon as it has them."""


def container_of(head: bytes, form: str) -> str:
    """Return FFmpeg's name of the format that sound comes in; empty for raw samples and WAV.

    :param head: its first ``HEAD`` bytes.
    :param form: the format that the client named.
    :raises BadRequest: it is not what the client named.
    """
    if head.startswith(b"RIFF"):
        return ""
    marked = next((name for mark, name in MARKS.items() if head.startswith(mark) or head[4:8] == mark), "")
    if not (found := marked or UNMARKED.get(form, "")) and form not in SAMPLES:
        raise BadRequest(UNKNOWN)
    return found


async def decode(
    container: str, head: bytes, rest: MemoryObjectReceiveStream[bytes], out: MemoryObjectSendStream[Any]
) -> None:
    """Decode a recording in a thread while it arrives, until its end.

    :param head: its first bytes.
    :param rest: the others.
    :param out: gets mono samples of 16 bits at ``RATE``, and is closed at the end.
    :raises BadRequest: it cannot be decoded.
    """
    async with out:
        # The stream breaks where a session ends in the middle of its sound.
        with suppress(anyio.BrokenResourceError):
            # A limiter of its own: a session may be longer than others would wait for a thread.
            await anyio.to_thread.run_sync(_decode, container, head, rest, out, limiter=anyio.CapacityLimiter(1))


def _decode(
    container: str, head: bytes, rest: MemoryObjectReceiveStream[bytes], out: MemoryObjectSendStream[Any]
) -> None:
    import av

    file = Arriving(head, rest)
    if container == "mov" and not file.begins_with_index():
        file = Spooled(file.held, rest)
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    try:
        # The format is named: FFmpeg's guesses include playlists, which open other files.
        with av.open(file, "r", format=container, options=PROMPT) as source:
            if not source.streams.audio:
                raise BadRequest("There is no sound in the recording, only pictures; send one with sound.")
            for frame in source.decode(source.streams.audio[0]):
                checked_rate(frame.sample_rate)  # a frame of 1 Hz would grow to gigabytes
                for part in resampler.resample(frame):
                    anyio.from_thread.run(out.send, part.to_ndarray()[0])
            for part in resampler.resample(None):
                anyio.from_thread.run(out.send, part.to_ndarray()[0])
    except (av.FFmpegError, ValueError) as error:
        if file.failure is None:
            raise BadRequest(UNKNOWN) from error
    if file.failure is not None:
        raise file.failure


class Arriving:
    """A file for FFmpeg whose bytes come from the event loop; ``read`` waits for them in FFmpeg's thread."""

    def __init__(self, head: bytes, rest: MemoryObjectReceiveStream[bytes]) -> None:
        self.held = head
        """What has arrived and was not read."""
        self._rest = rest
        self.failure: BaseException | None = None
        """What ended it early, such as a cancel, which must not go through FFmpeg."""

    def read(self, size: int) -> bytes:
        """Return some bytes, at most ``size``; none at the end."""
        if not self.held:
            self.held = self._next()
        data, self.held = self.held[:size], self.held[size:]
        return data

    def begins_with_index(self) -> bool:
        """Tell whether it is an MP4 whose index, the box ``moov``, comes first: it can be read as it arrives."""
        behind = int.from_bytes(self.held[:4], "big")  # the box ``ftyp``
        while len(self.held) < behind + 8 <= LONGEST_TYPE and (data := self._next()):
            self.held += data
        return self.held[behind + 4 : behind + 8] == b"moov"

    def _next(self) -> bytes:
        while self.failure is None:
            try:
                if data := anyio.from_thread.run(self._rest.receive):
                    return data
            except anyio.EndOfStream:
                return b""
            except BaseException as error:  # noqa: BLE001 - FFmpeg would swallow it
                self.failure = error
        return b""


class Spooled(Arriving):
    """The same for an MP4 whose index is at its end, to which FFmpeg goes first."""

    def __init__(self, head: bytes, rest: MemoryObjectReceiveStream[bytes]) -> None:
        super().__init__(b"", rest)
        self._spool = bytearray(head)
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return some bytes from where it is, at most ``size``."""
        while self._at >= len(self._spool):
            if not (data := self._next()):
                return b""
            self._spool += data
            if len(self._spool) > SPOOL:
                self.failure = BadRequest(
                    f"The recording has more than {SPOOL >> 20} MB, which is too much for live M4A; send WebM or PCM."
                )
                return b""
        data = bytes(self._spool[self._at : self._at + size])
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to an offset; where the end is, nobody knows yet."""
        if whence == io.SEEK_END:
            return -1
        self._at = offset if whence == io.SEEK_SET else self._at + offset
        return self._at

    def tell(self) -> int:
        """Return where it is."""
        return self._at
