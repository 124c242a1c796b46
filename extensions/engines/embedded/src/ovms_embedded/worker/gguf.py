"""Whether a GGUF file is whole: the library reads beyond the end of one that is cut, and serves what it finds there.

Layout: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by its type in the header."""
UNSIGNED, STRING, ARRAY = 4, 8, 9
DEPTH = 3
"""Arrays in arrays."""
ITEMS = 10_000_000
"""Of anything that a header counts."""
DIMENSIONS = 4
"""Of a tensor."""
ALIGNMENT = 32
"""Bytes, where ``general.alignment`` says nothing else."""
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2),
}  # fmt: skip
"""Numbers in a block of a tensor and the bytes that it takes, by its type (ggml-common.h): F32, F16, Q4_0, Q4_1, Q5_0,
Q5_1, Q8_0, Q2_K to Q6_K, BF16. The library refuses the others by itself."""


class Cut(ValueError):
    """The file ends too early."""


class _Header:
    """Reads one field after the other."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data = data
        self.name = name
        self.place = 0

    def skip(self, size: int) -> int:
        """Return where so many bytes begin, which are read then.

        :raises Cut: the file has fewer.
        """
        start = self.place
        self.place += size
        if self.place > len(self.data):
            message = f"{self.name} ends within its GGUF header, after {len(self.data)} bytes; get the file again"
            raise Cut(message)
        return start

    def number(self, code: str) -> int:
        form = struct.Struct(code)
        found: int = form.unpack_from(self.data, self.skip(form.size))[0]
        return found

    def count(self) -> int:
        """Return a number of items.

        :raises ValueError: no file has so many.
        """
        if (found := self.number("<Q")) > ITEMS:
            raise self.unreadable()
        return found

    def unreadable(self) -> ValueError:
        return ValueError(f"{self.name} has a GGUF header that cannot be read; get the file again")

    def text(self) -> bytes:
        start = self.skip(self.number("<Q"))
        return self.data[start : self.place]

    def value(self, kind: int, depth: int = 0) -> int:
        """Return a whole number of 32 bits, else 0."""
        if kind == UNSIGNED:
            return self.number("<I")
        if kind in SIZES:
            self.skip(SIZES[kind])
        elif kind == STRING:
            self.skip(self.number("<Q"))
        elif kind == ARRAY and depth < DEPTH:
            inner, count = self.number("<I"), self.count()
            if inner in SIZES:
                self.skip(SIZES[inner] * count)
            else:
                for _ in range(count):
                    self.value(inner, depth + 1)
        else:
            raise self.unreadable()
        return 0

    def tensor(self) -> int:
        """Return the bytes from the beginning of all tensors to the end of the next one."""
        self.text()
        count = self.number("<I")
        if count > DIMENSIONS:
            raise self.unreadable()
        shape: tuple[int, ...] = struct.unpack_from(f"<{count}Q", self.data, self.skip(8 * count))
        kind, offset = self.number("<I"), self.number("<Q")
        numbers, size = BLOCKS.get(kind, (1, 0))
        return offset + -(-math.prod(shape) // numbers) * size


def check(path: Path) -> None:
    """Refuse a file that is not whole.

    :raises ValueError: it is cut, or no GGUF file.
    """
    if not path.stat().st_size:
        message = f"{path.name} is empty; get the file again"
        raise Cut(message)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = _Header(data, path.name)
        if data[: len(MAGIC)] != MAGIC[: len(data)]:
            message = f"{path.name} is no GGUF file; get another file"
            raise ValueError(message)
        header.skip(len(MAGIC))
        version = header.number("<I")
        if version not in VERSIONS:
            message = f"{path.name} is of version {version} of GGUF, and only {VERSIONS} can be read; get another file"
            raise ValueError(message)
        needed = _size(header)
        if len(data) < needed:
            message = f"{path.name} has {len(data)} bytes and its header needs {needed}; get the file again"
            raise Cut(message)


def _size(header: _Header) -> int:
    """Return the bytes of a whole file."""
    tensors, pairs = header.count(), header.count()
    step = ALIGNMENT
    for _ in range(pairs):
        key = header.text()
        value = header.value(header.number("<I"))
        if key == b"general.alignment" and value:
            step = value
    end = max((header.tensor() for _ in range(tensors)), default=0)
    return -(-header.place // step) * step + end
