"""Reasoning and tool calls between tags, which most families write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_embedded.rest.formats import TOOLS, Reasoning, tag_reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovms_embedded.rest.tool_formats import Reader

Piece = tuple[str, Any]
"""What it is, ``content``, ``reasoning`` or ``call``, and its text or the call."""


class Tagged:
    """Reasoning between tags before any other text, and calls behind start tags anywhere in the rest."""

    def __init__(self, reasoning: Reasoning | None, tools: str, declared: list[dict[str, Any]]) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self._declared = declared
        self._tags = TOOLS.get(tools, ())
        self._buffer = ""
        self._space = ""
        """White space behind a tag or at the start: content only if content follows."""
        self._edge = True
        self._apart = False
        """Whether there was reasoning or a call."""
        self._thinks = False
        self._may_think = reasoning is not None
        self._fresh = True
        """Whether there was no content yet, so that a bare object can be a call."""
        self._reader: Reader | None = None
        self._tag = ""

    def begin_thinking(self) -> None:
        """Say that the prompt ends within the reasoning."""
        self._thinks = self._reasoning is not None
        self._may_think = False

    def feed(self, text: str, *, final: bool) -> Iterator[Piece]:
        """Yield the pieces that follow from more text."""
        self._buffer += text
        while self._buffer:
            before = (self._buffer, self._reader, self._thinks)
            if self._thinks:
                yield from self._think(final=final)
            elif self._reader:
                yield from self._call(self._reader, final=final)
            else:
                yield from self._content(final=final)
            if all(new is old for new, old in zip((self._buffer, self._reader, self._thinks), before, strict=True)):
                break
        if final and self._space and not self._apart:
            yield "content", self._space
            self._space = ""

    def _think(self, *, final: bool) -> Iterator[Piece]:
        close = self._reasoning.close if self._reasoning else ""
        at = self._buffer.find(close)
        text = self._take(at) if at >= 0 else self._release((close,), final=final)
        if at >= 0:
            self._buffer = self._buffer[len(close) :]
            self._thinks = False
            self._part()
        if text:
            yield "reasoning", text

    def _call(self, reader: Reader, *, final: bool) -> Iterator[Piece]:
        found = reader.read(self._buffer, final=final)
        if found is None:
            return
        self._reader = None
        if not found.calls:
            self._fresh = self._fresh and bool(self._tag)
            yield from self._say(self._take(len(self._tag) or 1))
            return
        self._buffer = self._buffer[found.end :]
        self._part()
        for each in found.calls:
            yield "call", each

    def _content(self, *, final: bool) -> Iterator[Piece]:
        if self._edge and not self._buffer.strip():
            self._space += self._take(len(self._buffer))
            return
        if self._may_think and self._reasoning:
            if self._begins_to_think(self._reasoning, final=final):
                return
            self._may_think = False
        if self._fresh and "" in self._tags and self._buffer.lstrip().startswith("{"):
            self._space += self._take(len(self._buffer) - len(self._buffer.lstrip()))
            self._start("")
            return
        found = [(at, tag) for tag in self._tags if tag and (at := self._buffer.find(tag)) >= 0]
        if found:
            at, tag = min(found)
            yield from self._say(self._take(at))
            self._start(tag)
            return
        yield from self._say(self._release(self._tags, final=final))

    def _begins_to_think(self, reasoning: Reasoning, *, final: bool) -> bool:
        """Whether the text begins with reasoning, or could."""
        text = self._buffer.lstrip()
        if text.startswith(reasoning.open):
            self._buffer = text[len(reasoning.open) :]
            self._thinks, self._may_think = True, False
            self._part()
            return True
        return not final and reasoning.open.startswith(text)

    def _start(self, tag: str) -> None:
        self._tag = tag
        self._reader = tag_reader(self._tools, tag, self._declared)

    def _part(self) -> None:
        """Note that something other than content stands here."""
        self._space = ""
        self._edge = self._apart = True

    def _say(self, text: str) -> Iterator[Piece]:
        if self._edge:
            text = self._space + text
            self._space = ""
            if not text.strip():
                self._space = text
                return
            self._edge = False
        if text:
            self._fresh = False
            yield "content", text

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken

    def _release(self, tags: tuple[str, ...], *, final: bool) -> str:
        """Return what cannot be the beginning of a tag any more."""
        text = self._buffer
        held = 0
        if not final:
            sizes = (
                size for tag in tags for size in range(1, min(len(tag), len(text) + 1)) if text.endswith(tag[:size])
            )
            held = max(sizes, default=0)
        return self._take(len(text) - held)
