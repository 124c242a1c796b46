"""The text-to-speech service: OpenAI's speech, whole or sentence by sentence."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from ovms_kernel.api.services import (
    Answer,
    BadRequest,
    ServiceDefinition,
    check,
    encode,
    need,
    present,
    served_model,
    spoken_samples,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

    from numpy.typing import NDArray

    from ovms_kernel.api.services import Call, Engine


@dataclass(frozen=True, slots=True)
class Format:
    """How sound is written."""

    content_type: str
    container: str
    """FFmpeg's name of it."""
    codec: str
    rates: tuple[int, ...] = ()
    """Samples in a second that it allows, the one that is taken for any other first; none = it allows any."""


MP3_RATES = (24000, 8000, 11025, 12000, 16000, 22050, 32000, 44100, 48000)
FORMATS = {
    "mp3": Format("audio/mpeg", "mp3", "libmp3lame", MP3_RATES),
    "opus": Format("audio/opus", "ogg", "libopus", (48000,)),
    "aac": Format("audio/aac", "adts", "aac", MP3_RATES),
    "flac": Format("audio/flac", "flac", "flac"),
    "wav": Format("audio/wav", "wav", "pcm_s16le"),
    # 24 kHz, 16 bits, little-endian and mono, by OpenAI's documentation of raw samples.
    "pcm": Format("audio/pcm", "s16le", "pcm_s16le", (24000,)),
}
"""By ``response_format``."""
DEFAULT_FORMAT = "mp3"
VOICES = frozenset(
    {
        *("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"),
        *("marin", "nova", "onyx", "sage", "shimmer", "verse"),
    }
)
"""OpenAI's voices, which its clients must name whatever the model has."""
PIECE = 300
"""Characters that are spoken in one go: SpeechT5 takes 600 tokens at most, and others wait for the engine meanwhile."""
ENDS = tuple(
    re.compile(pattern) for pattern in (r"[.!?…]+[\"')\]]*\s+|[。！？]+[”’」）]*|\n+", r"[,;:]\s+|[，、；：]", r"\s+")
)
"""Where a text is cut, the best place first: behind a sentence, a part of one, a word."""


DEFAULT_MODEL = "NamoLi/speecht5-tts"


class TextToSpeechSettings(msgspec.Struct, frozen=True):
    """What can be set."""

    default_model: str = DEFAULT_MODEL
    """The model of requests that name none."""


class TextToSpeech:
    """Speaks ``input``, a text of any length."""

    settings_type = TextToSpeechSettings

    def __init__(self, settings: TextToSpeechSettings) -> None:
        self.definition = ServiceDefinition(
            name="text-to-speech",
            model_type="text_to_speech",
            endpoint="/v3/audio/speech",
            paths=("/v1/audio/speech",),
            default_model=settings.default_model,
            support_models=(DEFAULT_MODEL,),
            streaming=True,
            probes=('{"input":"One, two, three."}',),
            probe_answers="sound",
            extras={
                "aog": {
                    "config_ref": "openvino:text-to-speech",
                    "config_ref_full": "aog:text-to-speech",
                    "timeout": -1,
                    "streaming": False,
                }
            },
        )

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return the sound in the ``response_format`` that is asked for, MP3 by default."""
        wanted, form = prepare(present(call))
        parts, rate = [], 0
        async with served_model(self.definition, call, engine) as model:
            wanted["model"] = model
            for text in pieces(wanted["input"]):
                samples, rate = await self._speak(wanted, text, engine)
                parts.append(samples)
        body = await anyio.to_thread.run_sync(encode_sound, parts, rate, form)
        return Answer(body, FORMATS[form].content_type, model)

    async def stream(self, call: Call, engine: Engine) -> AsyncGenerator[bytes, None]:
        """Yield the sound as it is spoken, sentence by sentence; with ``"stream_format": "sse"`` as OpenAI's events."""
        fields = present(call)
        wanted, form = prepare(fields)
        events = fields.get("stream_format") == "sse"
        encoder: Encoder | None = None
        async with served_model(self.definition, call, engine) as model:
            wanted["model"] = model
            for text in sentences(wanted["input"]):
                samples, rate = await self._speak(wanted, text, engine)
                encoder = encoder or Encoder(form, rate)
                if data := await anyio.to_thread.run_sync(encoder.write, samples):
                    yield _delta(data) if events else data
        if encoder and (data := encoder.finish()):
            yield _delta(data) if events else data
        if events:
            usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
            yield b"data: " + encode({"type": "speech.audio.done", "usage": usage}) + b"\n\n"

    def stream_content_type(self, fields: Mapping[str, Any]) -> str:
        """Return the content type of what ``stream`` yields for these fields."""
        if fields.get("stream_format") == "sse":
            return "text/event-stream"
        form = fields.get("response_format")
        return FORMATS[form if isinstance(form, str) and form in FORMATS else DEFAULT_FORMAT].content_type

    async def _speak(self, wanted: dict[str, Any], text: str, engine: Engine) -> tuple[NDArray[Any], int]:
        """Return the samples of a text; a voice of OpenAI's that the model lacks gives way to the model's own."""
        try:
            answer = await engine.post(self.definition.endpoint, encode(wanted | {"input": text}))
        except BadRequest as error:
            if wanted.get("voice") not in VOICES or "voice" not in error.message.lower():
                raise
            del wanted["voice"]
            return await self._speak(wanted, text, engine)
        return await anyio.to_thread.run_sync(spoken_samples, answer.body)


