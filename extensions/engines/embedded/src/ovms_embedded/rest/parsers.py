"""Model output taken apart: reasoning, content and tool calls, as it arrives or in one piece."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Parsed:
    """A complete output."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)


class OutputParser:
    """Takes text and gives deltas as chat streams them."""

    passive = True
    """Whether all text is content, so that nobody need look at it."""
    needs_special_tokens = False

    def feed(self, text: str) -> list[dict[str, Any]]:
        """Return the deltas that follow from more text."""
        return [{"content": text}] if text else []

    def end(self) -> list[dict[str, Any]]:
        """Return the deltas that are left when no more text comes."""
        return []

    def parse(self, text: str) -> Parsed:
        """Return a complete output taken apart."""
        return Parsed(text)


def parser_for(info: dict[str, str], *, tools: bool, raw: bool) -> OutputParser:  # noqa: ARG001
    """Return the parser for one request."""
    return OutputParser()
