"""The parsers by their names in OVMS: which tags they look for, and what reads behind a tag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ovms_embedded.rest.tool_formats import Delimited, JsonCalls, NamedCalls, Reader, json_calls, properties
from ovms_embedded.rest.tool_syntaxes import ATEM, MINICPM, QWEN, XmlCalls, gemma_calls, python_calls

if TYPE_CHECKING:
    from ovms_embedded.rest.tool_formats import ToolCall


class Reasoning(NamedTuple):
    """The tags around reasoning."""

    open: str
    close: str
    special: bool = False
    """Whether they are special tokens, which are not written unless asked for."""


REASONING = {
    "qwen3": Reasoning("<think>", "</think>"),
    "minicpm5": Reasoning("<think>", "</think>", special=True),
    "lfm2": Reasoning("<think>", "</think>", special=True),
    "gemma4": Reasoning("<|channel>thought\n", "<channel|>", special=True),
}


TOOLS: dict[str, tuple[str, ...]] = {
    "hermes3": ("<tool_call>",),
    "qwen3coder": ("<tool_call>", "<function="),
    "llama3": ("<|python_tag|>", ""),
    "phi4": ("functools",),
    "mistral": ("[TOOL_CALLS]",),
    "devstral": ("[TOOL_CALLS]",),
    "minicpm5": (MINICPM.function,),
    "lfm2": ("<|tool_call_start|>",),
    "gemma4": ("<|tool_call>",),
    "onyx": (ATEM.wrapper,),
}
"""The tags at which calls begin; ``""`` says that an output can be a call without a tag."""
SPECIAL = TOOLS.keys() - {"hermes3", "qwen3coder", "phi4"}
"""Tool parsers whose tags, or those of their reasoning, are special tokens."""


def tag_reader(tools: str, tag: str, declared: list[dict[str, Any]]) -> Reader:
    """Return what reads the calls at a start tag."""
    schemas = properties(declared)
    if tools == "qwen3coder":
        return XmlCalls(QWEN, tag, schemas)
    if tools == "minicpm5":
        return XmlCalls(MINICPM, tag, schemas)
    if tools == "onyx":
        return XmlCalls(ATEM, tag, schemas)
    if tools == "devstral":
        return NamedCalls(tag)
    if tools == "lfm2":
        return Delimited(tag, "<|tool_call_end|>", "[", _lfm2)
    if tools == "gemma4":
        return Delimited(tag, "<tool_call|>", "call:", gemma_calls)
    if tools == "phi4":
        return JsonCalls(tag, opening="[")
    return JsonCalls(tag, "</tool_call>" if tools == "hermes3" else "", known=None if tag else set(schemas))


def _lfm2(text: str) -> list[ToolCall]:
    return json_calls(text) or python_calls(text)
