"""OpenAI's answers as Ollama's. Pure functions, but for the clock."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ovms_kernel.api.faces import LocalModel, Progress, ResidentModel

Fields = dict[str, Any]


def line(fields: Mapping[str, Any]) -> bytes:
    """Return one line of an answer in pieces."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def now() -> str:
    """Return the time as Ollama writes it."""
    return stamp(time.time())


def stamp(seconds: float) -> str:
    """Return a moment as Ollama writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


class Pieces:
    """Makes lines of chunks, and the last line, which has the times.

    :param chat: the lines hold messages, as ``/api/chat`` has them, else texts, as ``/api/generate`` has them.
    """

    def __init__(self, model: str, *, chat: bool) -> None:
        self._model = model
        self._chat = chat
        self._began = time.monotonic_ns()
        self._first = 0
        self._calls: dict[int, Fields] = {}
        self._reason = "stop"
        self._usage: Mapping[str, Any] = {}

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        """Return the line of one chunk; empty if there is nothing to say."""
        self._first = self._first or time.monotonic_ns()
        self._usage = chunk.get("usage") or self._usage
        text, thought = "", ""
        tokens: list[Fields] = []
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            text += delta.get("content") or choice.get("text") or ""
            thought += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or ():
                self._collect(call)
            tokens += _tokens(choice)
            self._reason = choice.get("finish_reason") or self._reason
        if not text and not thought:
            return b""
        return line(self._head() | self._said(text, thought) | _logprobs(tokens) | {"done": False})

    def end(self) -> bytes:
        """Return the last lines."""
        calls = [_call(each) for each in self._calls.values()]
        before = b""
        if calls:
            said = {"message": {"role": "assistant", "content": "", "tool_calls": calls}}
            before = line(self._head() | said | {"done": False})
        return before + line(self._head() | self._said("", "") | {"done": True} | self.times(self._reason, self._usage))

    def whole(self, answer: Mapping[str, Any]) -> Fields:
        """Return the answer in one piece."""
        choice = answer["choices"][0]
        message = choice.get("message") or {"content": choice.get("text")}
        said = self._said(message.get("content") or "", message.get("reasoning_content") or "")
        if self._chat and message.get("tool_calls"):
            said["message"]["tool_calls"] = [_call(each) for each in message["tool_calls"]]
        reason = choice.get("finish_reason") or "stop"
        ends = {"done": True} | self.times(reason, answer.get("usage") or {})
        return self._head() | said | _logprobs(_tokens(choice)) | ends

    def times(self, reason: str, usage: Mapping[str, Any]) -> Fields:
        """Return why the answer ended, and its counts; durations are in nanoseconds.

        Of an answer in one piece nothing says when its first token was there, so that both parts count as all of it:
        speeds that clients reckon from them are too low rather than absurd.
        """
        end = time.monotonic_ns()
        return {
            "done_reason": "length" if reason == "length" else "stop",
            "total_duration": end - self._began,
            "load_duration": 0,
            "prompt_eval_count": usage.get("prompt_tokens", 0),
            "prompt_eval_duration": (self._first or end) - self._began,
            "eval_count": usage.get("completion_tokens", 0),
            "eval_duration": end - (self._first or self._began),
        }

    def _head(self) -> Fields:
        return {"model": self._model, "created_at": now()}

    def _said(self, text: str, thought: str) -> Fields:
        thinking = {"thinking": thought} if thought else {}
        if self._chat:
            return {"message": {"role": "assistant", "content": text} | thinking}
        return {"response": text} | thinking

    def _collect(self, call: Mapping[str, Any]) -> None:
        """Put the parts of a call together: Ollama's clients want it whole."""
        function = call.get("function") or {}
        known = self._calls.setdefault(call.get("index", 0), {"function": {"name": "", "arguments": ""}})["function"]
        known["name"] += function.get("name") or ""
        known["arguments"] += function.get("arguments") or ""


def _tokens(choice: Mapping[str, Any]) -> list[Fields]:
    """Return the tokens of a choice with their probabilities; none of a raw text, which has them in another shape."""
    return (choice.get("logprobs") or {}).get("content") or []


def _logprobs(tokens: list[Fields]) -> Fields:
    return {"logprobs": tokens} if tokens else {}


def _call(given: Mapping[str, Any]) -> Fields:
    function = given["function"]
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {"arguments": function.get("arguments")}
    return {"function": {"name": function.get("name"), "arguments": arguments}}


def tag(model: LocalModel) -> Fields:
    """Return a model as ``/api/tags`` lists it."""
    return {
        "name": model.id,
        "model": model.id,
        "modified_at": model.modified.isoformat(),
        "size": model.size,
        "digest": model.digest,
        "details": details(model),
    }


def details(model: LocalModel) -> Fields:
    """Return what is known of a model's kind."""
    return {
        "parent_model": "",
        "format": model.format,
        "family": model.family,
        "families": [model.family] if model.family else [],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization,
    }


def loaded(resident: ResidentModel) -> Fields:
    """Return a model as ``/api/ps`` lists it."""
    model = resident.model
    # Clients read a time there; what is not to be unloaded has one that is far away.
    until = resident.unload_at if resident.unload_at is not None else time.time() + 100 * 365 * 86400
    size = resident.memory or model.size
    return {
        "name": model.id,
        "model": model.id,
        "size": size,
        "size_vram": 0 if resident.device in ("", "CPU") else size,
        "digest": model.digest,
        "details": details(model),
        "expires_at": stamp(until),
    }


def shown(
    model: LocalModel, texts: Mapping[str, str], context_length: int | None, capabilities: Collection[str]
) -> Fields:
    """Return a model as ``/api/show`` describes it."""
    info: Fields = {"general.architecture": model.family, "general.file_type": model.quantization}
    if context_length:
        info[f"{model.family}.context_length"] = context_length
    return {
        "modelfile": f"FROM {model.id}\n",
        "parameters": "",
        "template": texts.get("chat_template.jinja", ""),
        "license": "",
        "details": details(model),
        "model_info": info,
        "capabilities": list(capabilities),
        "modified_at": model.modified.isoformat(),
    }


def progress(report: Progress) -> Fields:
    """Return a report of a pull."""
    # The last line says that it succeeded, once.
    done = report.status == "success"
    said: Fields = {"status": f"complete {report.subject}" if done else f"{report.status} {report.subject}".strip()}
    if report.total:
        said |= {"digest": report.digest or report.subject, "total": report.total, "completed": report.completed}
    return said
