"""What an output must look like, for the library's structured output: a JSON schema, or calls of tools."""

from __future__ import annotations

import json
from typing import Any

import openvino_genai as genai

from ovms_embedded.worker.schemas import check_schemas

WRITTEN = {
    "hermes3": ("<tool_call>", '<tool_call>\n{{"name": {name}, "arguments": ', "}\n</tool_call>"),
    "llama3": ('{"name": ', '{{"name": {name}, "parameters": ', "}"),
    "phi4": ("functools", 'functools[{{"name": {name}, "arguments": ', "}]"),
}
"""What begins a call, what stands before and what after its arguments; by tool parser."""


def check(grammar: str) -> None:
    """Refuse a grammar that takes too long to compile, by what is in it.

    :raises Refused: with what is too large.
    """
    wanted: dict[str, Any] = json.loads(grammar)
    schemas = [wanted["schema"]] if "schema" in wanted else [each["function"] for each in wanted["tools"]]
    check_schemas(grammar, schemas)


def structured_output(grammar: str) -> genai.StructuredOutputConfig:
    """Return the library's configuration.

    :param grammar: JSON text: ``{"schema": …}``, or ``{"parser", "tools", "required"}``.
    """
    wanted: dict[str, Any] = json.loads(grammar)
    if "schema" in wanted:
        return genai.StructuredOutputConfig(json_schema=json.dumps(wanted["schema"], ensure_ascii=False))
    trigger, before, after = WRITTEN[wanted["parser"]]
    kinds = genai.StructuredOutputConfig
    tags = [
        kinds.Tag(
            before.format(name=json.dumps(each["function"]["name"], ensure_ascii=False)),
            kinds.JSONSchema(json.dumps(each["function"].get("parameters") or {"type": "object"}, ensure_ascii=False)),
            after,
        )
        for each in wanted["tools"]
    ]
    if wanted["required"]:
        return kinds(
            structural_tags_config=kinds.TagsWithSeparator(tags, "\n", at_least_one=True, stop_after_first=True)
        )
    return kinds(structural_tags_config=kinds.TriggeredTags([trigger], tags))
