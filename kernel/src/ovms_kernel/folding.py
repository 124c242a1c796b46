"""Text in lines of a terminal."""

from __future__ import annotations

import os
import unicodedata


def folded(text: str, width: int) -> list[str]:
    """Return a text in lines of so many columns at most, broken between words, or between Chinese characters.

    Other words stay whole, such as a path that somebody copies.
    """
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if columns(joined) <= width:
            lines[-1] = joined
        elif columns(word) > width and not word.isascii() and os.sep not in word:
            lines[-1:] = _chopped(joined, width)
        else:
            lines += [word]
    return [each for each in lines if each] or [""]


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
