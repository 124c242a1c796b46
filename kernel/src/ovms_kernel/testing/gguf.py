"""GGUF files that hold a header and nothing more, for tests."""

from __future__ import annotations

import struct

F32, Q4_0, Q4_K, Q5_0, Q6_K = 0, 2, 12, 6, 14
"""Tensor types as numbers."""


def gguf_header(
    architecture: str = "llama", tensors: tuple[int, ...] = (F32, Q4_K, Q4_K, Q6_K), file_type: int = 15
) -> bytes:
    """Return the header of a GGUF file, version 3, with a vocabulary of three words.

    :param tensors: the type of each tensor.
    :param file_type: ``general.file_type``; 15 is Q4_K_M.
    """

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text(architecture),
        text("general.file_type") + struct.pack("<II", 4, file_type),
        text("general.size_label") + struct.pack("<I", 8) + text("135M"),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("b") + text("c"),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 0.0, 1.0, 2.0),
    ]
    infos = [
        text(f"blk.{number}") + struct.pack("<IQQIQ", 2, 4, 4, kind, 32 * number) for number, kind in enumerate(tensors)
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(infos)
