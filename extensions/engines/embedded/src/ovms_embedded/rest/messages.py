"""Messages and tools of chat and responses, as a chat template takes them."""

from __future__ import annotations

import json
from typing import Any

from ovms_embedded.rest.errors import Invalid

KEPT = ("name", "tool_call_id", "reasoning_content")
RESERVED = "<ov_genai_image_"
RESERVED_VARIABLES = {"messages", "bos_token", "eos_token"}
"""What ``chat_template_kwargs`` cannot name."""
GUIDED = {"hermes3", "llama3", "phi4"}
"""Tool parsers whose calls the engine can enforce."""
NO_AUDIO = "input_audio is for Omni models, which the embedded engine does not serve"


def read_messages(data: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the messages of a chat request, and the images that they name; a tag stands where an image was."""
    given = data.get("messages")
    if given is None:
        raise Invalid("Messages missing in request")
    if not isinstance(given, list):
        raise Invalid("Messages are not an array")
    if not given:
        raise Invalid("Messages array cannot be empty")
    images: list[str] = []
    return [_message(each, images) for each in given], images


def _message(given: object, images: list[str]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise Invalid("Message is not a JSON object")
    role = given.get("role")
    if not isinstance(role, str):
        raise Invalid("Every message must have a role that is a string")
    message: dict[str, Any] = {"role": role}
    if "content" in given:
        message["content"] = _content(given["content"], images)
    if role == "assistant" and not message.get("content") and isinstance(refusal := given.get("refusal"), str):
        message["content"] = _text(refusal)
    for key in KEPT:
        if (value := given.get(key)) is not None:
            if not isinstance(value, str):
                raise Invalid(f"{key} of a message must be a string")
            message[key] = value
    if calls := given.get("tool_calls"):
        message["tool_calls"] = _tool_calls(calls)
    return message


def _content(given: object, images: list[str]) -> str | None:
    if given is None or given == []:
        return None
    if isinstance(given, str):
        return _text(given)
    if isinstance(given, list):
        return "\n".join(_part(each, images) for each in given)
    raise Invalid("Invalid message structure - content should be string or array")


def _text(text: str) -> str:
    if RESERVED in text:
        raise Invalid(f"Message contains restricted {RESERVED} tag")
    return text


def _part(part: object, images: list[str]) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise Invalid("Content array should contain objects with a type that is a string")
    if part["type"] == "image_url":
        image = part.get("image_url")
        if not isinstance(image, dict) or not isinstance(image.get("url"), str):
            raise Invalid("Invalid message structure - image_url should be an object with url, a string")
        images.append(image["url"])
        return f"{RESERVED}{len(images) - 1}>"
    if part["type"] == "input_audio":
        raise Invalid(NO_AUDIO)
    if part["type"] not in ("text", "refusal"):
        raise Invalid("Unsupported content type")
    if not isinstance(text := part.get(part["type"]), str):
        raise Invalid("Invalid message structure - content text is missing or not a string")
    return _text(text)


def _tool_calls(given: object) -> list[dict[str, Any]]:
    if not isinstance(given, list):
        raise Invalid("tool_calls is not an array")
    calls: list[dict[str, Any]] = []
    for each in given:
        if not isinstance(each, dict) or not isinstance(each.get("function"), dict):
            raise Invalid("tool_calls must be objects with a function object")
        function = dict(each["function"])
        function.setdefault("arguments", {})
        calls.append(each | {"function": function})
    return calls


def read_tools(data: dict[str, Any]) -> tuple[list[dict[str, Any]], object]:
    """Return the tools that the model may use, in the nested form, and what ``tool_choice`` asked for."""
    choice = data.get("tool_choice")
    tools = [_tool(each) for each in _tool_list(data.get("tools"))]
    name = ""
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise Invalid("tool_choice should be either 'none', 'auto', 'required' or an object with a function name")
        if choice == "none":
            return [], choice
    elif isinstance(choice, dict):
        function = choice.get("function")
        found = function.get("name") if isinstance(function, dict) else choice.get("name")
        if not isinstance(found, str):
            raise Invalid("tool_choice does not name a function")
        name = found
    elif choice is not None:
        raise Invalid("tool_choice is not a valid JSON object or string")
    if name:
        tools = [each for each in tools if each["function"]["name"] == name]
    return tools, choice


def _tool_list(given: object) -> list[Any]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise Invalid("Tools are not an array")
    return given


def _tool(given: object) -> dict[str, Any]:
    if not isinstance(given, dict) or given.get("type") != "function":
        raise Invalid("Only function tools are supported")
    function = given.get("function")
    if function is None and "name" in given:
        function = {key: value for key, value in given.items() if key not in ("type", "strict")}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Invalid("Function object does not contain a valid name field")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise Invalid("Function parameters are not a valid JSON object")
    return {"type": "function", "function": function}


def read_grammar(data: dict[str, Any]) -> str | None:
    """Return the JSON schema of ``response_format``; a form of it that asks for nothing gives nothing."""
    given = data.get("response_format")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise Invalid("response_format is not an object")
    kind = given.get("type")
    if kind == "json_schema":
        wrapper = given.get("json_schema")
        schema = wrapper.get("schema", wrapper) if isinstance(wrapper, dict) else given.get("schema")
        if not isinstance(schema, dict):
            raise Invalid("response_format of type json_schema needs json_schema.schema, an object")
        return json.dumps({"schema": schema}, ensure_ascii=False)
    if kind == "json_object":
        return '{"schema":{"type":"object"}}'
    if kind in ("text", None):
        return None
    raise Invalid(f"response_format of type {kind} is not supported by the embedded engine; use json_schema")


def guide(parser: str, tools: list[dict[str, Any]], choice: object, options: dict[str, Any]) -> str | None:
    """Return the grammar of tool calls, where the client demands one or the graph guides them."""
    required = choice == "required" or isinstance(choice, dict)
    if parser not in GUIDED or not tools or not (required or options["enable_tool_guided_generation"]):
        return None
    return json.dumps({"parser": parser, "tools": tools, "required": required}, ensure_ascii=False)


def read_template_context(data: dict[str, Any]) -> dict[str, Any]:
    """Return ``chat_template_kwargs``."""
    given = data.get("chat_template_kwargs")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Invalid("chat_template_kwargs must be an object")
    if taken := sorted(RESERVED_VARIABLES & given.keys()):
        raise Invalid(f"chat_template_kwargs cannot set {taken[0]}, which the engine sets itself")
    if not isinstance(given.get("add_generation_prompt", True), bool):
        raise Invalid("add_generation_prompt accepts values true or false")
    return given
