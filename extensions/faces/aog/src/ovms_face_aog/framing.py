"""The exact form in which AOG's converters and clients take answers; :mod:`ovms_face_aog.quirks` applies it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ovms_face_aog.payloads import write
from ovms_kernel.api.faces import EngineFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovms_kernel.api.faces import OvmsError

PLAIN = re.compile(rb"(?:data: \{[^\r\n]*\}\n\n)+")
"""Events as engines write them."""
DONE = b"data: [DONE]\n\n"
CREATED = re.compile(rb'"created":(\d{1,10})(?=[,}])')


@lru_cache(maxsize=16)
def time_text(seconds: float) -> str:
    """Return a time as RFC 3339 text: AOG's templates fail on a number."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def as_aog_reads(value: dict[str, Any]) -> dict[str, Any]:
    """Return an answer or event with ``created`` as text, and the text of a first event empty instead of null."""
    created = value.get("created")
    if isinstance(created, (int, float)) and not isinstance(created, bool):
        value = value | {"created": time_text(created)}
    for choice in value.get("choices") or ():
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if isinstance(delta, dict) and delta.get("content", "") is None:
            choice["delta"] = delta | {"content": ""}
    return value


def _created_as_text(found: re.Match[bytes]) -> bytes:
    return b'"created":"%s"' % time_text(int(found[1])).encode()


def reframe_answer(answer: bytes) -> bytes:
    """Return a whole answer as AOG's templates can convert it; what is not a JSON object is left alone."""
    if answer.startswith(b"{"):
        changed, count = CREATED.subn(_created_as_text, answer, 1)
        if count:
            return changed
    try:
        value = json.loads(answer)
    except ValueError:
        return answer
    if not isinstance(value, dict) or not isinstance(value.get("created"), (int, float)):
        return answer
    return write(as_aog_reads(value))


def with_embeddings(answer: bytes) -> bytes:
    """Return an answer of vectors under AOG's own name for them, which its routes convert from."""
    try:
        value = json.loads(answer)
        vectors = value.pop("data") if value["data"] and "embedding" in value["data"][0] else None
    except (ValueError, TypeError, LookupError):
        return answer
    return answer if vectors is None else write({"embeddings": vectors} | value)


def reframe_events(chunk: bytes) -> Iterator[bytes]:
    """Yield whole events as :func:`reframe_event` does, joined where nothing has to be decoded."""
    plain = chunk.removesuffix(DONE)
    if PLAIN.fullmatch(plain) and b'"error":' not in plain and b'"choices":[]' not in plain:
        # Nothing but bytes to replace; a quote within a text is escaped, so that these are found in no text.
        changed, count = CREATED.subn(_created_as_text, plain)
        if count == plain.count(b"\n\n"):
            yield changed.replace(b'"content":null', b'"content":""')
            return
    for event in chunk.split(b"\n\n"):
        if data := reframe_event(event):
            yield data


def reframe_event(event: bytes) -> bytes:
    """Return one event as exactly ``data: {json}`` and a blank line; empty if AOG must not see it.

    ``[DONE]`` and blank events would end AOG's reading, a usage-only event becomes junk, comments and other fields
    abort the stream.

    :raises EngineFailed: the event is an error.
    """
    payload = b"".join(
        line[5:].strip() for line in event.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data:")
    )
    if not payload or payload == b"[DONE]":
        return b""
    try:
        value = json.loads(payload)
    except ValueError:
        return b""
    if not isinstance(value, dict) or value.get("choices") == []:
        return b""
    if error := value.get("error"):
        # AOG would make an ordinary event of it and lose the text; a code reaches the client.
        text = error.get("message") if isinstance(error, dict) else error
        raise EngineFailed(str(text))
    return b"data: " + write(as_aog_reads(value)) + b"\n\n"


def pull_failed(code: int, message: str) -> bytes:
    """Return a pull's error as data: AOG swallows codes in this stream, and copies the text unescaped."""
    text = message.replace('"', "'").replace("\\", "/").replace("\n", " ")
    return write({"status": "error", "error": text, "code": code})


def session_failed(task: str, error: OvmsError) -> bytes:
    """Return a session's error as an event; a code would make AOG close a channel that it still writes to."""
    kind = "CLIENT_ERROR" if 400 <= error.code < 500 else "MODEL_ERROR" if error.code == 502 else "SERVER_ERROR"
    header = {"task_id": task, "event": "task-failed", "error_code": kind, "error_message": error.message}
    return write({"header": header, "payload": {}})


def is_task_started(data: bytes) -> bool:
    """Tell whether a session's message is the greeting that AOG sends itself."""
    if b"task-started" not in data[:256]:
        return False
    try:
        return bool(json.loads(data)["header"]["event"] == "task-started")
    except (ValueError, KeyError, TypeError):
        return False
