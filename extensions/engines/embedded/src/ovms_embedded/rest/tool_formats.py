"""How models write tool calls, one format per tool parser of OVMS."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|\Z)", re.DOTALL)
DEVSTRAL = re.compile(r"\s*([^\[\s]+)\s*\[ARGS\]")


@dataclass(frozen=True)
class Format:
    """Where calls begin and end in the output."""

    start: str
    end: str = ""
    """Nothing when they go on to the end of the output."""
    special: bool = False
    """Whether the start is a special token, which is not written unless asked for."""
    bare: bool = False
    """Whether an output that begins like JSON is a call, too."""


FORMATS = {
    "hermes3": Format("<tool_call>", "</tool_call>"),
    "qwen3coder": Format("<tool_call>", "</tool_call>"),
    "llama3": Format("<|python_tag|>", special=True, bare=True),
    "phi4": Format("functools"),
    "mistral": Format("[TOOL_CALLS]", special=True),
    "devstral": Format("[TOOL_CALLS]", special=True),
}


@dataclass
class ToolCall:
    """A call that the model wants made."""

    name: str
    arguments: str
    """JSON text."""
    id: str = field(default_factory=lambda: secrets.token_hex(6))


def tool_calls(parser: str, text: str, declared: list[dict[str, Any]]) -> list[ToolCall]:
    """Return the calls within the text between the tags; nothing when there is none."""
    return READERS[parser](text, declared)


def _objects(text: str, _: list[dict[str, Any]]) -> list[ToolCall]:
    """Read JSON: one object, a list of objects, or objects one after the other."""
    decoder = json.JSONDecoder()
    values: list[Any] = []
    at = 0
    while at < len(text):
        if text[at].isspace() or text[at] in ";,":
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        values += value if isinstance(value, list) else [value]
    return [call for value in values if (call := _call(value))]


def _call(value: object) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return ToolCall(value["name"], arguments if isinstance(arguments, str) else _dump(arguments))


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _xml(text: str, declared: list[dict[str, Any]]) -> list[ToolCall]:
    types = {each["function"]["name"]: each["function"].get("parameters") or {} for each in declared}
    calls: list[ToolCall] = []
    for name, body in FUNCTION.findall(text):
        properties = types.get(name, {}).get("properties", {})
        arguments = {key: _typed(value, properties.get(key)) for key, value in PARAMETER.findall(body)}
        calls.append(ToolCall(name, _dump(arguments)))
    return calls


def _typed(value: str, schema: object) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(schema, dict) and schema.get("type") == "string":
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _devstral(text: str, _: list[dict[str, Any]]) -> list[ToolCall]:
    parts = [(DEVSTRAL.match(part), part) for part in text.split("[TOOL_CALLS]")]
    return [ToolCall(match[1], part[match.end() :].strip() or "{}") for match, part in parts if match]


READERS: dict[str, Callable[[str, list[dict[str, Any]]], list[ToolCall]]] = {
    "hermes3": _objects,
    "qwen3coder": _xml,
    "llama3": _objects,
    "phi4": _objects,
    "mistral": _objects,
    "devstral": _devstral,
}