def prepare(fields: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the engine's fields of the caller's, and the format that is asked for."""
    fields = fields.copy()
    if "text" in fields:
        fields["input"] = fields.pop("text")
    need(fields, "input", str, "the text to speak")
    if not fields["input"].strip():
        raise BadRequest("The field input must be the text to speak, not only blanks.")
    voice = fields.get("voice")
    if isinstance(voice, dict):  # as OpenAI's API names a voice of one's own
        fields["voice"] = voice.get("id")
    for name in ("voice", "language"):
        check(fields, name, str, "a text")
    if (speed := check(fields, "speed", (int, float), "a number")) is not None and not 0.25 <= speed <= 4:
        raise BadRequest(f"The field speed must be between 0.25 and 4, not {speed}.")
    form = fields.pop("response_format", DEFAULT_FORMAT)
    if not isinstance(form, str) or form not in FORMATS:
        raise BadRequest(f"The field response_format must be one of {', '.join(FORMATS)}, not {form!r}.")
    if (stream := fields.pop("stream_format", None)) not in (None, "sse", "audio"):
        raise BadRequest(f"The field stream_format must be sse or audio, not {stream!r}.")
    fields.pop("stream", None)
    return fields, form


# -- where a text is cut -----------------------------------------------------------------------------------------------


def pieces(text: str) -> list[str]:
    """Return a text in as few pieces as a model can speak."""
    found: list[str] = []
    begin = 0
    while begin + PIECE < len(text):
        ends = ([end.end() for end in pattern.finditer(text, begin, begin + PIECE)] for pattern in ENDS)
        cut = next((each[-1] for each in ends if each), begin + PIECE)
        found.append(text[begin:cut])
        begin = cut
    found.append(text[begin:])
    return [piece for piece in found if piece.strip()]


def sentences(text: str) -> Iterator[str]:
    """Yield a text sentence by sentence, so that the first is heard early; a long one comes in pieces."""
    begin = 0
    for end in [*(match.end() for match in ENDS[0].finditer(text)), len(text)]:
        if text[begin:end].strip():
            yield from pieces(text[begin:end])
        begin = end


# -- how sound is written ----------------------------------------------------------------------------------------------


class Sink:
    """Takes what is written and cannot go back, as a network."""

    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, data: bytes) -> int:
        """Take some bytes."""
        self.written += data
        return len(data)

    def take(self) -> bytes:
        """Return what was written since."""
        data, self.written = bytes(self.written), bytearray()
        return data


class Encoder:
    """Writes sound in one of ``FORMATS`` as it arrives.

    :param rate: samples in a second of what is written to it.
    :param file: takes the sound, and its head is written last, with the length; without it the bytes are returned.
    """

    def __init__(self, form: str, rate: int, file: io.BytesIO | None = None) -> None:
        import av

        how = FORMATS[form]
        self._rate = rate
        self._sink = Sink()
        self._container = av.open(file or self._sink, "w", format=how.container)
        to = rate if not how.rates or rate in how.rates else how.rates[0]
        self._stream: Any = self._container.add_stream(how.codec, rate=to, layout="mono")

    def write(self, samples: NDArray[Any]) -> bytes:
        """Encode samples between -1 and 1; return what is ready."""
        import av
        import numpy as np

        if len(samples):
            whole = np.rint(samples * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(whole.reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate = self._rate
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        return self._sink.take()

    def finish(self) -> bytes:
        """Return the end of the sound."""
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        return self._sink.take()


def encode_sound(parts: list[NDArray[Any]], rate: int, form: str) -> bytes:
    """Return all of a sound in one of ``FORMATS``."""
    file = io.BytesIO()
    encoder = Encoder(form, rate, file)
    for samples in parts:
        encoder.write(samples)
    encoder.finish()
    return file.getvalue()


def _delta(data: bytes) -> bytes:
    return b"data: " + encode({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()}) + b"\n\n"
