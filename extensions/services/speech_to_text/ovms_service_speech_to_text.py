"""The speech-to-text service: a recording in, its text with times out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import anyio

from ovms_kernel.api.services import (
    Answer,
    ServiceDefinition,
    allowed_hosts,
    encode,
    present,
    read_media,
    served_model,
    sound_for_engine,
    time_left,
    transcribe,
    transcription_fields,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_kernel.api.services import Call, Engine


class SpeechToText:
    """Writes down what is said in ``audio``.

    :param section: ``default_model``; ``allowed_hosts`` that audio may be fetched from.
    """

    def __init__(self, section: Mapping[str, Any]) -> None:
        default = "OpenVINO/whisper-base-int8-ov"
        self.definition = ServiceDefinition(
            name="speech-to-text",
            model_type="speech_to_text",
            endpoint="/v3/audio/transcriptions",
            paths=("/v1/audio/transcriptions", "/v1/audio/translations"),
            default_model=section.get("default_model", default),
            support_models=(default, "NamoLi/whisper-large-v3-ov"),
            extras={
                "aog": {
                    "config_ref": "openvino:speech-to-text",
                    "config_ref_full": "aog:speech-to-text",
                    "timeout": -1,
                }
            },
        )
        self._hosts = allowed_hosts(section)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return ``text`` and ``segments``."""
        began = time.monotonic()
        fields = present(call)
        wanted = transcription_fields(fields)
        # AOG puts the path of a file that it fetched itself into `image` (aog-plugin.md C7).
        name = next((name for name in ("audio", "file", "image") if name in fields), "audio")
        data = await read_media(name, fields.get(name), source=fields.get("file_type"), hosts=self._hosts)
        sound, seconds = await anyio.to_thread.run_sync(sound_for_engine, data)
        async with served_model(self.definition, call, engine) as model:
            heard = await transcribe(engine, model, sound, wanted, timeout=time_left(call, began))
        segments = [
            {
                "id": number,
                "start": clock(min(each.start, seconds)),
                "end": clock(min(each.end or seconds, seconds)),
                "text": each.text,
            }
            for number, each in enumerate(heard.segments)
        ]
        return Answer(encode({"text": heard.text, "segments": segments, "model": model}))


def clock(seconds: float) -> str:
    """Return a time as ``00:00:03.500``."""
    whole = round(max(seconds, 0) * 1000)
    return f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1000 % 60:02}.{whole % 1000:03}"
