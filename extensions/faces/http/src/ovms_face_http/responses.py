"""OpenAI's Responses API as chat completions: requests one way, answers the other. Pure functions.

https://platform.openai.com/docs/api-reference/responses describes both shapes.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ovms_kernel.api.faces import BadRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Fields = dict[str, Any]

OWN = (
    "input", "instructions", "previous_response_id", "tools", "tool_choice", "text", "max_output_tokens", "metadata",
    "store", "truncation", "include", "reasoning", "background", "user", "prompt", "prompt_cache_key", "service_tier",
    "safety_identifier", "conversation", "max_tool_calls", "stream_options", "client_metadata", "top_logprobs",
    "prompt_cache_retention",
)  # fmt: skip
"""Fields that chat completions do not have, or have in another shape; all others are handed on."""
TEXTS = ("input_text", "output_text", "text")
LOGPROBS = "message.output_text.logprobs"


@dataclass
class Translated:
    """A request as chat completions have it, and what its answer repeats of it."""

    chat: Fields
    echo: Fields
    history: list[Fields]
    """The conversation so far, without the instructions, which hold for one answer only."""
    skipped: list[str] = field(default_factory=list)
    """What the request has and nothing here can do."""
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))


def to_chat(fields: Mapping[str, Any], history: Sequence[Fields]) -> Translated:
    """Translate a request.

    :param history: messages of the answers that ``previous_response_id`` leads to.
    :raises BadRequest: something in it has no meaning here and leaving it out would change the answer.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    for name in ("background", "conversation", "prompt"):
        if fields.get(name):
            raise BadRequest(f"The field {name} is not supported; leave it out.")
    skipped: list[str] = []
    messages = [*history, *_messages(fields.get("input"), skipped)]
    if not messages:
        raise BadRequest("The field input must be a text, or a list of items that is not empty.")
    instructions = fields.get("instructions")
    if not isinstance(instructions, str | None):
        raise BadRequest("The field instructions must be a text.")
    system = [{"role": "system", "content": instructions}] if instructions else []
    chat = {name: value for name, value in fields.items() if name not in OWN}
    chat["messages"] = _one_system(system + messages)
    if "max_output_tokens" in fields:
        chat["max_completion_tokens"] = fields["max_output_tokens"]
    tools = _tools(fields.get("tools", []), skipped)
    if tools:
        chat["tools"] = tools
    if tools and (choice := _tool_choice(fields.get("tool_choice"))) is not None:
        chat["tool_choice"] = choice
    if form := _format(fields.get("text")):
        chat["response_format"] = form
    include = fields.get("include", [])
    if not isinstance(include, list):
        raise BadRequest("The field include must be a list of texts.")
    if LOGPROBS in include:
        chat |= {"logprobs": True} | ({"top_logprobs": fields["top_logprobs"]} if "top_logprobs" in fields else {})
    return Translated(chat, _echo(fields), messages, skipped)


def _messages(given: Any, skipped: list[str]) -> list[Fields]:  # noqa: ANN401 - as the caller sent it
    if isinstance(given, str):
        return [{"role": "user", "content": given}] if given else []
    if not isinstance(given, list):
        raise BadRequest("The field input must be a text, or a list of items.")
    messages: list[Fields] = []
    for number, item in enumerate(given):
        if not isinstance(item, dict):
            raise BadRequest(f"Item {number} of input must be an object.")
        kind = item.get("type", "message")
        if kind == "message":
            role = "system" if item.get("role") == "developer" else item.get("role")
            messages.append({"role": role, "content": _content(item.get("content"), number)})
        elif kind == "function_call":
            _add_call(messages, item)
        elif kind == "function_call_output":
            output = item.get("output")
            text = output if isinstance(output, str) else _content(output, number)
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        elif kind == "item_reference":
            raise BadRequest(f"Item {number} of input refers to another; send that, or use previous_response_id.")
        elif kind != "reasoning":
            skipped.append(f"input item {kind}")
    return messages


def _add_call(messages: list[Fields], item: Fields) -> None:
    """Add a call to the message of the assistant that it belongs to: calls that follow each other are one message."""
    call = {
        "id": item.get("call_id"),
        "type": "function",
        "function": {"name": item.get("name"), "arguments": item.get("arguments") or "{}"},
    }
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1] = messages[-1] | {"tool_calls": [*messages[-1].get("tool_calls", []), call]}


