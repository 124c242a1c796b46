"""How models write tool calls, one format per tool parser of OVMS.

A format reads a growing text that begins with its start tag. What it decides stays true whatever text follows, so that
streamed and whole outputs are the same.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ovms_embedded.rest.arguments import INVALID, JsonScanner, NotArguments, dumps, loads, scrub

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class ToolCall:
    """A call that the model wants made."""

    name: str
    arguments: str
    """The text of a JSON object."""
    id: str = field(default_factory=lambda: secrets.token_hex(6))


@dataclass
class Found:
    """What the text at a start tag is: calls, or none if it only looks like them, and the index behind it."""

    calls: list[ToolCall]
    end: int = 0


NO_CALL = Found([])


class Reader(Protocol):
    """Reads the calls at one start tag."""

    def read(self, text: str, *, final: bool) -> Found | None:
        """Return what is there, or nothing while more text could decide it.

        :param text: begins with the tag; each time it is longer.
        :param final: no more text comes.
        """


class JsonCalls:
    """Calls as JSON values: one object, a list of objects, or one value after the other.

    :param tag: the start tag.
    :param end: the end tag, which models forget.
    :param opening: what the first value can begin with.
    :param known: names that calls must have; nothing where any name goes.
    """

    def __init__(self, tag: str, end: str = "", opening: str = "{[", known: set[str] | None = None) -> None:
        self._end_tag = end
        self._opening = opening
        self._known = known
        self._at = len(tag)
        self._calls: list[ToolCall] = []
        self._scanner: JsonScanner | None = None

    def read(self, text: str, *, final: bool) -> Found | None:
        """Read value after value, as far as there are any."""
        while True:
            if self._scanner is None:
                at = _skip(text, self._at, "; \t\r\n," if self._calls else " \t\r\n")
                if at < len(text) and text[at] in self._opening:
                    self._scanner = JsonScanner(at)
                elif at == len(text) and not final:
                    return None
                else:
                    return self._finish(text, at, final=final)
            end = self._scanner.end(text)
            if end is None and not final:
                return None
            calls = json_calls(text[self._scanner.start : end], self._known) if end and end != INVALID else []
            if not calls or end is None:
                return Found(self._calls, self._at) if self._calls else NO_CALL
            self._calls += calls
            self._at, self._scanner = end, None

    def _finish(self, text: str, at: int, *, final: bool) -> Found | None:
        if not self._calls:
            return NO_CALL
        if self._end_tag:
            at = _skip(text, at, "}] \t\r\n")  # some models close more than they opened
            rest = text[at : at + len(self._end_tag)]
            if rest == self._end_tag:
                return Found(self._calls, at + len(rest))
            if self._end_tag.startswith(rest) and not final:
                return None
        return Found(self._calls, self._at)


def json_calls(text: str, known: set[str] | None = None) -> list[ToolCall]:
    """Return the calls of a JSON value; nothing unless all of it is calls."""
    try:
        value = loads(text)
        values = value if isinstance(value, list) else [value]
        return [_call(each, known) for each in values]
    except NotArguments:
        return []


def _call(value: object, known: set[str] | None) -> ToolCall:
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
        raise NotArguments
    if known is not None and (name not in known or not value.keys() & {"arguments", "parameters"}):
        raise NotArguments
    return ToolCall(scrub(name), dumps(value.get("arguments", value.get("parameters"))))


class NamedCalls:
    """Devstral's calls: the tag, a name, ``[ARGS]``, and an object; newer models write ``[CALL_ID]`` between."""

    _head = re.compile(r"\s*([^\s\[\]{}]+)\s*(?:\[CALL_ID\][^\s\[\]{}]*\s*)?\[ARGS\]\s*(?=\{)")
    _begun = re.compile(r"\s*[^\s\[\]{}]*\s*(?:\[CALL_ID\][^\s\[\]{}]*\s*)?(?:\[ARGS\]\s*|\[[A-Z_]{0,7})?")

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._name = ""
        self._scanner: JsonScanner | None = None

    def read(self, text: str, *, final: bool) -> Found | None:
        """Read one call."""
        at = len(self._tag)
        if self._scanner is None:
            if not (match := self._head.match(text, at)):
                return None if not final and self._begun.fullmatch(text, at) else NO_CALL
            self._name = match[1]
            self._scanner = JsonScanner(match.end())
        end = self._scanner.end(text)
        if end is None:
            return NO_CALL if final else None
        try:
            return Found([ToolCall(self._name, dumps(text[self._scanner.start : end]))], end)
        except (NotArguments, IndexError):
            return NO_CALL


class Delimited:
    """Calls between two tags, whose text a function reads.

    :param begins: what the text must begin with, white space aside.
    :param read: returns the calls of the text between the tags.
    """

    def __init__(self, tag: str, end: str, begins: str, read: Callable[[str], list[ToolCall]]) -> None:
        self._tag, self._end_tag = tag, end
        self._begins = begins
        self._read = read
        self._looked = len(tag)

    def read(self, text: str, *, final: bool) -> Found | None:
        """Read what is between the tags."""
        at = _skip(text, len(self._tag), " \t\r\n")
        begun = text[at : at + len(self._begins)]
        if not self._begins.startswith(begun):
            return NO_CALL
        end = text.find(self._end_tag, self._looked)
        if end < 0 and not final:
            self._looked = max(self._looked, len(text) - len(self._end_tag))
            return None
        stop = len(text) if end < 0 else end
        try:
            calls = self._read(text[len(self._tag) : stop])
        except (NotArguments, ValueError, SyntaxError, RecursionError, MemoryError):
            calls = []
        return Found(calls, stop + (len(self._end_tag) if end >= 0 else 0)) if calls else NO_CALL


def _skip(text: str, at: int, spaces: str) -> int:
    while at < len(text) and text[at] in spaces:
        at += 1
    return at


def properties(declared: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the schemas of the parameters of each declared tool."""
    found: dict[str, dict[str, Any]] = {}
    for each in declared:
        parameters = each["function"].get("parameters")
        given = parameters.get("properties") if isinstance(parameters, dict) else None
        found[each["function"]["name"]] = given if isinstance(given, dict) else {}
    return found
