"""Tool calls that are not JSON: XML of three kinds, Python's calls, and Gemma's objects."""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass
from typing import Any

from ovms_embedded.rest.arguments import DEPTH, NotArguments, dumps, scrub, typed, value_of
from ovms_embedded.rest.tool_formats import NO_CALL, Found, ToolCall

_SPACE = re.compile(r"\s*")
CDATA = re.compile(r"\s*<!\[CDATA\[(.*)\]\]>\s*", re.DOTALL)


LONGEST_NAME = 256
"""Characters of a function's name."""


@dataclass(frozen=True)
class Tags:
    """How a kind of XML writes a call: a function's and a parameter's tag up to the name, and their ends."""

    function: str
    function_end: str
    parameter: str
    parameter_end: str
    name_end: str
    wrapper: str = ""
    wrapper_end: str = ""
    trims: bool = False
    """Whether values stand on lines of their own."""


QWEN = Tags("<function=", "</function>", "<parameter=", "</parameter>", ">", "<tool_call>", "</tool_call>", trims=True)
MINICPM = Tags('<function name="', "</function>", '<param name="', "</param>", '">')
ATEM = Tags(
    '<atem:invoke name="', "</atem:invoke>", '<atem:parameter name="', "</atem:parameter>", '">',
    "<atem:function_calls>", "</atem:function_calls>",
)  # fmt: skip


class XmlCalls:
    """Calls in XML, within a wrapper or without.

    :param tag: the start tag, a wrapper's or a function's; without a wrapper only declared names are calls.
    :param declared: the schemas of the parameters of each declared tool.
    """

    def __init__(self, tags: Tags, tag: str, declared: dict[str, dict[str, Any]]) -> None:
        self._tags = tags
        self._wrapped = tag == tags.wrapper
        self._declared = declared
        self._at = len(tag) if self._wrapped else 0
        self._looked = 0
        self._calls: list[ToolCall] = []

    def read(self, text: str, *, final: bool) -> Found | None:
        """Read function after function."""
        tags = self._tags
        while True:
            at = _skip(text, self._at)
            rest = text[at : at + max(len(tags.wrapper_end), len(tags.function))]
            if rest.startswith(tags.function) and not (self._calls and not self._wrapped):
                if (end := self._function_end(text, at)) < 0 and not final:
                    return None if self._can_be_call(text, at) else self._ended()
                if end < 0 or not (call := self._call(text[at:end])):
                    return self._ended()
                self._calls.append(call)
                self._at = self._looked = end + len(tags.function_end) * text.startswith(tags.function_end, end)
                continue
            if self._calls and tags.wrapper_end and rest.startswith(tags.wrapper_end):
                return Found(self._calls, at + len(tags.wrapper_end))
            if not final and any(each.startswith(rest) for each in (tags.function, tags.wrapper_end) if each):
                return None
            return self._ended()

    def _ended(self) -> Found:
        return Found(self._calls, self._at) if self._calls else NO_CALL

    def _function_end(self, text: str, at: int) -> int:
        """Return where the first end tag of a function is, or of its wrapper, which ends it, too."""
        ends = [each for each in (self._tags.function_end, self._tags.wrapper_end) if each]
        start = max(at, self._looked)
        found = min((place for each in ends if (place := text.find(each, start)) >= 0), default=-1)
        if found < 0:
            self._looked = max(start, len(text) - max(map(len, ends)))
        return found

    def _can_be_call(self, text: str, at: int) -> bool:
        """Whether the name, as far as it is there, can be one."""
        start = at + len(self._tags.function)
        name, closed, _ = text[start : start + 2 * LONGEST_NAME].partition(self._tags.name_end)
        if "\n" in name or "<" in name or (not closed and len(name) > LONGEST_NAME + len(self._tags.name_end)):
            return False
        return self._wrapped or (name in self._declared if closed else self._begins_name(name))

    def _begins_name(self, name: str) -> bool:
        bare = name.removesuffix(self._tags.name_end[:1])
        return any(each.startswith((name, bare)) for each in self._declared)

    def _call(self, text: str) -> ToolCall | None:
        name, closed, body = text[len(self._tags.function) :].partition(self._tags.name_end)
        if not closed or not 0 < len(name) <= LONGEST_NAME or any(each in name for each in "<\n"):
            return None
        if not self._wrapped and name not in self._declared:
            return None
        schemas = self._declared.get(name)
        arguments: dict[str, Any] = {}
        for key, value in self._parameters(body, schemas):
            arguments.setdefault(key, typed(value, (schemas or {}).get(key)))
        try:
            return ToolCall(scrub(name), dumps(arguments))
        except NotArguments:
            return None

    def _parameters(self, body: str, schemas: dict[str, Any] | None) -> list[tuple[str, str]]:
        """Return names and texts of the parameters; a new parameter ends one that has no end."""
        tags = self._tags
        found: list[tuple[str, str]] = []
        start = re.compile(rf"{re.escape(tags.parameter)}([^<>\n]+?){re.escape(tags.name_end)}")
        match = start.search(body)
        while match:
            closed = body.find(tags.parameter_end, match.end())
            following = start.search(body, match.end())
            while following and schemas and following[1] not in schemas:
                following = start.search(body, following.end())
            inside = following and closed >= 0 and following.start() < closed
            end = following.start() if following and (inside or closed < 0) else closed if closed >= 0 else len(body)
            found.append((match[1], self._value(body[match.end() : end])))
            match = following if following and (inside or closed < 0) else start.search(body, max(end, match.end()))
        return found

    def _value(self, text: str) -> str:
        if self._tags.trims:
            return text.removeprefix("\n").removesuffix("\n")
        if match := CDATA.fullmatch(text):
            return match[1].replace("]]]]><![CDATA[>", "]]>")
        return text


