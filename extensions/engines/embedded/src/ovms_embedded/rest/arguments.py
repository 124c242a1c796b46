"""Arguments of tool calls: always the text of one JSON object, of the types that the request declares."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from typing import Any, Final, Never

DEPTH = 100
"""Nested values that arguments may have, as those of a request."""
_PLAIN = re.compile(r'[^"{}\[\]]*')
_OUTSIDE = re.compile(r"[\s\d:,truefalsnE+.-]*")
"""What JSON has outside its strings and brackets."""
_IN_STRING = re.compile(r'[^"\\]*')
_CLOSES = {"}": "{", "]": "["}
_NUMBER = re.compile(r"-?\d{1,4000}(\.\d+)?([eE][+-]?\d+)?")
INVALID: Final = -1


class NotArguments(Exception):
    """What stands there is not a JSON object."""


class JsonScanner:
    """Finds the end of a JSON object or list in text that grows.

    :param start: where its first bracket is.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self._at = start
        self._open: list[str] = []
        self._quoted = False

    def end(self, text: str) -> int | None:
        """Return the index behind the value, ``INVALID`` if it is none, or nothing if its end is not there yet."""
        while self._at < len(text):
            if self._quoted:
                self._at = _span(_IN_STRING, text, self._at)
                if self._at == len(text) or (text[self._at] == "\\" and self._at + 1 == len(text)):
                    return None
                self._quoted = text[self._at] == "\\"
                self._at += 1 + self._quoted
                continue
            plain = _span(_PLAIN, text, self._at)
            if _span(_OUTSIDE, text, self._at) < plain:
                return INVALID
            self._at = plain
            if plain == len(text):
                return None
            mark = text[plain]
            self._at += 1
            if mark == '"':
                self._quoted = True
            elif mark in "{[":
                self._open.append(mark)
                if len(self._open) > DEPTH:
                    return INVALID
            elif self._open.pop() != _CLOSES[mark]:
                return INVALID
            elif not self._open:
                return self._at
        return None


def _span(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def loads(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value; its strings may hold line breaks.

    :raises NotArguments: it is not JSON.
    """
    try:
        return json.loads(text, strict=False, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise NotArguments(str(error)) from error


def _no_number(name: str) -> Never:
    raise NotArguments(name)


def dumps(value: object) -> str:
    """Return the JSON text of an object.

    :raises NotArguments: it is not an object, or holds what JSON does not have.
    """
    if isinstance(value, str):
        value = loads(value) if value.strip() else {}
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise NotArguments(type(value).__name__)
    try:
        return scrub(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
    except (ValueError, TypeError, RecursionError) as error:
        raise NotArguments(str(error)) from error


def scrub(text: str) -> str:
    """Return text with U+FFFD for each half of a surrogate pair, which no encoding takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def literal(text: str) -> Any:  # noqa: ANN401 - any value that JSON has
    """Return the value of JSON or of a Python literal.

    :raises NotArguments: it is neither.
    """
    try:
        return loads(text)
    except NotArguments:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes that Python does not know
            return value_of(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise NotArguments(str(error)) from error


WORDS = {"true": True, "false": False, "null": None}


def value_of(node: ast.expr) -> Any:  # noqa: ANN401 - as above
    """Return the value of a Python literal in which ``true``, ``false`` and ``null`` are words, too.

    :raises ValueError: it is none.
    """
    if isinstance(node, ast.Name) and node.id in WORDS:
        return WORDS[node.id]
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [value_of(each) for each in node.elts]
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(each) if each else None for each in node.keys]
        if not all(isinstance(key, str) for key in keys):
            text = "keys are texts"
            raise ValueError(text)
        return dict(zip(keys, map(value_of, node.values), strict=True))
    value = ast.literal_eval(node)
    if isinstance(value, (bytes, complex)) or value is ...:
        text = "JSON has no such value"
        raise ValueError(text)
    return value


def typed(text: str, schema: object) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value of an argument that is written without quotes, by its declared type; text if it does not fit."""
    kinds = _kinds(schema)
    word = text.strip()
    if "null" in kinds and (word == "null" or (word == "None" and "string" not in kinds)):
        return None
    if "boolean" in kinds and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if "string" not in kinds and (kinds & {"integer", "number"} or not kinds) and _NUMBER.fullmatch(word):
        number = _or_text(word, text, (int, float))
        exact = isinstance(number, float) and number.is_integer() and "integer" in kinds and "number" not in kinds
        return int(number) if exact else number
    if kinds & {"object", "array"} or not kinds:
        wanted = tuple(kind for name, kind in (("object", dict), ("array", list)) if name in kinds or not kinds)
        if word.startswith(("{", "[")):
            return _or_text(word, text, wanted)
    if not kinds:
        return _or_text(word, text, (str, bool, type(None))) if word[:1] in tuple('"tfn') else text
    return text


def _or_text(word: str, text: str, wanted: tuple[type, ...]) -> Any:  # noqa: ANN401 - as above
    try:
        value = literal(word) if word.startswith(("{", "[")) else loads(word)
    except NotArguments:
        return text
    infinite = isinstance(value, float) and not math.isfinite(value)
    return value if isinstance(value, wanted) and not infinite else text


def _kinds(schema: object) -> set[str]:
    """Return the names of the types that a schema allows, nothing where it does not say."""
    if not isinstance(schema, dict):
        return set()
    given = schema.get("type")
    found = {given} if isinstance(given, str) else {each for each in _list(given) if isinstance(each, str)}
    for key in ("anyOf", "oneOf", "allOf"):
        for each in _list(schema.get(key)):
            found |= _kinds(each)
    values = _list(schema.get("enum"))
    if not found and values and all(isinstance(each, str) for each in values):
        found = {"string"}
    return found


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
