"""Tells whether a model's answers to fixed requests are sound: pure functions from answers to a verdict.

A device whose driver is broken often answers at once and says nonsense. What is nonsense is told by comparing with
what the same weights answered before: on the CPU, or on the same device with the same driver and engine. The bounds
are those of docs/reliability.md.
"""

from __future__ import annotations

import base64
import json
import math
import re
import struct
import zlib
from array import array
from difflib import SequenceMatcher
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Sample = dict[str, Any]
"""What is kept of an answer, as JSON."""

UNREADABLE = "unreadable"
"""Key of a sample that says why an answer could not be read."""
COSINE = {False: 0.9, True: 0.99}
"""Least cosine of two vectors of one text, on different devices and on the same one."""
SCORE = {False: 0.2, True: 0.02}
"""Most that two scores of one document differ."""
AGREE = {False: 0.25, True: 0.6}
"""Least share of a text's characters before the first that differs. Rounding differs between devices, so greedy texts
part at some token; on one device they hardly do."""
WORDS = {False: 0.7, True: 0.8}
"""Least likeness of what two devices hear, from 0 to 1."""
LENGTH = {False: 2.0, True: 1.25}
"""Most by which the durations of two recordings of one text differ, as a factor."""
FLAT = 16
"""Different bytes in the packed rows of a picture of one colour, at most."""
PICTURE_LIMIT = 64 << 20
QUIET = 1e-4
"""Loudness of a recording that is silent; 1 is the loudest there is."""


def sample(kind: str, body: bytes) -> Sample:
    """Return what is kept of an answer.

    :param kind: ``text``, ``vectors``, ``scores``, ``words``, ``sound`` or ``picture``.
    :raises ValueError: the answer has no such thing in it.
    """
    try:
        return _READERS[kind](body)
    except (LookupError, TypeError, AttributeError, struct.error, zlib.error, RecursionError) as error:
        raise ValueError(f"the answer holds no {kind}") from error


def fault(kind: str, found: Sample, known: Sample, *, same: bool) -> str:
    """Return what is wrong with an answer, as the end of a sentence; empty if nothing is.

    :param known: what the same weights answered to the same request before.
    :param same: they did so on the same device, with the same driver and engine.
    """
    if UNREADABLE in known:
        return ""
    return str(found[UNREADABLE]) if UNREADABLE in found else _JUDGES[kind](found, known, same)


# -- texts -------------------------------------------------------------------------------------------------------------


def _read_text(body: bytes) -> Sample:
    choice = json.loads(body)["choices"][0]
    message = choice.get("message") or {"content": choice["text"]}
    return {"text": str(message.get("reasoning_content") or "") + str(message.get("content") or "")}


def _judge_text(found: Sample, known: Sample, same: bool) -> str:  # noqa: FBT001
    text, before = found["text"], known["text"]
    if text == before:
        return ""
    if not text.strip():
        return "an empty text"
    if before.startswith(text) or (same and text.startswith(before)):
        return f"a text that ends early or late ({_shown(text)})"
    if repeats(text) and not repeats(before):
        return f"a text that repeats itself ({_shown(text)})"
    common = next((at for at, (a, b) in enumerate(zip(text, before, strict=False)) if a != b), len(before))
    if common < AGREE[same] * len(before):
        return f"another text ({_shown(text)} instead of {_shown(before)})"
    return ""


