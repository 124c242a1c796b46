"""Garbage is told from sound answers: ten kinds of it, and none where there is none."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import struct
import wave
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovms_kernel.models import judge

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = (
    "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs.",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
    "I am only a tiny test model, so I do not know the answer to that.",
    "The capital of France is Paris, which lies on the Seine.",
)
HEARD = "Turn on the light."
TRIALS = 200


def text(said: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": said}}]}).encode()


def words(said: str) -> bytes:
    return json.dumps({"text": said}).encode()


def vectors(*given: list[float]) -> bytes:
    return json.dumps({"data": [{"index": at, "embedding": each} for at, each in enumerate(given)]}).encode()


def scores(*given: float) -> bytes:
    ranked = sorted(enumerate(given), key=lambda each: -each[1])
    return json.dumps({"results": [{"index": at, "relevance_score": each} for at, each in ranked]}).encode()


def sound(samples: list[int], rate: int = 16000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return buffer.getvalue()


def floats(samples: list[float], rate: int = 16000) -> bytes:
    """Return a WAV of 32-bit floats, as OVMS sends it."""
    data = struct.pack(f"<{len(samples)}f", *samples)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, rate, 4 * rate, 4, 32)
    return (
        b"RIFF"
        + struct.pack("<I", 12 + len(form) + len(data))
        + b"WAVE"
        + form
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


def test_sound_is_read_as_whole_numbers_and_as_floats() -> None:
    whole = judge.sample("sound", sound([0, 16384, -16384, 0] * 400))
    floating = judge.sample("sound", floats([0, 0.5, -0.5, 0] * 400))
    assert whole == pytest.approx({"seconds": 0.1, "loudness": math.sqrt(0.125)})
    assert floating == pytest.approx(whole)
    with pytest.raises(ValueError, match="not numbers"):
        judge.sample("sound", floats([math.nan] * 100))


def picture(pixels: bytes, side: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + pixels[3 * side * row : 3 * side * (row + 1)] for row in range(side))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return json.dumps({"data": [{"b64_json": base64.b64encode(png).decode()}]}).encode()


def noise(rolls: random.Random, count: int = 64) -> list[float]:
    return [rolls.gauss(0, 1) for _ in range(count)]


def shifted(said: str, rolls: random.Random) -> str:
    by = rolls.choice([1, 2, 5, 13])
    return "".join(chr(ord(each) + by) for each in said)


GARBAGE: dict[str, tuple[str, Callable[[random.Random], tuple[bytes, bytes]]]] = {
    "repetition": ("text", lambda r: (text(r.choice(["!", "the ", "0", "\ufffd"]) * 30), text(r.choice(TEXTS)))),
    "another model's answers": ("text", lambda r: (text((two := r.sample(TEXTS, 2))[0]), text(two[1]))),
    "shifted tokens": ("text", lambda r: (text(shifted(said := r.choice(TEXTS), r)), text(said))),
    "truncated": ("text", lambda r: (text((said := r.choice(TEXTS))[: r.randrange(1, len(said) - 1)]), text(said))),
    "empty": ("text", lambda r: (text(r.choice(["", " ", "\n"])), text(r.choice(TEXTS)))),
    "other words": ("words", lambda r: (words(" ".join(r.sample(["one", "two", "stop", "no"], 3))), words(HEARD))),
    "no words": ("words", lambda r: (words(r.choice(["", "."])), words(HEARD))),
    "not a number": ("vectors", lambda r: (vectors([math.nan] * 64), vectors(noise(r)))),
    "zeros": ("vectors", lambda r: (vectors([0.0] * 64), vectors(noise(r)))),
    "constant": ("vectors", lambda r: (vectors(*[[r.random()] * 64] * 2), vectors(noise(r), noise(r)))),
    "swapped order": ("vectors", lambda r: (vectors(a := noise(r), b := noise(r)), vectors(b, a))),
    "swapped scores": ("scores", lambda r: (scores(low := r.uniform(0, 0.3), 0.9), scores(0.9, low))),
    "flat picture": ("picture", lambda r: (picture(r.randbytes(3) * 32 * 32, 32), picture(r.randbytes(3072), 32))),
    "silence": ("sound", lambda r: (sound([r.randrange(9)] * 1600), sound(r.choices(range(-9999, 9999), k=1600)))),
}  # fmt: skip


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("same", [True, False])
def test_garbage_is_found(kind: str, same: bool) -> None:
    reader, make = GARBAGE[kind]
    rolls = random.Random(kind)
    missed = 0
    for _ in range(TRIALS):
        found, known = (judge.sample(reader, each) for each in make(rolls))
        missed += not judge.fault(reader, found, known, same=same)
    assert missed <= TRIALS / 100


@given(st.text(max_size=200))
def test_the_same_text_is_sound_whatever_it_is(said: str) -> None:
    found = judge.sample("text", text(said))
    assert not judge.fault("text", found, found, same=True)


@given(st.lists(st.lists(st.floats(-10, 10), min_size=8, max_size=8), min_size=1, max_size=4), st.floats(0.5, 2))
def test_vectors_that_point_the_same_way_are_sound(given_vectors: list[list[float]], factor: float) -> None:
    known = judge.sample("vectors", vectors(*given_vectors))
    scaled = judge.sample("vectors", vectors(*([each * factor for each in one] for one in given_vectors)))
    assert judge.fault("vectors", scaled, known, same=True) in ("", "vectors of zeros")
    if all(any(abs(each) > 0.1 for each in one) for one in given_vectors):
        assert not judge.fault("vectors", scaled, known, same=True)


def test_a_text_may_part_late_from_the_cpus_and_hardly_from_its_own() -> None:
    known = judge.sample("text", text(TEXTS[0]))
    parted = judge.sample("text", text(TEXTS[0][: len(TEXTS[0]) // 2] + "but then it says something else."))
    assert not judge.fault("text", parted, known, same=False)
    assert "another text" in judge.fault("text", parted, known, same=True)


@given(
    st.sampled_from(sorted(judge.KINDS)), st.binary(max_size=60) | st.sampled_from([b"{}", b"null", b'{"data":[{}]}'])
)
def test_what_is_no_answer_is_a_value_error(kind: str, body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        judge.sample(kind, body)


def test_what_cannot_be_read_is_a_fault_only_if_it_could_be_before() -> None:
    unreadable: dict[str, Any] = {judge.UNREADABLE: "the answer holds no text"}
    good = judge.sample("text", text("x"))
    assert judge.fault("text", unreadable, good, same=True) == "the answer holds no text"
    assert not judge.fault("text", good, unreadable, same=True)
