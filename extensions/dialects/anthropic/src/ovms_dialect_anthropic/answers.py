"""Chat completions as answers and events of Anthropic's Messages API. Pure, but for the ids that it makes."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Fields = dict[str, Any]

REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
"""Why an answer ends, by OpenAI's word for it."""
ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_of(status: int, message: str) -> Fields:
    """Return the body of an error."""
    kind = ERRORS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def from_chat(answer: Mapping[str, Any], *, thoughts: bool, stops: Sequence[str] = ()) -> Fields:
    """Translate a chat completion.

    :param thoughts: the client wants to see what the model thought.
    :param stops: texts that end an answer; the one that did stands in it.
    """
    choice = answer["choices"][0]
    message = choice["message"]
    content: list[Fields] = []
    if thoughts and message.get("reasoning_content"):
        content.append({"type": "thinking", "thinking": message["reasoning_content"], "signature": ""})
    text, stop = cut(message.get("content") or "", stops)
    if text:
        content.append({"type": "text", "text": text})
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        given = _object(function.get("arguments"))
        content.append(
            {"type": "tool_use", "id": call.get("id") or _id("toolu"), "name": function.get("name"), "input": given}
        )
    return envelope(str(answer.get("model") or "")) | {
        "content": content,
        **ending(REASONS.get(choice.get("finish_reason"), "end_turn"), stop),
        "usage": usage_of(answer.get("usage")),
    }


def cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Return a text up to the first of the texts that end it, and that one."""
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        return text, None
    at, stop = min(found, key=lambda each: each[0])
    return text[:at], stop


def ending(reason: str, stop: str | None) -> Fields:
    """Return why an answer ended."""
    return {"stop_reason": reason if stop is None else "stop_sequence", "stop_sequence": stop}


def envelope(model: str) -> Fields:
    """Return an answer without content."""
    return {
        "id": _id("msg"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_of(None),
    }


def usage_of(usage: Mapping[str, Any] | None) -> Fields:
    """Translate a count of tokens."""
    usage = usage or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": usage.get("prompt_tokens", 0) - cached,
        "output_tokens": usage.get("completion_tokens", 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
    }


class Events:
    """Turns chunks into events; one block of the content is open at a time.

    :param stops: texts that end an answer; what may be the beginning of one is held back.
    """

    def __init__(self, model: str, *, thoughts: bool, stops: Sequence[str] = ()) -> None:
        self._model = model
        self._thoughts = thoughts
        self._stops = stops
        self._held = ""
        self._stop: str | None = None
        self._begun = False
        self._index = -1
        self._kind = ""
        self._call: int | None = None
        self._reason = "end_turn"
        self._usage: Mapping[str, Any] | None = None

    def chunk(self, chunk: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield the events of one chunk."""
        if not self._begun:
            self._begun = True
            yield event("message_start", message=envelope(str(chunk.get("model") or self._model)))
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if self._thoughts and (thought := delta.get("reasoning_content")):
                yield from self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                yield self._delta(type="thinking_delta", thinking=thought)
            if text := delta.get("content"):
                yield from self._text(text)
            for call in delta.get("tool_calls") or ():
                yield from self._tool_call(call)
            self._reason = REASONS.get(choice.get("finish_reason"), self._reason)

    def end(self) -> Iterator[bytes]:
        """Yield what stands behind everything else."""
        yield from self._release(len(self._held))
        yield from self._close()
        yield event("message_delta", delta=ending(self._reason, self._stop), usage=usage_of(self._usage))
        yield event("message_stop")

    def _text(self, text: str) -> Iterator[bytes]:
        if self._stop is not None:
            return  # the rest of the token that ended the answer
        self._held, self._stop = cut(self._held + text, self._stops)
        kept = 0 if self._stop is not None else max((len(each) - 1 for each in self._stops), default=0)
        yield from self._release(len(self._held) - kept)

    def _release(self, count: int) -> Iterator[bytes]:
        if count > 0:
            yield from self._open("text", {"type": "text", "text": ""})
            yield self._delta(type="text_delta", text=self._held[:count])
            self._held = self._held[count:]

    def _tool_call(self, call: Mapping[str, Any]) -> Iterator[bytes]:
        function = call.get("function") or {}
        index = call.get("index", 0)
        if self._kind != "tool_use" or index != self._call:
            yield from self._release(len(self._held))
            yield from self._close()
            self._call = index
            block: Fields = {
                "type": "tool_use",
                "id": call.get("id") or _id("toolu"),
                "name": function.get("name"),
                "input": {},
            }
            yield from self._open("tool_use", block)
        if arguments := function.get("arguments"):
            yield self._delta(type="input_json_delta", partial_json=arguments)

    def _open(self, kind: str, block: Fields) -> Iterator[bytes]:
        if self._kind == kind:
            return
        yield from self._close()
        self._kind, self._index = kind, self._index + 1
        yield event("content_block_start", index=self._index, content_block=block)

    def _close(self) -> Iterator[bytes]:
        if self._kind:
            yield event("content_block_stop", index=self._index)
            self._kind = ""

    def _delta(self, **delta: Any) -> bytes:  # noqa: ANN401 - fields of the event
        return event("content_block_delta", index=self._index, delta=delta)


def event(kind: str, **fields: Any) -> bytes:  # noqa: ANN401 - fields of the event
    """Return one server-sent event."""
    data = json.dumps({"type": kind, **fields}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()


def _object(text: Any) -> Fields:  # noqa: ANN401 - as the model wrote it
    """Return the arguments of a call; what is no JSON object stands under a name of its own."""
    try:
        value = json.loads(text or "{}")
    except (TypeError, ValueError):
        value = text
    return value if isinstance(value, dict) else {"arguments": value}


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
