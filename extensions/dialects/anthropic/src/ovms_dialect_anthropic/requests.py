"""Requests of Anthropic's Messages API as chat completions. Pure functions.

https://docs.anthropic.com/en/api/messages describes the one, OpenAI's reference the other.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ovms_kernel.api.faces import BadRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

Fields = dict[str, Any]

SAME = ("model", "temperature", "top_p", "top_k")
"""Fields that both APIs have."""


def to_chat(fields: Mapping[str, Any], *, count: bool = False) -> Fields:
    """Translate a request.

    :param count: it is only to be counted, so that it need not say how long the answer may be.
    :raises BadRequest: something in it is missing, or has no meaning here.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    chat = {name: fields[name] for name in SAME if name in fields}
    chat["max_tokens"] = 1 if count else _positive(fields.get("max_tokens"))
    chat["messages"] = _system(fields.get("system")) + _messages(fields.get("messages"))
    if stops := fields.get("stop_sequences"):
        # So that the answer shows which of them ended it; `answers` takes it away.
        chat |= {"stop": stops, "include_stop_str_in_output": True}
    if tools := _tools(fields.get("tools", [])):
        chat["tools"] = tools
        chat |= _tool_choice(fields.get("tool_choice"))
    if schema := _schema(fields):
        chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    if (thinks := thinking(fields)) is not None:
        chat["chat_template_kwargs"] = {"enable_thinking": thinks}
    return chat


def thinking(fields: Mapping[str, Any]) -> bool | None:
    """Return whether the model is to think before it answers; ``None`` leaves that to the model."""
    said = fields.get("thinking")
    kind = said.get("type") if isinstance(said, dict) else None
    return {"enabled": True, "disabled": False}.get(str(kind)) if kind else None


def stops_of(fields: Mapping[str, Any]) -> list[str]:
    """Return the texts that end an answer."""
    given = fields.get("stop_sequences")
    return [each for each in given if isinstance(each, str) and each] if isinstance(given, list) else []


def _positive(value: Any) -> int:  # noqa: ANN401 - as the caller sent it
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest("The field max_tokens must be a whole number from 1 up.")
    return value


def _system(given: Any) -> list[Fields]:  # noqa: ANN401 - as the caller sent it
    if not given:
        return []
    return [{"role": "system", "content": _text(given, "system")}]


def _text(given: Any, where: str) -> str:  # noqa: ANN401 - as the caller sent it
    """Return the text of a text, or of a list of blocks of text."""
    if isinstance(given, str):
        return given
    blocks = given if isinstance(given, list) else [None]
    texts = [each.get("text") if isinstance(each, dict) else None for each in blocks]
    if not all(isinstance(each, str) for each in texts):
        raise BadRequest(f"The field {where} must be a text, or a list of blocks of type text.")
    return "\n".join(str(each) for each in texts)


def _messages(given: Any) -> list[Fields]:  # noqa: ANN401 - as the caller sent it
    if not isinstance(given, list) or not given:
        raise BadRequest("The field messages must be a list of messages that is not empty.")
    messages: list[Fields] = []
    for number, each in enumerate(given):
        role = each.get("role") if isinstance(each, dict) else None
        if role not in ("user", "assistant", "system"):
            raise BadRequest(f"Message {number} must be an object with the role user or assistant, and content.")
        content = each.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            raise BadRequest(f"The content of message {number} must be a text or a list of blocks.")
        if role == "assistant":
            messages.append(_said(blocks))
        else:
            messages += _asked(blocks, role, number)
    return messages


def _said(blocks: list[Fields]) -> Fields:
    """Return a message of the assistant; what it thought is not said again."""
    text = "".join(str(each.get("text") or "") for each in blocks if each.get("type") == "text")
    calls = [
        {
            "id": each.get("id"),
            "type": "function",
            "function": {
                "name": each.get("name"),
                "arguments": json.dumps(each.get("input") or {}, ensure_ascii=False),
            },
        }
        for each in blocks
        if each.get("type") == "tool_use"
    ]
    return {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})


def _asked(blocks: list[Fields], role: str, number: int) -> list[Fields]:
    """Return the messages of a user's one: results of tools are messages of their own, before what the user says."""
    results, parts = [], []
    for block in blocks:
        if block.get("type") == "tool_result":
            shown = _parts(block.get("content") or "", number)
            content = _joined(shown)
            if block.get("is_error") and isinstance(content, str):
                content = f"Error: {content}"
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content})
        else:
            parts.append(_part(block, number))
    return results + ([{"role": role, "content": _joined(parts)}] if parts or not results else [])


def _parts(content: Any, number: int) -> list[Fields]:  # noqa: ANN401 - as the caller sent it
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise BadRequest(f"The result of a tool in message {number} must be a text or a list of blocks.")
    return [_part(each if isinstance(each, dict) else {}, number) for each in content]


def _part(block: Fields, number: int) -> Fields:
    kind = block.get("type")
    given = block.get("source")
    source = given if isinstance(given, dict) else {}
    if kind == "text" and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]}
    if kind == "image" and source.get("type") == "base64":
        url = f"data:{source.get('media_type')};base64,{source.get('data')}"
        return {"type": "image_url", "image_url": {"url": url}}
    if kind == "image" and source.get("type") == "url":
        return {"type": "image_url", "image_url": {"url": source.get("url")}}
    if kind == "document" and source.get("type") == "text":
        return {"type": "text", "text": str(source.get("data") or "")}
    raise BadRequest(f"Message {number} has a block of type {kind} that is not supported; send text or images.")


def _joined(parts: list[Fields]) -> str | list[Fields]:
    if all(each["type"] == "text" for each in parts):
        return "\n".join(each["text"] for each in parts)
    return parts


def _tools(given: Any) -> list[Fields]:  # noqa: ANN401 - as the caller sent it
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise BadRequest("The field tools must be a list of objects.")
    return [
        {
            "type": "function",
            "function": {
                "name": each.get("name"),
                "description": each.get("description") or "",
                "parameters": each.get("input_schema") or {"type": "object", "properties": {}},
            },
        }
        for each in given
        # Others run on Anthropic's own servers.
        if each.get("type") in (None, "custom")
    ]


def _tool_choice(given: Any) -> Fields:  # noqa: ANN401 - as the caller sent it
    if not isinstance(given, dict):
        return {}
    kind = given.get("type")
    choice: Any = {"auto": "auto", "any": "required", "none": "none"}.get(str(kind))
    if kind == "tool":
        choice = {"type": "function", "function": {"name": given.get("name")}}
    if choice is None:
        raise BadRequest("The field tool_choice must have the type auto, any, tool or none.")
    once = {"parallel_tool_calls": False} if given.get("disable_parallel_tool_use") else {}
    return {"tool_choice": choice, **once}


def _schema(fields: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a JSON schema
    """Return the schema that the answer must have, where newer and older clients put it."""
    config = fields.get("output_config")
    form = (config.get("format") if isinstance(config, dict) else None) or fields.get("output_format")
    return form.get("schema") if isinstance(form, dict) and form.get("type") == "json_schema" else None
