"""Model output taken apart: reasoning, content and tool calls, as it arrives or in one piece.

Streamed and whole outputs are the same text and the same calls, however the text is cut; where there is no call, no
letter of the text is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ovms_embedded.rest.formats import REASONING, SPECIAL, Reasoning
from ovms_embedded.rest.harmony import HARMONY, Harmony
from ovms_embedded.rest.tagged import Tagged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovms_embedded.rest.tagged import Piece
    from ovms_embedded.rest.tool_formats import ToolCall


@dataclass
class Parsed:
    """A complete output."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)


class Machine(Protocol):
    """Takes text and gives pieces."""

    def begin_thinking(self) -> None:
        """Say that the output begins within the reasoning."""

    def feed(self, text: str, *, final: bool) -> Iterator[Piece]:
        """Yield the pieces that follow from more text."""


class OutputParser:
    """Takes text and gives deltas as chat streams them.

    :param reasoning: the tags around reasoning, if the model reasons.
    :param tools: the name of the tool parser, if there are tools to call.
    :param declared: the tools of the request, which tell the types of arguments.
    :param envelope: the name of the parser, where a model addresses all that it writes.
    """

    def __init__(
        self,
        reasoning: tuple[str, str] | Reasoning | None = None,
        tools: str = "",
        declared: list[dict[str, Any]] | None = None,
        envelope: str = "",
    ) -> None:
        tags = Reasoning(*reasoning) if reasoning else None
        envelope = tools if tools in HARMONY else envelope
        self.passive = not (tags or tools or envelope)
        """Whether all text is content, so that nobody need look at it."""
        self.needs_special_tokens = bool(envelope or tools in SPECIAL or (tags and tags.special))
        self._machine: Machine = Harmony(envelope, declared or []) if envelope else Tagged(tags, tools, declared or [])
        self._calls = 0

    def begin_thinking(self) -> None:
        """Say that the prompt ends within the reasoning, so that the output begins there."""
        self._machine.begin_thinking()

    def feed(self, text: str) -> list[dict[str, Any]]:
        """Return the deltas that follow from more text."""
        return self._deltas(text, final=False)

    def end(self) -> list[dict[str, Any]]:
        """Return the deltas that are left when no more text comes."""
        return self._deltas("", final=True)

    def parse(self, text: str) -> Parsed:
        """Return a complete output taken apart."""
        found = Parsed()
        if self.passive:
            found.content = text
            return found
        for delta in [*self.feed(text), *self.end()]:
            found.content += delta.get("content", "")
            found.reasoning += delta.get("reasoning_content", "")
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    function = {**call["function"], "arguments": ""}
                    found.tool_calls.append({"id": call["id"], "type": "function", "function": function})
                else:
                    found.tool_calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        return found

    def _deltas(self, text: str, *, final: bool) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for kind, what in self._machine.feed(text, final=final):
            if kind == "call":
                deltas += self._call(what)
            else:
                deltas.append({"content" if kind == "content" else "reasoning_content": what})
        return deltas

    def _call(self, call: ToolCall) -> list[dict[str, Any]]:
        index = self._calls
        self._calls += 1
        begun = {"id": call.id, "type": "function", "index": index, "function": {"name": call.name}}
        return [
            {"tool_calls": [begun]},
            {"tool_calls": [{"index": index, "function": {"arguments": call.arguments}}]},
        ]


def parser_for(info: dict[str, str], tools: list[dict[str, Any]], *, raw: bool) -> OutputParser:
    """Return the parser for one request.

    :param raw: the client wants special tokens, which switches parsers off.
    """
    if raw:
        return OutputParser()
    reasoning, caller = info["reasoning_parser"], info["tool_parser"] if tools else ""
    if found := {reasoning, caller} & HARMONY.keys():
        return OutputParser(declared=tools, envelope=found.pop())
    return OutputParser(REASONING.get(reasoning), caller, tools)