def repeats(text: str) -> bool:
    """Tell whether most of a text is a few characters or one word again and again."""
    words = re.findall(r"\w+|[^\w\s]", text)
    return len(set(text)) <= 2 < len(text) or (len(words) > 5 and len(set(words)) <= len(words) // 4)


def _shown(text: str) -> str:
    return repr(text[:40])


def _read_words(body: bytes) -> Sample:
    return {"words": re.findall(r"\w+", str(json.loads(body)["text"]).lower())}


def _judge_words(found: Sample, known: Sample, same: bool) -> str:  # noqa: FBT001
    words, before = found["words"], known["words"]
    if (alike := SequenceMatcher(None, words, before, autojunk=False).ratio()) < WORDS[same]:
        return f"other words ({_shown(' '.join(words))}, {100 * alike:.0f} % of them right)"
    return ""


# -- vectors and scores ------------------------------------------------------------------------------------------------


def _read_vectors(body: bytes) -> Sample:
    data = json.loads(body)["data"]
    return {"vectors": [[_number(each) for each in one["embedding"]] for one in data]}


def _number(value: Any) -> float:  # noqa: ANN401 - JSON
    return math.nan if value is None else round(float(value), 6)


def _judge_vectors(found: Sample, known: Sample, same: bool) -> str:  # noqa: FBT001
    vectors, before = found["vectors"], known["vectors"]
    if [len(each) for each in vectors] != [len(each) for each in before]:
        return "vectors of another number or length"
    for one, other in zip(vectors, before, strict=True):
        if not all(math.isfinite(each) for each in one):
            return "vectors that are not numbers"
        if not any(one):
            return "vectors of zeros"
        if (likeness := cosine(one, other)) < COSINE[same]:
            return f"other vectors (cosine {likeness:.2f})"
    return ""


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return how alike two vectors point, from -1 to 1; 0 if one of them has no length."""
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0


def _read_scores(body: bytes) -> Sample:
    found = {each["index"]: _number(each["relevance_score"]) for each in json.loads(body)["results"]}
    return {"scores": [found[at] for at in range(len(found))]}


def _judge_scores(found: Sample, known: Sample, same: bool) -> str:  # noqa: FBT001
    scores, before = found["scores"], known["scores"]
    if len(scores) != len(before):
        return "another number of scores"
    if not all(math.isfinite(each) for each in scores):
        return "scores that are not numbers"
    apart = max((abs(a - b) for a, b in zip(scores, before, strict=True)), default=0.0)
    return f"other scores (by {apart:.2f})" if apart > SCORE[same] else ""


# -- sound and pictures ------------------------------------------------------------------------------------------------


def _read_sound(body: bytes) -> Sample:
    rate, samples = _samples(body)
    squares = sum(each * each for each in samples)
    if not math.isfinite(squares):
        raise ValueError("the answer's sound is not numbers")
    moves = any(one != other for one, other in pairwise(samples))
    loudness = math.sqrt(squares / max(len(samples), 1)) if moves else 0.0
    return {"seconds": len(samples) / rate, "loudness": loudness}


def _samples(body: bytes) -> tuple[int, Sequence[float]]:
    """Return the rate and the samples, from -1 to 1, of a WAV of 16 bits or floats, which ``wave`` lacks."""
    if body[:4] != b"RIFF" or body[8:12] != b"WAVE":
        raise ValueError("the answer is not a WAV")
    at, form, data = 12, b"", b""
    while at + 8 <= len(body):
        name, size = body[at : at + 4], int.from_bytes(body[at + 4 : at + 8], "little")
        if name == b"fmt ":
            form = body[at + 8 : at + 8 + size]
        elif name == b"data":
            data = body[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    kind, channels, rate, bits = (*struct.unpack_from("<HHI", form), struct.unpack_from("<H", form, 14)[0])
    if not rate or not channels or (kind, bits) not in ((1, 16), (3, 32), (0xFFFE, 16), (0xFFFE, 32)):
        raise ValueError("the answer is a WAV of another kind")
    if bits == 16:
        return rate * channels, [each / 32768 for each in array("h", data[: len(data) // 2 * 2])]
    return rate * channels, array("f", data[: len(data) // 4 * 4])


def _judge_sound(found: Sample, known: Sample, same: bool) -> str:  # noqa: FBT001
    seconds, before = found["seconds"], known["seconds"]
    if seconds <= 0 or (found["loudness"] < QUIET <= known["loudness"]):
        return "a silent recording"
    if not before / LENGTH[same] <= seconds <= before * LENGTH[same]:
        return f"a recording of another length ({seconds:.1f} s instead of {before:.1f} s)"
    return ""


def _read_picture(body: bytes) -> Sample:
    data = base64.b64decode(json.loads(body)["data"][0]["b64_json"])
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("the answer is not a PNG")
    at, packed = 8, b""
    while at + 8 <= len(data):
        length, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        packed += data[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        at += 12 + length
    rows = zlib.decompressobj().decompress(packed, PICTURE_LIMIT)
    return {"width": int.from_bytes(data[16:20]), "height": int.from_bytes(data[20:24]), "bytes": len(set(rows))}


def _judge_picture(found: Sample, known: Sample, same: bool) -> str:  # noqa: ARG001, FBT001 - pictures differ anyhow
    if (found["width"], found["height"]) != (known["width"], known["height"]):
        return "a picture of another size"
    # A row of a PNG is packed as differences, so that one colour is a few bytes again and again.
    return "a picture of one colour" if found["bytes"] <= FLAT < known["bytes"] else ""


_READERS: dict[str, Callable[[bytes], Sample]] = {
    "text": _read_text, "vectors": _read_vectors, "scores": _read_scores, "sound": _read_sound,
    "picture": _read_picture, "words": _read_words,
}  # fmt: skip
_JUDGES: dict[str, Callable[[Sample, Sample, bool], str]] = {
    "text": _judge_text, "vectors": _judge_vectors, "scores": _judge_scores, "sound": _judge_sound,
    "picture": _judge_picture, "words": _judge_words,
}  # fmt: skip
KINDS = frozenset(_READERS)
