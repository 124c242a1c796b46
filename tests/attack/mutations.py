"""Requests that are almost right: hypothesis takes good ones and replaces, removes, adds and repeats parts of them."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

MODELS = ("tiny/chat", "tiny/embeddings", "tiny/listener", "tiny/speaker", "tiny/image", "tiny/rerank", "no/such")
NAMES = (
    "model", "messages", "role", "content", "type", "text", "input", "stream", "stream_options", "tools", "tool_choice",
    "response_format", "max_tokens", "n", "stop", "seed", "logprobs", "temperature", "top_p", "options", "keep_alive",
    "prompt", "query", "documents", "voice", "size", "system", "image_url", "url", "logit_bias", "function", "name",
    "audio", "session", "parameters", "action", "task", "header", "payload",
)  # fmt: skip

numbers = st.integers() | st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400]) | st.floats()
texts = st.text(max_size=20) | st.sampled_from(
    [
        "",
        " ",
        "\x00",
        "\ud800",
        "\u202e",
        "../../etc/passwd",
        "{{ x }}",
        "data:,",
        "file:///etc/passwd",
        "http://",
        "a" * 9999,
    ]
)
leaves = st.none() | st.booleans() | numbers | texts | st.sampled_from(MODELS)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=5,
)
_SHAPES: list[Any] = [[], {}, [[]], [{}], [None], [""], {"": ""}, [[[[[]]]]], "x", [1, 2, 3]]
SHAPES = st.sampled_from(_SHAPES).map(copy.deepcopy)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every part of a JSON value, but of the value itself."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, part in inner for found in [(*path, key), *_places(part, (*path, key))]]


@st.composite
def mutated(draw: st.DrawFn, seed: Any) -> Any:
    """Return a JSON value that differs from a good one in at most three parts."""
    value = copy.deepcopy(seed)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        places = _places(value)
        if not places or draw(st.integers(0, 19)) == 0:
            value = draw(values)
            continue
        *way, last = draw(st.sampled_from(places))
        part = value
        for key in way:
            part = part[key]
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "nest", "repeat"]))
        if change == "replace":
            part[last] = draw(values | SHAPES)
        elif change == "remove":
            del part[last]
        elif change == "nest":
            part[last] = draw(st.sampled_from([[part[last]], {"text": part[last]}]))
        elif isinstance(part, dict):
            part[draw(st.sampled_from(NAMES))] = draw(values | SHAPES) if change == "add" else part[last]
        else:
            part.extend([part[last]] * draw(st.sampled_from([1, 3, 300])))
    return value


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Return bytes that were cut, changed or continued at some place."""
    at = draw(st.integers(0, len(good)))
    change = draw(st.sampled_from(["cut", "insert", "overwrite", "nothing"]))
    if change == "cut":
        return good[:at]
    more = draw(st.binary(max_size=12)) if change != "nothing" else b""
    return good[:at] + more + good[at + (len(more) if change == "overwrite" else 0) :]


RAW = st.binary(max_size=80) | st.sampled_from(
    [
        b"",
        b"null",
        b"[]",
        b"[" * 3000,
        b'{"a":' * 3000,
        b'"\\ud800"',
        b"1e999",
        b"-0",
        b'{"model":"tiny/chat"}',
        b"\xff",
    ]
)


def bodies(seed: Any) -> st.SearchStrategy[bytes]:
    """Return JSON that is mostly well-formed and mostly wrong."""
    good = mutated(seed).map(lambda value: json.dumps(value).encode())
    return st.one_of(good, good, good, good, damaged(json.dumps(seed).encode()), RAW)