def _content(given: Any, number: int) -> str | list[Fields]:  # noqa: ANN401 - as the caller sent it
    if isinstance(given, str):
        return given
    parts: list[Fields] = []
    for part in given if isinstance(given, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in (*TEXTS, "refusal"):
            text = part.get("refusal" if kind == "refusal" else "text")
            if not isinstance(text, str | None):
                raise BadRequest(f"Item {number} of input has content of type {kind} whose text is none.")
            parts.append({"type": "text", "text": text or ""})
        elif kind == "input_image" and isinstance(part.get("image_url"), str):
            parts.append({"type": "image_url", "image_url": {"url": part["image_url"]}})
        else:
            raise BadRequest(f"Item {number} of input has content of type {kind}; send input_text or input_image.")
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _one_system(messages: list[Fields]) -> list[Fields]:
    """Return the messages with those of the system in one at the beginning, as chat templates want it."""
    system = [each["content"] for each in messages if each["role"] == "system"]
    if not system:
        return messages
    text = "\n\n".join(each for each in system if isinstance(each, str))
    return [{"role": "system", "content": text}, *(each for each in messages if each["role"] != "system")]


def _tools(given: Any, skipped: list[str]) -> list[Fields]:  # noqa: ANN401 - as the caller sent it
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise BadRequest("The field tools must be a list of objects.")
    tools = []
    for each in given:
        if each.get("type") != "function":
            skipped.append(f"tool {each.get('type')}")
            continue
        names = ("name", "description", "parameters", "strict")
        tools.append(
            {"type": "function", "function": {name: each[name] for name in names if each.get(name) is not None}}
        )
    return tools


def _tool_choice(given: Any) -> Any:  # noqa: ANN401 - both APIs take texts and objects
    if isinstance(given, dict):
        if given.get("type") == "function":
            return {"type": "function", "function": {"name": given.get("name")}}
        if given.get("type") != "allowed_tools":
            return None
        tools = [each for each in given.get("tools") or () if isinstance(each, dict) and each.get("type") == "function"]
        named = [{"type": "function", "function": {"name": each.get("name")}} for each in tools]
        return {"type": "allowed_tools", "allowed_tools": {"mode": given.get("mode"), "tools": named}}
    return given


def _format(text: Any) -> Fields | None:  # noqa: ANN401 - as the caller sent it
    form = text.get("format") if isinstance(text, dict) else None
    if not isinstance(form, dict) or form.get("type") in (None, "text"):
        return None
    if form["type"] == "json_schema":
        names = ("name", "description", "schema", "strict")
        return {
            "type": "json_schema",
            "json_schema": {name: form[name] for name in names if form.get(name) is not None},
        }
    return {"type": form["type"]}


def _echo(fields: Fields) -> Fields:
    reasoning = fields.get("reasoning")
    text = fields.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    return {
        "instructions": fields.get("instructions"),
        "max_output_tokens": fields.get("max_output_tokens"),
        "metadata": fields.get("metadata", {}),
        "parallel_tool_calls": fields.get("parallel_tool_calls", True),
        "previous_response_id": fields.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None} | (reasoning if isinstance(reasoning, dict) else {}),
        "store": fields.get("store", True),
        "temperature": fields.get("temperature", 1.0),
        "text": {"format": form or {"type": "text"}},
        "tool_choice": fields.get("tool_choice", "auto"),
        "tools": [each for each in fields.get("tools", []) if each.get("type") == "function"],
        "top_p": fields.get("top_p", 1.0),
        "truncation": fields.get("truncation", "disabled"),
        "user": fields.get("user"),
    }


# -- the answer ----------------------------------------------------------------------------------------------------


def envelope(made: Translated, model: str, status: str, output: Sequence[Fields] = (), **more: Any) -> Fields:  # noqa: ANN401 - fields of the answer
    """Return the response object."""
    return {
        "id": made.id,
        "object": "response",
        "created_at": made.created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": list(output),
        "usage": None,
        **made.echo,
        **more,
    }


def from_chat(answer: Mapping[str, Any], made: Translated) -> Fields:
    """Translate a chat completion."""
    choice = answer["choices"][0]
    message = choice["message"]
    output = []
    if thought := message.get("reasoning_content"):
        output.append(reasoning_item(thought))
    if (text := message.get("content")) or not message.get("tool_calls"):
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        output.append(message_item(text or "", logprobs))
    output += [
        call_item(each["function"]["name"], each["function"]["arguments"], each.get("id"))
        for each in message.get("tool_calls") or ()
    ]
    return finished(made, answer.get("model", ""), output, choice.get("finish_reason"), answer.get("usage"))


def finished(
    made: Translated, model: str, output: Sequence[Fields], reason: str | None, usage: Mapping[str, Any] | None
) -> Fields:
    """Return the response object of an answer that has ended."""
    if reason == "length":
        more: Fields = {"incomplete_details": {"reason": "max_output_tokens"}}
        output = [*output[:-1], output[-1] | {"status": "incomplete"}] if output else output
        return envelope(made, model, "incomplete", output, usage=usage_of(usage), **more)
    return envelope(made, model, "completed", output, usage=usage_of(usage), completed_at=int(time.time()))


def reasoning_item(text: str, item: str = "") -> Fields:
    """Return the item of what the model thought."""
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": item or new("rs"), "type": "reasoning", "summary": [], "content": content, "status": "completed"}


def message_item(text: str, logprobs: Sequence[Any] = (), item: str = "", status: str = "completed") -> Fields:
    """Return the item of what the model said."""
    content = [] if status == "in_progress" else [text_part(text, logprobs)]
    return {"id": item or new("msg"), "type": "message", "status": status, "role": "assistant", "content": content}


def text_part(text: str, logprobs: Sequence[Any] = ()) -> Fields:
    """Return the part of an item that holds text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def call_item(name: str, arguments: str, call: str | None, item: str = "", status: str = "completed") -> Fields:
    """Return the item of a function that the model calls."""
    return {
        "id": item or new("fc"),
        "type": "function_call",
        "status": status,
        "call_id": call or new("call"),
        "name": name,
        "arguments": arguments,
    }


def usage_of(usage: Mapping[str, Any] | None) -> Fields | None:
    """Translate a count of tokens."""
    if not usage:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": usage.get("prompt_tokens", 0),
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage.get("total_tokens", 0),
    }


def said(output: Sequence[Fields]) -> list[Fields]:
    """Return the answer as messages of a conversation that goes on."""
    messages: list[Fields] = []
    for item in output:
        if item["type"] == "message":
            messages.append({"role": "assistant", "content": "".join(part["text"] for part in item["content"])})
        elif item["type"] == "function_call":
            _add_call(messages, item)
    return messages


def new(prefix: str) -> str:
    """Return a new id."""
    return f"{prefix}_{uuid.uuid4().hex}"
