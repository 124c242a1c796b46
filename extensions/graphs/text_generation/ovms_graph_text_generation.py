"""Graphs of text generation models: language models, models that also see, and GGUF files."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from ovms_kernel.api.graphs import BadRequest, architectures_of, default_device, fill, graph_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_kernel.api.graphs import CalculatorGraphConfig, GraphOptions, LLMCalculatorOptions, ModelFiles

SUFFIXES = ("ForCausalLM", "ForConditionalGeneration", "InternVLChatModel")
SPEECH = ("Whisper", "Qwen3ASR", "SeamlessM4T", "ParlerTTS", "SpeechT5")
"""Architectures that end like those of language models and do something else."""
MEMORY_PER_CACHE_GB = 8 << 30
"""One GB of KV cache for each eight of memory leaves room for weights, other models and the user."""
MAX_CACHE_GB = 10


class TextGeneration:
    """The graph driver; its section sets calculator options for all models of the type."""

    model_type = "text_generation"
    settings_type = dict  # of :meth:`options`

    def __init__(self, section: Mapping[str, Any]) -> None:
        self._section = section

    @staticmethod
    def options() -> LLMCalculatorOptions:
        """Return the options of the calculator, none of them set."""
        from ovms_kernel.api.graphs import LLMCalculatorOptions

        return LLMCalculatorOptions()

    def recognises(self, files: ModelFiles) -> int:
        """Return 10 for a generating architecture or a GGUF file, 0 otherwise."""
        names = [name for name in architectures_of(files) if not name.startswith(SPEECH)]
        if any(name.endswith(SUFFIXES) for name in names) or _gguf(files):
            return 10
        return 0

    def build(self, files: ModelFiles, options: GraphOptions) -> CalculatorGraphConfig:
        """Return the graph; streaming needs its LOOPBACK."""
        tool_parser, reasoning_parser = detect_parsers(template_of(files))
        defaults = {
            "models_path": "./" + _gguf(files),
            "device": default_device(options.host),
            "cache_size": cache_gigabytes(options.host.memory),
            "enable_prefix_caching": True,
            "tool_parser": tool_parser,
            "reasoning_parser": reasoning_parser,
        }
        message = self.options()
        fill(message, defaults, self._section, options.values, what=self.model_type)
        draft = [field.name for field, _ in message.ListFields() if field.name.startswith("draft_")]
        if draft and not message.draft_models_path:
            raise BadRequest(
                f"{draft[0]} is set without draft_models_path; name the draft model, such as model:owner/name."
            )
        return graph_of(
            "HttpLLMCalculator",
            "LLMExecutor",
            message,
            side_packets=("LLM_NODE_RESOURCES:llm", "LLM_NODE_EXECUTION_CONTEXTS:llm_ctx"),
            loopback=True,
        )


def cache_gigabytes(memory: int) -> int:
    """Return the size of the KV cache in GB for a machine with that many bytes; 0 (as needed) if that is unknown."""
    return min(max(memory // MEMORY_PER_CACHE_GB, 1), MAX_CACHE_GB) if memory else 0


def template_of(files: ModelFiles) -> str:
    """Return the chat template that the engine will use; ``chat_template.jinja`` wins over the tokenizer's."""
    if own := files.texts.get("chat_template.jinja"):
        return own
    template: object = (files.json("tokenizer_config.json") or {}).get("chat_template")
    if template is None:
        template = (files.json("chat_template.json") or {}).get("chat_template")
    # Some models have several, named ones.
    return template if isinstance(template, str) else json.dumps(template or "", ensure_ascii=False)


def detect_parsers(template: str) -> tuple[str, str]:
    """Return the tool parser and the reasoning parser for a chat template, empty where none fits.

    The order matters: the first rule that fits wins. ``onyx`` is left to the engine, as 2026.3.0 does not know it.
    """

    def has(*parts: str) -> bool:
        return all(part in template for part in parts)

    thinks = "qwen3" if has("<think>") or has("</think>") else ""
    reasons = "qwen3" if has("<think>") or has("content.split('</think>')") else ""
    if has("<|channel|>"):
        return "gptoss", "gptoss"
    if has("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"):
        return "", ""
    if has("<|tool_call>call:"):
        return "gemma4", "gemma4"
    if has("<parameter=", "</parameter>", "<function="):
        return "qwen3coder", thinks
    if has('<param name="'):
        return "minicpm5", "minicpm5"
    if has("<|assistant_tool_call|>") or has("<|tool_call_start|>") or has("keep_past_thinking"):
        return "lfm2", "lfm2" if has("message.thinking") else ""
    if has("functools"):
        return "phi4", ""
    if has("[TOOL_CALLS]", "[ARGS]"):
        return "devstral", ""
    if has("[TOOL_CALLS]") or re.search(r"\[AVAILABLE_TOOLS\].*\[/AVAILABLE_TOOLS\]", template, re.DOTALL):
        return "mistral", ""
    if has("<|python_tag|>"):
        return "llama3", ""
    if has("<tool_call>", "</tool_call>"):
        return "hermes3", reasons
    return "", reasons


def _gguf(files: ModelFiles) -> str:
    """Return the GGUF file to load, the first one of a split set; empty for a model in OpenVINO's own format."""
    if any(path.endswith(".xml") and "/" not in path and "tokenizer" not in path for path in files.sizes):
        return ""
    return min((path for path in files.sizes if path.endswith(".gguf") and "mmproj" not in path), default="")
