"""The text-to-speech service: a text in, a WAV file out."""

from __future__ import annotations

import base64
import re
import time
from typing import TYPE_CHECKING, Any

import anyio

from ovms_kernel.api.services import (
    Answer,
    BadRequest,
    ServiceDefinition,
    check,
    encode,
    need,
    output_folder,
    playable_sound,
    present,
    served_model,
    time_left,
    write_output,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_kernel.api.services import Call, Engine


PIECE = 300
"""Characters that are spoken in one go: SpeechT5 takes 600 tokens at most, and others wait for the engine meanwhile."""
ENDS = tuple(
    re.compile(pattern) for pattern in (r"[.!?…]+[\"')\]]*\s+|[。！？]+[”’」）]*|\n+", r"[,;:]\s+|[，、；：]", r"\s+")
)
"""Where a text is cut, the best place first: behind a sentence, a part of one, a word."""


class TextToSpeech:
    """Speaks ``text`` of any length into a file, or into the answer with ``"response_format": "b64_json"``.

    :param section: ``default_model``; ``output_dir`` for the files.
    """

    def __init__(self, section: Mapping[str, Any]) -> None:
        default = "NamoLi/speecht5-tts"
        self.definition = ServiceDefinition(
            name="text-to-speech",
            model_type="text_to_speech",
            endpoint="/v3/audio/speech",
            paths=("/v1/audio/speech",),
            default_model=section.get("default_model", default),
            support_models=(default,),
            extras={
                "aog": {
                    "config_ref": "openvino:text-to-speech",
                    "config_ref_full": "aog:text-to-speech",
                    "timeout": -1,
                }
            },
        )
        self._section = section

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return ``url``, the path of the file, or ``audio``."""
        began = time.monotonic()
        wanted = prepare(present(call))
        inline = wanted.pop("response_format", "") == "b64_json"
        folder = None if inline else output_folder(self._section)
        spoken: list[bytes] = []
        async with served_model(self.definition, call, engine) as model:
            for piece in pieces(wanted["input"]):
                body = encode(wanted | {"model": model, "input": piece})
                answer = await engine.post(self.definition.endpoint, body, timeout=time_left(call, began))
                spoken.append(answer.body)
        sound, seconds = await anyio.to_thread.run_sync(playable_sound, spoken)
        if folder:
            path = await anyio.to_thread.run_sync(write_output, folder, "speech", ".wav", sound)
            said = {"url": str(path)}
        else:
            said = {"audio": base64.b64encode(sound).decode()}
        return Answer(encode(said | {"model": model, "duration": round(seconds, 3)}))


def prepare(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the engine's fields of the caller's."""
    fields = fields.copy()
    if "text" in fields:
        fields["input"] = fields.pop("text")
    need(fields, "input", str, "the text to speak")
    for name in ("voice", "language"):
        check(fields, name, str, "a text")
    if (speed := check(fields, "speed", (int, float), "a number")) is not None and not 0.25 <= speed <= 4:
        raise BadRequest(f"The field speed must be between 0.25 and 4, not {speed}.")
    if fields.pop("stream_format", None):
        raise BadRequest("The engine does not stream speech; leave stream_format out.")
    return fields


def pieces(text: str) -> list[str]:
    """Return a text in pieces that a model can speak."""
    found: list[str] = []
    begin = 0
    while begin + PIECE < len(text):
        ends = ([end.end() for end in pattern.finditer(text, begin, begin + PIECE)] for pattern in ENDS)
        cut = next((each[-1] for each in ends if each), begin + PIECE)
        found.append(text[begin:cut])
        begin = cut
    found.append(text[begin:])
    return [piece for piece in found if piece.strip()] or [text]
