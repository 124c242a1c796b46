"""Text in lines of a terminal."""

from __future__ import annotations

import os
import re
import unicodedata

BETWEEN = re.compile(r" (?=(?:[^`]*`[^`]*`)*[^`]*$)")
"""A space that is not between two backticks."""


def folded(text: str, width: int) -> list[str]:
    """Return a text in lines of so many columns at most, broken between words, or between Chinese characters.

    Other words stay whole, such as a path that somebody copies, and so does a command between backticks.
    """
    lines = [""]
    for word in _words(text, width):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if columns(joined) <= width:
            lines[-1] = joined
        elif columns(word) > width and not word.isascii() and not {"/", os.sep} & set(word):
            lines[-1:] = _chopped(joined, width)
        else:
            lines += [word]
    return [each for each in lines if each] or [""]


def _words(text: str, width: int) -> list[str]:
    """Return what is not broken unless it is wider than a line."""
    if text.count("`") % 2:
        return text.split(" ")
    whole = BETWEEN.split(text)
    return [word for each in whole for word in ([each] if columns(each) <= width else each.split(" "))]


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: a Chinese character takes two."""
    return len(text) if text.isascii() else sum(map(_column, text))


def _column(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _chopped(text: str, width: int) -> list[str]:
    lines, used = [""], 0
    for character in text:
        used += _column(character)
        if used > width:
            lines, used = [*lines, ""], _column(character)
        lines[-1] += character
    return lines
