"""Models that address all that they write: gpt-oss (OpenAI's harmony) and Onyx.

A message is a header, ``<|message|>``, its text, and an end. The header says for whom it is: the user, the model itself
(reasoning), or a tool.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovms_embedded.rest.arguments import NotArguments, dumps, scrub
from ovms_embedded.rest.tagged import Tagged
from ovms_embedded.rest.tool_formats import ToolCall

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovms_embedded.rest.tagged import Piece

MESSAGE = "<|message|>"
LONGEST_HEADER = 256
"""Characters of a header; what is longer is text."""


@dataclass(frozen=True)
class Envelope:
    """How a family addresses its messages."""

    header: re.Pattern[str]
    """A header, complete."""
    begun: re.Pattern[str]
    """A header as far as it is there."""
    ends: tuple[str, ...]
    thinks: re.Pattern[str]
    """What a header of reasoning has."""
    recipient: re.Pattern[str] | None = None
    """What a header of a call has; its group is the name. Without, calls stand within the text of any message."""


_GPT_WORDS = r"(?:\s|[\w.,:-]|to=|<\|constrain\|>)*"
_PARTIAL_TAG = r"(?:<[|a-z>]*)?"
HARMONY = {
    "gptoss": Envelope(
        header=re.compile(rf"\s*(?:<\|start\|>{_GPT_WORDS})?<\|channel\|>{_GPT_WORDS}"),
        begun=re.compile(rf"\s*(?:<\|start\|>{_GPT_WORDS})?(?:<\|channel\|>{_GPT_WORDS})?{_PARTIAL_TAG}"),
        ends=("<|end|>", "<|call|>", "<|return|>"),
        thinks=re.compile(r"<\|channel\|>\s*analysis"),
        recipient=re.compile(r"to=functions\.([^\s<]+)"),
    ),
    "onyx": Envelope(
        header=re.compile(r"\s*(?:<\|start\|>assistant\s*)?(?:to=[^\s<]+\s*)?"),
        begun=re.compile(rf"\s*(?:<\|start\|>[a-z]*\s*)?(?:to|t|to=[^\s<]*\s*)?{_PARTIAL_TAG}"),
        ends=("<|eom|>", "<|eot|>"),
        thinks=re.compile(r"to=self\s*$"),
    ),
}


class Harmony:
    """Takes text and gives what messages say, to whom.

    Text without a header is content, letter for letter.
    """

    def __init__(self, name: str, declared: list[dict[str, Any]]) -> None:
        self._kind = HARMONY[name]
        self._tools = bool(declared)
        self._body = Tagged(None, "" if self._kind.recipient or not declared else name, declared)
        self._buffer = ""
        self._header: str | None = None
        """The header of the message whose text is read."""
        self._said: set[str] = set()
        self._looked = 0
        """Where the first end tag can begin at the earliest."""

    def begin_thinking(self) -> None:
        """Do nothing: headers tell what is reasoning."""

    def feed(self, text: str, *, final: bool) -> Iterator[Piece]:
        """Yield the pieces that follow from more text."""
        self._buffer += text
        while self._buffer:
            buffer, header = self._buffer, self._header
            if header is None:
                yield from self._find_header(final=final)
            elif self._tool(header):
                yield from self._read_call(header, final=final)
            else:
                yield from self._read_text(header, final=final)
            if self._buffer is buffer and self._header is header:
                return
        if final:
            yield from self._body.feed("", final=True)

    def _find_header(self, *, final: bool) -> Iterator[Piece]:
        at = self._buffer.find(MESSAGE)
        head = self._buffer[:at] if at >= 0 else self._buffer
        if at >= 0 and len(head) <= LONGEST_HEADER and self._kind.header.fullmatch(head):
            self._take(at + len(MESSAGE))
            self._header = head
            if (kind := self._piece(head)) in self._said and not self._tool(head):
                yield kind, " "  # as OVMS joins messages
        elif final and self._said and not head.strip():
            self._take(len(head))
        elif final or at >= 0 or len(head) > LONGEST_HEADER + len(MESSAGE) or not self._kind.begun.fullmatch(head):
            self._header = ""  # there is none: text to the user

    def _read_text(self, header: str, *, final: bool) -> Iterator[Piece]:
        kind = self._piece(header)
        place, end = self._end()
        if end:
            text = self._take(place)
            self._take(len(end))
            self._header = None
        else:
            text = self._take(len(self._buffer) - (0 if final else self._held()))
        thought = [(kind, text)] if text else []
        for piece in self._body.feed(text, final=bool(end)) if kind == "content" else thought:
            self._said.add(piece[0])
            yield piece

    def _read_call(self, header: str, *, final: bool) -> Iterator[Piece]:
        place, end = self._end()
        if not end and not final:
            return
        text = self._take(place)
        self._take(len(end))
        self._header = None
        try:
            yield "call", ToolCall(scrub(self._tool(header)), dumps(text))
        except NotArguments:
            self._said.add("content")
            yield "content", header + MESSAGE + text + end

    def _end(self) -> tuple[int, str]:
        """Return the first end tag and where it is, or the end of the text and nothing."""
        ends = ((place, end) for end in self._kind.ends if (place := self._buffer.find(end, self._looked)) >= 0)
        found = min(ends, default=(len(self._buffer), ""))
        if not found[1]:
            self._looked = max(self._looked, len(self._buffer) - max(map(len, self._kind.ends)))
        return found

    def _tool(self, header: str) -> str:
        """Return the tool that a header addresses, ``""`` for none; without tools to call there is none."""
        match = self._kind.recipient.search(header) if self._tools and self._kind.recipient else None
        return match[1] if match else ""

    def _piece(self, header: str) -> str:
        return "reasoning" if self._kind.thinks.search(header) else "content"

    def _held(self) -> int:
        """Return how many characters at the end could begin an end tag."""
        text = self._buffer
        sizes = (size for end in self._kind.ends for size in range(1, len(end)) if text.endswith(end[:size]))
        return max(sizes, default=0)

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        self._looked = 0
        return taken
