"""A response of ``responses`` as it grows, and the events that tell of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ovms_embedded.rest.chat import DONE
from ovms_embedded.rest.http import encode
from ovms_embedded.rest.parsers import OutputParser, Parsed
from ovms_embedded.workers import CallFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from ovms_embedded.workers import Call


@dataclass
class Draft:
    """A response object that is not complete yet."""

    model: str
    created: int
    tools: list[Any]
    tool_choice: object
    status: str = "in_progress"
    output: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, int] | None = None
    error: dict[str, str] | None = None

    def response(self) -> dict[str, Any]:
        """Return the response object."""
        answer: dict[str, Any] = {
            "id": f"resp-{self.created}", "object": "response", "created_at": self.created, "error": self.error,
            "model": self.model, "status": self.status, "output": self.output, "parallel_tool_calls": True,
            "store": True, "text": {"format": {"type": "text"}}, "tool_choice": self.tool_choice, "tools": self.tools,
            "truncation": "disabled", "metadata": {},
        }  # fmt: skip
        if self.status != "in_progress":
            answer["completed_at"] = int(time.time())
        if self.status == "incomplete":
            answer["incomplete_details"] = {"reason": "max_tokens"}
        if self.usage:
            answer["usage"] = self.usage
        return answer

    def finish(self, parsed: Parsed, result: dict[str, Any], reason: str) -> None:
        """Complete it."""
        self.status = "incomplete" if reason == "length" else "completed"
        prompt, completion = result["prompt_tokens"], result["completion_tokens"]
        self.usage = {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}
        self.output = []
        if parsed.reasoning:
            self.output.append(reasoning_item(parsed.reasoning))
        self.output += [call_item(each) for each in parsed.tool_calls]
        if parsed.content or not parsed.tool_calls:
            self.output.append(message_item(parsed.content, self.status))


def reasoning_item(text: str) -> dict[str, Any]:
    """Return the item of what the model thought."""
    return {"id": "rs-0", "type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}


def call_item(call: dict[str, Any]) -> dict[str, Any]:
    """Return the item of a tool call."""
    function = call["function"]
    return {
        "id": call["id"], "call_id": call["id"], "type": "function_call", "status": "completed",
        "name": function["name"], "arguments": function["arguments"],
    }  # fmt: skip


def message_item(text: str, status: str) -> dict[str, Any]:
    """Return the item of what the model said."""
    content = [] if status == "in_progress" else [text_part(text)]
    return {"id": "msg-0", "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str) -> dict[str, Any]:
    """Return the part that holds a message's text."""
    return {"type": "output_text", "text": text, "annotations": []}


class Narrator:
    """Turns deltas into events with growing sequence numbers."""

    def __init__(self) -> None:
        self.parsed = Parsed()
        self._number = 0
        self._index = -1
        self._open = ""

    def event(self, kind: str, **fields: Any) -> bytes:  # noqa: ANN401 - parts of an event
        """Return an event."""
        event = {"type": kind, "sequence_number": self._number} | fields
        self._number += 1
        return b"data: " + encode(event) + b"\n\n"

    def delta(self, delta: dict[str, Any]) -> Iterator[bytes]:
        """Return the events of a chat delta."""
        if text := delta.get("reasoning_content"):
            yield from self._begin("reasoning")
            self.parsed.reasoning += text
            yield self._about("response.reasoning_summary_text.delta", "rs-0", summary_index=0, delta=text)
        if text := delta.get("content"):
            yield from self._begin("message")
            self.parsed.content += text
            yield self._about("response.output_text.delta", "msg-0", content_index=0, delta=text)
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                yield from self.close()
                self._index += 1
                self._open = "call"
                function = {"name": call["function"]["name"], "arguments": ""}
                self.parsed.tool_calls.append({"id": call["id"], "type": "function", "function": function})
                item = call_item(self.parsed.tool_calls[-1]) | {"status": "in_progress"}
                yield self.event("response.output_item.added", output_index=self._index, item=item)
            else:
                last = self.parsed.tool_calls[-1]
                last["function"]["arguments"] += call["function"]["arguments"]
                text = call["function"]["arguments"]
                yield self._about("response.function_call_arguments.delta", last["id"], delta=text)

    def _about(self, kind: str, item: str, **fields: Any) -> bytes:  # noqa: ANN401 - as above
        return self.event(kind, item_id=item, output_index=self._index, **fields)

    def _begin(self, kind: str) -> Iterator[bytes]:
        if self._open == kind:
            return
        yield from self.close()
        self._open = kind
        self._index += 1
        item = message_item("", "in_progress") if kind == "message" else reasoning_item("") | {"summary": []}
        yield self.event("response.output_item.added", output_index=self._index, item=item)
        if kind == "message":
            yield self._about("response.content_part.added", "msg-0", content_index=0, part=text_part(""))
        else:
            part = {"type": "summary_text", "text": ""}
            yield self._about("response.reasoning_summary_part.added", "rs-0", summary_index=0, part=part)

    def begin_message(self) -> Iterator[bytes]:
        """Open the message, which is there even if the model says nothing."""
        if not self.parsed.content and not self.parsed.tool_calls:
            yield from self._begin("message")

    def close(self, status: str = "completed") -> Iterator[bytes]:
        """Return the events that end the open item."""
        kind, self._open = self._open, ""
        if kind == "message":
            text = self.parsed.content
            yield self._about("response.output_text.done", "msg-0", content_index=0, text=text)
            yield self._about("response.content_part.done", "msg-0", content_index=0, part=text_part(text))
            item = message_item(text, status)
        elif kind == "reasoning":
            text = self.parsed.reasoning
            part = {"type": "summary_text", "text": text}
            yield self._about("response.reasoning_summary_text.done", "rs-0", summary_index=0, text=text)
            yield self._about("response.reasoning_summary_part.done", "rs-0", summary_index=0, part=part)
            item = reasoning_item(text)
        elif kind == "call":
            call = self.parsed.tool_calls[-1]
            arguments = call["function"]["arguments"]
            yield self._about("response.function_call_arguments.done", call["id"], arguments=arguments)
            item = call_item(call)
        else:
            return
        yield self.event("response.output_item.done", output_index=self._index, item=item)


async def events(call: Call, draft: Draft, parser: OutputParser) -> AsyncGenerator[bytes, None]:
    """Yield the events of a streamed response."""
    narrator = Narrator()
    try:
        started = False
        try:
            async for items in call.batches():
                out = []
                if isinstance(items[0], bool):
                    if items.pop(0):
                        parser.begin_thinking()
                    started = True
                    kinds = ("response.created", "response.in_progress")
                    out += [narrator.event(kind, response=draft.response()) for kind in kinds]
                for delta in parser.feed("".join(items)):
                    out += narrator.delta(delta)
                if out:
                    yield b"".join(out)
            result = await call.result()
        except CallFailed as error:
            if not started:
                raise
            draft.status = "failed"
            draft.error = {"code": "server_error", "message": str(error)}
            yield narrator.event("response.failed", response=draft.response()) + DONE
            return
        out = [event for delta in parser.end() for event in narrator.delta(delta)]
        out += narrator.begin_message()
        draft.finish(narrator.parsed, result, result["finish_reason"])
        out += narrator.close(draft.status)
        yield b"".join([*out, narrator.event(f"response.{draft.status}", response=draft.response()), DONE])
    finally:
        call.close()
