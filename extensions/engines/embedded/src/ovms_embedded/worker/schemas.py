"""Bounds on JSON schemas: what the library compiles cannot be stopped."""

from __future__ import annotations

import re
from typing import Any

from ovms_embedded.worker.pipe import Refused

TEXT_LIMIT = 1 << 18
"""Characters of all schemas of a request."""
PROPERTIES = 500
"""Properties of an object, or alternatives at one place: the time to compile them grows faster than their number."""
PARTS = 2000
"""Properties and alternatives of all schemas of a request."""
FREE = PROPERTIES**2
"""Optional properties of each object, squared and summed up: any of them may follow any other."""
LEVELS = 64
"""Objects and lists within each other; a schema needs two for each level of what it describes."""
PATTERN_LIMIT = 2000
"""Characters of a pattern."""
REPETITIONS = 100_000
"""Times that something in a pattern may repeat, all nested repetitions multiplied."""
QUANTIFIER = re.compile(r"\{(\d*)(?:,(\d*))?\}")
PLAIN = ("enum", "const", "default", "examples")
"""Keys whose values are no schemas."""
ALTERNATIVES = ("anyOf", "oneOf", "allOf", "prefixItems")


def check_schemas(grammar: str, schemas: list[Any]) -> None:
    """Refuse what takes too long to compile.

    :param grammar: the text that the schemas are in.
    :raises Refused: with what is too large and how large it may be.
    """
    if len(grammar) > TEXT_LIMIT:
        raise Refused(f"The JSON schemas of the request have more than {TEXT_LIMIT} characters")
    parts = free = 0
    waiting: list[tuple[Any, int]] = [(each, 1) for each in schemas]
    while waiting:
        value, level = waiting.pop()
        if level > LEVELS:
            raise Refused(f"The JSON schemas of the request have more than {LEVELS} levels")
        if isinstance(value, list):
            waiting += [(inner, level + 1) for inner in value]
        elif isinstance(value, dict):
            parts += _parts_of(value)
            free += _optional(value) ** 2
            if parts > PARTS:
                raise Refused(f"The JSON schemas of the request have more than {PARTS} properties and alternatives")
            if free > FREE:
                raise Refused("The JSON schemas of the request have too many optional properties; make some required")
            waiting += [
                (inner, level + 1)
                for key, inner in value.items()
                if key not in ("enum", "const", "default", "examples")
            ]


def _optional(schema: dict[str, Any]) -> int:
    named, required = schema.get("properties"), schema.get("required")
    if not isinstance(named, dict):
        return 0
    bound = {each for each in required if isinstance(each, str)} if isinstance(required, list) else set()
    return len(named.keys() - bound)


def _parts_of(schema: dict[str, Any]) -> int:
    named = schema.get("properties")
    counts = [len(named) if isinstance(named, dict) else 0]
    counts += [len(schema[name]) for name in ALTERNATIVES if isinstance(schema.get(name), list)]
    if max(counts) > PROPERTIES:
        raise Refused(f"A JSON schema has more than {PROPERTIES} properties or alternatives at one place")
    keyed = schema.get("patternProperties")
    for pattern in (schema.get("pattern"), *(keyed if isinstance(keyed, dict) else ())):
        if isinstance(pattern, str):
            _check_pattern(pattern)
    return sum(counts)


def _check_pattern(pattern: str) -> None:
    if len(pattern) > PATTERN_LIMIT:
        raise Refused(f"A pattern in a JSON schema has more than {PATTERN_LIMIT} characters")
    product = 1
    for least, most in QUANTIFIER.findall(pattern):
        digits = max(least, most, key=len)
        product *= max(1, int(digits[:10] or 1))
        if product > REPETITIONS:
            raise Refused(f"A pattern in a JSON schema repeats something more than {REPETITIONS} times")
