"""The events of a streamed response, made of those of a streamed chat completion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_face_http import responses
from ovms_face_http.exchange import encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ovms_face_http.responses import Fields, Translated


class Events:
    """Turns chunks into events, in OpenAI's order; one item of the output is open at a time."""

    def __init__(self, made: Translated) -> None:
        self._made = made
        self._model = str(made.chat.get("model") or "")
        self._number = 0
        self._reason: str | None = None
        self._usage: Mapping[str, Any] | None = None
        self._kind = ""
        self._item = ""
        self._call: Fields = {}
        self._call_index: int | None = None
        self._text: list[str] = []
        self._logprobs: list[Any] = []
        self.output: list[Fields] = []
        """Items that are complete."""

    def begin(self) -> Iterator[bytes]:
        """Yield what stands before everything else."""
        response = responses.envelope(self._made, self._model, "in_progress")
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def chunk(self, chunk: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield the events of one chunk."""
        self._model = chunk.get("model") or self._model
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if thought := delta.get("reasoning_content"):
                yield from self._open("reasoning")
                yield self._add("response.reasoning_text.delta", thought)
            if text := delta.get("content"):
                yield from self._open("message")
                logprobs = (choice.get("logprobs") or {}).get("content") or []
                self._logprobs += logprobs
                yield self._add("response.output_text.delta", text, logprobs=logprobs)
            for call in delta.get("tool_calls") or ():
                yield from self._tool_call(call)
            self._reason = choice.get("finish_reason") or self._reason

    def end(self) -> Iterator[bytes]:
        """Yield what stands behind everything else."""
        if not self._kind and not self.output:
            yield from self._open("message")
        yield from self._close()
        response = self.response()
        yield self._event(f"response.{response['status']}", response=response)

    def fail(self, message: str, code: str) -> bytes:
        """Return the event of an answer that broke off."""
        error = {"code": "server_error", "message": message}
        response = responses.envelope(self._made, self._model, "failed", self.output, error=error)
        return self._event("response.failed", response=response) + self._event(
            "error", code=code, message=message, param=None
        )

    def response(self) -> Fields:
        """Return the whole response."""
        return responses.finished(self._made, self._model, self.output, self._reason, self._usage)

    def _tool_call(self, call: Mapping[str, Any]) -> Iterator[bytes]:
        function = call.get("function") or {}
        index = call.get("index", 0)
        if self._kind != "function_call" or index != self._call_index:
            yield from self._close()
            self._call_index = index
            self._call = {"call": call.get("id") or responses.new("call"), "name": function.get("name") or ""}
            yield from self._open("function_call")
        if arguments := function.get("arguments"):
            self._text.append(arguments)
            yield self._of_item("response.function_call_arguments.delta", delta=arguments)

    def _open(self, kind: str) -> Iterator[bytes]:
        if self._kind == kind:
            return
        yield from self._close()
        self._kind, self._text, self._logprobs = kind, [], []
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        self._item = responses.new(prefix)
        item = self._complete("in_progress")
        yield self._event("response.output_item.added", output_index=len(self.output), item=item)
        if kind == "message":
            yield self._of_item("response.content_part.added", content_index=0, part=responses.text_part(""))

    def _close(self) -> Iterator[bytes]:
        if not self._kind:
            return
        text = "".join(self._text)
        item = self._complete("completed")
        if self._kind == "message":
            part = responses.text_part(text, self._logprobs)
            logprobs = self._logprobs
            yield self._of_item("response.output_text.done", content_index=0, text=text, logprobs=logprobs)
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        elif self._kind == "reasoning":
            yield self._of_item("response.reasoning_text.done", content_index=0, text=text)
        else:
            name = self._call["name"]
            yield self._of_item("response.function_call_arguments.done", name=name, arguments=text)
        yield self._event("response.output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)
        self._kind = ""

    def _complete(self, status: str) -> Fields:
        text = "".join(self._text)
        if self._kind == "message":
            return responses.message_item(text, self._logprobs, self._item, status)
        if self._kind == "reasoning":
            item = responses.reasoning_item(text, self._item)
            return item if status == "completed" else item | {"content": [], "status": status}
        return responses.call_item(self._call["name"], text, self._call["call"], self._item, status)

    def _add(self, kind: str, text: str, **more: Any) -> bytes:  # noqa: ANN401 - fields of the event
        self._text.append(text)
        return self._of_item(kind, content_index=0, delta=text, **more)

    def _of_item(self, kind: str, **fields: Any) -> bytes:  # noqa: ANN401 - fields of the event
        return self._event(kind, output_index=len(self.output), item_id=self._item, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:  # noqa: ANN401 - fields of the event
        number, self._number = self._number, self._number + 1
        data = encode({"type": kind, "sequence_number": number, **fields})
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)
