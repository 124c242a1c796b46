"""Model output taken apart: reasoning, content and tool calls, as it arrives or in one piece (spec E.3, E.4, F.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ovms_embedded.rest.errors import Invalid
from ovms_embedded.rest.tool_formats import FORMATS, tool_calls

if TYPE_CHECKING:
    from collections.abc import Iterator

THINK = ("<think>", "</think>")
REASONING = {"qwen3": THINK}
"""Reasoning parsers of this engine, by their names in OVMS."""
Piece = tuple[str, str]
"""What it is, ``content``, ``reasoning`` or ``tools``, and its text."""


@dataclass
class Parsed:
    """A complete output."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)


class OutputParser:
    """Takes text and gives deltas as chat streams them.

    :param reasoning: the tags around reasoning, if the model reasons.
    :param tools: the name of the tool parser, if there are tools to call.
    :param declared: the tools of the request, which tell the types of arguments.
    """

    def __init__(
        self, reasoning: tuple[str, str] | None = None, tools: str = "", declared: list[dict[str, Any]] | None = None
    ) -> None:
        self._format = FORMATS.get(tools)
        self._tools = tools
        self._declared = declared or []
        self._tags: dict[str, tuple[str, str]] = {}
        if reasoning:
            self._tags[reasoning[0]] = ("reasoning", reasoning[1])
        if self._format:
            self._tags[self._format.start] = ("tools", self._format.end)
        self.passive = not self._tags
        """Whether all text is content, so that nobody need look at it."""
        self.needs_special_tokens = bool(self._format and self._format.special)
        self._buffer = ""
        self._kind = ""
        self._close = ""
        self._calls = 0
        self._started = False

    def begin_thinking(self) -> None:
        """Say that the prompt ends within the reasoning, so that the output begins there."""
        for kind, close in self._tags.values():
            if kind == "reasoning":
                self._kind, self._close = kind, close

    def feed(self, text: str) -> list[dict[str, Any]]:
        """Return the deltas that follow from more text."""
        self._buffer += text
        return [delta for piece in self._pieces() for delta in self._deltas(piece)]

    def end(self) -> list[dict[str, Any]]:
        """Return the deltas that are left when no more text comes."""
        rest, self._buffer = self._buffer, ""
        if not rest and self._kind != "tools":
            return []
        return self._deltas((self._kind or "content", rest))

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
                    found.tool_calls.append(
                        {"id": call["id"], "type": "function", "function": {**call["function"], "arguments": ""}}
                    )
                else:
                    found.tool_calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        return found

    def _pieces(self) -> Iterator[Piece]:
        while self._buffer:
            if self._kind:
                if not self._close:
                    return  # goes on to the end of the output
                if (at := self._buffer.find(self._close)) < 0:
                    if self._kind == "reasoning" and (ready := self._release([self._close])):
                        yield self._kind, ready
                    return
                piece = (self._kind, self._buffer[:at])
                self._buffer = self._buffer[at + len(self._close) :]
                self._kind = ""
                yield piece
                continue
            if not self._started and self._bare():
                return
            self._started = True
            found = [(at, tag) for tag in self._tags if (at := self._buffer.find(tag)) >= 0]
            if not found:
                if ready := self._release(list(self._tags)):
                    yield "content", ready
                return
            at, tag = min(found)
            before, self._buffer = self._buffer[:at], self._buffer[at + len(tag) :]
            self._kind, self._close = self._tags[tag]
            if before.strip():
                yield "content", before

    def _bare(self) -> bool:
        """Whether the output may be a call without a tag, which some models write as its only text."""
        if not (self._format and self._format.bare):
            return False
        text = self._buffer.lstrip()
        if text.startswith("{"):
            self._kind, self._close = "tools", ""
            return True
        return not text

    def _release(self, tags: list[str]) -> str:
        """Return what cannot be the beginning of a tag any more."""
        text = self._buffer
        held = max(
            (size for tag in tags for size in range(1, min(len(tag), len(text) + 1)) if text.endswith(tag[:size])),
            default=0,
        )
        ready, self._buffer = text[: len(text) - held], text[len(text) - held :]
        return ready

    def _deltas(self, piece: Piece) -> list[dict[str, Any]]:
        kind, text = piece
        if kind == "content":
            return [{"content": text}] if text else []
        if kind == "reasoning":
            return [{"reasoning_content": text}] if text else []
        deltas: list[dict[str, Any]] = []
        calls = tool_calls(self._tools, text, self._declared)
        if not calls and text.strip():
            return [{"content": text}]  # not a call after all
        for call in calls:
            index = self._calls
            self._calls += 1
            function = {"name": call.name}
            deltas.append({"tool_calls": [{"id": call.id, "type": "function", "index": index, "function": function}]})
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": call.arguments}}]})
        return deltas


def parser_for(info: dict[str, str], tools: list[dict[str, Any]], *, raw: bool) -> OutputParser:
    """Return the parser for one request.

    :param raw: the client wants special tokens, which switches parsers off.
    """
    if raw:
        return OutputParser()
    name = info["tool_parser"] if tools else ""
    if name and name not in FORMATS:
        raise Invalid(f"tool_parser {name} is not supported by the embedded engine; send the request without tools")
    return OutputParser(REASONING.get(info["reasoning_parser"]), name, tools)
