"""``audio/transcriptions``, ``audio/translations`` and ``audio/speech``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ovms_embedded.rest.errors import Invalid
from ovms_embedded.rest.fields import Fields
from ovms_embedded.rest.http import Reply, Request, Stream, encode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ovms_embedded.servable import Servable
    from ovms_embedded.workers import Call, Worker

LANGUAGE_LENGTH = 3
SPOKEN = {
    "wav": b"audio/wav",
    "mp3": b"audio/mpeg",
    "opus": b"audio/ogg",
    "flac": b"audio/flac",
    "pcm": b"audio/pcm",
}
"""Content types of answers, by ``response_format``."""
GRANULARITIES = ("segment", "word")


async def recognise(request: Request, servable: Servable, worker: Worker) -> Reply | Stream:
    """Answer a request for a transcription or a translation."""
    translate = request.path.endswith("translations")
    file = request.files.get("file")
    if file is None:
        raise Invalid("File parsing fails")
    graph = servable.graph
    words = bool(graph and graph.options["enable_word_timestamps"])
    granularities = [] if translate else _granularities(request.fields, words=words)
    if request.stream:
        if translate:
            raise Invalid("streaming is not supported for translations endpoint")
        if graph is None or not graph.loopback:
            raise Invalid("streaming is not supported by this graph: its node has no LOOPBACK")
        if granularities:
            raise Invalid("timestamp_granularities are not supported in streaming mode")
    payload = {
        "data": file.data,
        "task": "translate" if translate else "transcribe",
        "language": None if translate else _language(request.fields),
        "temperature": _temperature(request.fields),
        "segments": "segment" in granularities,
        "words": "word" in granularities,
        "stream": request.stream,
    }
    call = worker.call("transcribe", payload)
    if request.stream:
        return Stream(_events(call))
    try:
        result = await call.result()
    finally:
        call.close()
    return Reply(encode(result))


def _language(fields: dict[str, Any]) -> str | None:
    language = fields.get("language")
    if language is None:
        return None
    if not isinstance(language, str) or not language or len(language) > LANGUAGE_LENGTH:
        raise Invalid("Invalid language code")
    return language


def _temperature(fields: dict[str, Any]) -> float | None:
    text = fields.get("temperature")
    if text is None:
        return None
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 2:
        raise Invalid("Invalid temperature, valid range is from 0.0 to 2.0")
    return value


def _granularities(fields: dict[str, Any], *, words: bool) -> list[str]:
    given = fields.get("timestamp_granularities[]", [])
    found = given if isinstance(given, list) else [given]
    for each in found:
        if each not in GRANULARITIES:
            raise Invalid("Invalid timestamp_granularities type. Allowed types: segment, word")
        if each == "word" and not words:
            raise Invalid(
                "Word timestamps not supported for this model: enable_word_timestamps is not set in its graph"
            )
    return found


async def _events(call: Call) -> AsyncGenerator[bytes, None]:
    try:
        async for items in call.batches():
            yield _event({"type": "transcript.text.delta", "delta": "".join(items), "logprobs": []})
        result = await call.result()
        yield _event({"type": "transcript.text.done", "text": result["text"], "logprobs": []})
    finally:
        call.close()


def _event(event: dict[str, Any]) -> bytes:
    return b"data: " + encode(event) + b"\n\n"


async def speech(request: Request, servable: Servable, worker: Worker) -> Reply:
    """Answer a request for speech."""
    data = request.fields
    fields = Fields(data)
    text = fields.text("input", required=True)
    if "stream_format" in data:
        raise Invalid("streaming is not supported")
    voice = fields.text("voice")
    language = fields.text("language")
    speed = fields.number("speed")
    options = servable.graph.options if servable.graph else {}
    if speed is not None and not options["speed_min"] <= speed <= options["speed_max"]:
        raise Invalid(f"Requested speed must be between {options['speed_min']} and {options['speed_max']}")
    kind = fields.text("response_format") or "wav"
    if kind not in SPOKEN:
        raise Invalid(f"response_format {kind[:20]!r} is not available; choose {', '.join(SPOKEN)}")
    payload = {"input": text, "voice": voice, "language": language, "speed": speed, "format": kind}
    call = worker.call("speak", payload)
    try:
        spoken = await call.result()
    finally:
        call.close()
    return Reply(spoken or b"", SPOKEN[kind])
