"""Partial texts that grow and do not flicker."""

from __future__ import annotations

import re

WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)
"""A word, or a single character where words are not separated."""


def words(text: str) -> list[str]:
    """Return the words of a text as they are compared: without case and punctuation."""
    bare = (re.sub(r"[^\w]", "", each[0]).casefold() for each in WORD.finditer(text))
    return [each for each in bare if each]


def steady(shown: str, previous: str, heard: str) -> str:
    """Return the text to show.

    A word that is shown stays as long as it is heard again, or as long as the last two hypotheses do not agree on
    another one in its place: the end of what is being spoken is often misheard for a moment.

    :param shown: so far.
    :param previous: the hypothesis before the last one.
    :param heard: the last one.
    """
    now, on_screen = words(heard), words(shown)
    if now[: len(on_screen)] == on_screen:
        return heard
    before = words(previous)
    kept = _common(now, on_screen)
    return heard if _common(now, before) > kept else shown


def _common(one: list[str], other: list[str]) -> int:
    """Return with how many words both begin."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