def python_calls(text: str) -> list[ToolCall]:
    """Return the calls of a list in Python, as LFM2 writes them: ``[weather(city="Paris", days=2)]``.

    :raises ValueError: it is no list of calls.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes that Python does not know
        tree = ast.parse(text.strip(), mode="eval").body
    calls: list[ToolCall] = []
    for each in tree.elts if isinstance(tree, (ast.List, ast.Tuple)) else [tree]:
        if not isinstance(each, ast.Call) or each.args or any(word.arg is None for word in each.keywords):
            raise NotArguments
        arguments = {str(word.arg): value_of(word.value) for word in each.keywords}
        calls.append(ToolCall(scrub(ast.unparse(each.func)), dumps(arguments)))
    return calls


GEMMA_QUOTE = '<|"|>'
_GEMMA_HEAD = re.compile(r"\s*call:\s*([^\s{}]+)\s*(?=\{)")
_GEMMA_KEY = re.compile(r'\s*(?:<\|"\|>(.*?)<\|"\|>|"([^"]*)"|([^\s:{}\[\],]+))\s*:', re.DOTALL)
_GEMMA_WORD = re.compile(r"[^,{}\[\]]*")


def gemma_calls(text: str) -> list[ToolCall]:
    """Return Gemma's calls: ``call:weather{city:<|"|>Paris<|"|>,days:2}``.

    :raises NotArguments: it is none.
    """
    calls: list[ToolCall] = []
    at = 0
    while match := _GEMMA_HEAD.match(text, at):
        value, at = _gemma_value(text, match.end(), 0)
        calls.append(ToolCall(scrub(match[1]), dumps(value)))
    if _skip(text, at) < len(text):
        raise NotArguments
    return calls


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _gemma_value(text: str, at: int, depth: int) -> tuple[Any, int]:
    at = _skip(text, at)
    if depth > DEPTH or at >= len(text):
        raise NotArguments
    if text.startswith(GEMMA_QUOTE, at):
        if (end := text.find(GEMMA_QUOTE, at + len(GEMMA_QUOTE))) < 0:
            raise NotArguments
        return text[at + len(GEMMA_QUOTE) : end], end + len(GEMMA_QUOTE)
    if text[at] in "{[":
        return _gemma_items(text, at, depth)
    match = _GEMMA_WORD.match(text, at)
    word = match[0].strip() if match else ""
    if not match or not word:
        raise NotArguments
    return typed(word.lower() if word.lower() in ("true", "false", "null") else word, None), match.end()


def _gemma_items(text: str, at: int, depth: int) -> tuple[Any, int]:
    close = "}" if text[at] == "{" else "]"
    found: dict[str, Any] = {}
    values: list[Any] = []
    at += 1
    while True:
        at = _skip(text, at)
        if text.startswith(close, at):
            return (found if close == "}" else values), at + 1
        if found or values:
            if not text.startswith(",", at):
                raise NotArguments
            at += 1
        key = ""
        if close == "}":
            if not (match := _GEMMA_KEY.match(text, at)):
                raise NotArguments
            key = next(each for each in match.groups() if each is not None)
            at = match.end()
        value, at = _gemma_value(text, at, depth + 1)
        found[key] = value
        values.append(value)
