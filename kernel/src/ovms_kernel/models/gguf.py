"""The header of a GGUF file: what it says of the model, and whether the engine can load it.

Layout: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from ovms_kernel.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LATER_PART = re.compile(r"-(?!00001-of-)\d{5}-of-\d{5}\.gguf$")
"""A part of a split model beyond the first; the header that counts is in the first."""
HEADER_LIMIT = 64 << 20
"""Bytes of a header; the vocabulary in it takes some 10 MB."""
MAX_ITEMS = 10_000_000
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 4
ALIGNMENT = 32
"""Bytes, where ``general.alignment`` says nothing else."""
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16", 39: "MXFP4",
}  # fmt: skip
BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q8_0": (32, 34), "Q4_K": (256, 144),
    "Q6_K": (256, 210),
}  # fmt: skip
"""Numbers in a block of a tensor, and the bytes that it takes (ggml-common.h)."""
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16", 38: "MXFP4",
}  # fmt: skip
"""``general.file_type``: what most of the tensors are quantized to, as people name it."""
ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3"})
"""What openvino.genai builds a model from (its gguf_utils); every other architecture is refused there."""
MATRICES = frozenset({"F16", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0"})
"""Types of weights that openvino.genai 2026.4.1 builds a model from; norms and biases may be F32, too."""


class Gguf(msgspec.Struct, frozen=True):
    """What a header says."""

    architecture: str
    """Such as ``llama``."""
    quantization: str
    """Such as ``Q4_K_M``."""
    parameters: str
    """Such as ``8B``; empty if it does not tell."""
    matrices: frozenset[str]
    """The types of its tensors with more than one dimension."""
    size: int
    """Bytes that the file has at least, with its weights."""


class _Cursor:
    """Reads fields from a stream, within a bound."""

    def __init__(self, read: Callable[[int], bytes], name: str) -> None:
        self._read, self.name = read, name
        self._buffer = bytearray()
        self._position = self._total = 0

    @property
    def place(self) -> int:
        """Bytes that were taken."""
        return self._total

    def take(self, count: int) -> bytes:
        self._total += count
        if self._total > HEADER_LIMIT:
            raise BadRequest(f"{self.name} has a GGUF header of more than {HEADER_LIMIT >> 20} MB; get the file again.")
        while len(self._buffer) - self._position < count:
            piece = self._read(1 << 20)
            if not piece:
                raise BadRequest(f"{self.name} ends within its GGUF header; get the file again.")
            self._buffer = self._buffer[self._position :] + piece
            self._position = 0
        self._position += count
        return bytes(self._buffer[self._position - count : self._position])

    def number(self, code: str) -> Any:  # noqa: ANN401 - as the code says
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:  # noqa: ANN401 - as the kind says; arrays are skipped
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY or depth > 3:
            raise BadRequest(f"{self.name} has a GGUF header that cannot be read; get the file again.")
        inner, count = self.number("<I"), self.number("<Q")
        if count > MAX_ITEMS:
            raise BadRequest(f"{self.name} has a GGUF header that cannot be read; get the file again.")
        if inner in SCALARS:
            self.take(count * struct.calcsize(SCALARS[inner]))
        else:
            for _ in range(count):
                self.value(inner, depth + 1)
        return None


def read_header(read: Callable[[int], bytes], name: str) -> Gguf:
    """Read the header from the beginning of a file.

    :param read: returns what comes next, at most so many bytes; nothing at the end.
    :param name: of the file, for sentences.
    :raises BadRequest: it is no GGUF file, or a damaged one.
    """
    cursor = _Cursor(read, name)
    magic = cursor.take(4)
    version = cursor.number("<I")
    if magic != b"GGUF" or version not in (2, 3):
        pointer = magic == b"vers"  # a Git LFS pointer begins with its version
        what = f"version {version} of GGUF" if magic == b"GGUF" else "not a GGUF file"
        what = "a Git LFS pointer and not a GGUF file" if pointer else what
        raise BadRequest(f"{name} is {what}, which cannot be served; get another file.")
    tensors, pairs = cursor.number("<Q"), cursor.number("<Q")
    if tensors > MAX_TENSORS or pairs > MAX_TENSORS:
        raise BadRequest(f"{name} has a GGUF header that cannot be read; get the file again.")
    values: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        values[key] = cursor.value(cursor.number("<I"))
    found = [_tensor(cursor) for _ in range(tensors)]
    types = Counter(each.kind for each in found)
    quantized = [each for each in types if each not in ("F32", "F16")] or [*types]
    most = max(quantized, key=lambda each: types[each], default="")
    file_type = values.get("general.file_type")
    return Gguf(
        str(values.get("general.architecture", "")),
        FILE_TYPES.get(file_type, most) if isinstance(file_type, int) else most,
        str(values.get("general.size_label") or ""),
        frozenset(each.kind for each in found if each.dimensions > 1),
        _aligned(cursor.place, values) + max((each.end for each in found), default=0),
    )


class _Tensor(msgspec.Struct, frozen=True):
    kind: str
    dimensions: int
    end: int
    """Bytes from the beginning of all tensors to the end of this one; 0 where its type has no known size."""


def _tensor(cursor: _Cursor) -> _Tensor:
    cursor.text()
    dimensions = cursor.number("<I")
    if dimensions > MAX_DIMENSIONS:
        raise BadRequest(f"{cursor.name} has a GGUF header that cannot be read; get the file again.")
    shape = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions))
    number, offset = cursor.number("<I"), cursor.number("<Q")
    kind = TENSOR_TYPES.get(number, f"type {number}")
    numbers, size = BLOCKS.get(kind, (1, 0))
    return _Tensor(kind, dimensions, offset + -(-math.prod(shape) // numbers) * size if size else 0)


def _aligned(place: int, values: Mapping[str, Any]) -> int:
    step = values.get("general.alignment")
    step = step if isinstance(step, int) and step > 0 else ALIGNMENT
    return -(-place // step) * step


def check_loadable(header: Gguf, name: str, size: int) -> None:
    """Refuse what the engine cannot load.

    :param size: bytes of the file.
    :raises BadRequest: the sentence says what it can load, or that the file is cut off.
    """
    if header.architecture not in ARCHITECTURES:
        raise BadRequest(
            f"{name} is a GGUF model of the architecture {header.architecture or 'unknown'}, and OpenVINO reads "
            f"{', '.join(sorted(ARCHITECTURES))} only; look for the same model with -ov at the end of its name."
        )
    if unknown := sorted(header.matrices - MATRICES):
        raise BadRequest(
            f"{name} has GGUF weights of type {', '.join(unknown)}, which OpenVINO does not read; "
            "choose a file quantized to Q4_K_M, Q4_0 or Q8_0."
        )
    if size < header.size:
        raise BadRequest(f"{name} has {size} bytes and its header needs {header.size}; get the file again.")
