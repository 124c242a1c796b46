"""Which tool and reasoning parser a chat template calls for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovms_embedded.worker.pipe import Pipe

TOOL_PARSERS = {
    "hermes3", "qwen3coder", "llama3", "phi4", "mistral", "devstral", "gptoss", "lfm2", "gemma4", "minicpm5", "onyx",
}  # fmt: skip
REASONING_PARSERS = {"qwen3", "gptoss", "lfm2", "gemma4", "minicpm5", "onyx"}


def parsers(options: dict[str, Any], template: str, pipe: Pipe) -> dict[str, str]:
    """Return the names of the parsers to use, ``""`` for none.

    :raises ValueError: the graph names a parser that does not exist.
    """
    tool, reasoning = detect(template)
    chosen: dict[str, str] = {}
    for key, found, known in (
        ("tool_parser", tool, TOOL_PARSERS),
        ("reasoning_parser", reasoning, REASONING_PARSERS),
    ):
        named = str(options.get(key) or "")
        if named == "none":
            named = ""
        elif named and named not in known:
            message = f"Unsupported {key}: {named}"
            raise ValueError(message)
        elif not named and found:
            named = found
            pipe.log("info", "llm_calculator", f"Auto-detected {key}: {found}")
        chosen[key] = named
    return chosen


def detect(template: str) -> tuple[str, str]:
    """Return the tool parser and the reasoning parser that a template calls for."""

    def has(*words: str) -> bool:
        return all(word in template for word in words)

    think = "qwen3" if has("<think>") or has("content.split('</think>')") else ""
    if has("<|channel|>"):
        return "gptoss", "gptoss"
    if has("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"):
        return "onyx", "onyx"
    if has("<|tool_call>call:"):
        return "gemma4", "gemma4"
    if has("<parameter=", "</parameter>", "<function="):
        return "qwen3coder", think or ("qwen3" if has("</think>") else "")
    if has('<param name="'):
        return "minicpm5", "minicpm5"
    if has("<|assistant_tool_call|>") or has("<|tool_call_start|>") or has("keep_past_thinking"):
        return "lfm2", "lfm2" if "message.thinking" in template else ""
    if has("functools"):
        return "phi4", ""
    if has("[TOOL_CALLS]", "[ARGS]"):
        return "devstral", ""
    if has("[TOOL_CALLS]") or has("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"):
        return "mistral", ""
    if has("<|python_tag|>"):
        return "llama3", ""
    if has("<tool_call>", "</tool_call>"):
        return "hermes3", think
    return "", think
