"""Where a model keeps its chat templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_embedded.worker import common

if TYPE_CHECKING:
    from pathlib import Path

    import openvino_genai

TOOL_USE = "tool_use"
"""The template of requests with tools, where a model has one of its own."""


def find(folder: Path, tokenizer: openvino_genai.Tokenizer) -> dict[str, Any]:
    """Return ``template``, ``tool_template`` (each ``""`` for none) and ``tokens``, what templates know of tokens.

    ``chat_template.jinja`` wins over the tokenizer's own; ``additional_chat_templates/tool_use.jinja`` over the
    entry of a list.

    :param folder: the model's, or its GGUF file.
    """
    listed = _listed(common.read_json(folder / "tokenizer_config.json").get("chat_template"))
    plain = (
        _read(folder / "chat_template.jinja")
        or tokenizer.get_original_chat_template()
        or listed.get("default", "")
        or _text(common.read_json(folder / "chat_template.json").get("chat_template"))
    )
    return {
        "template": plain,
        "tool_template": _read(folder / "additional_chat_templates" / f"{TOOL_USE}.jinja") or listed.get(TOOL_USE, ""),
        "tokens": {"bos_token": tokenizer.get_bos_token(), "eos_token": tokenizer.get_eos_token()},
    }


def _listed(given: object) -> dict[str, str]:
    """Return named templates; a single one is the default."""
    if isinstance(given, str):
        return {"default": given}
    entries = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    return {str(each.get("name")): _text(each.get("template")) for each in entries}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError):
        return ""
