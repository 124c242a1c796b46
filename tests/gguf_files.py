"""GGUF files that hold a header and next to nothing more, for tests."""

from __future__ import annotations

import struct

F32, Q4_0, Q4_K, Q5_0, Q6_K, BF16 = 0, 2, 12, 6, 14, 30
"""Tensor types as numbers."""


def gguf_header(
    architecture: str = "llama", tensors: tuple[int, ...] = (F32, Q4_K, Q4_K, Q6_K), file_type: int = 15
) -> bytes:
    """Return a GGUF file, version 3, with a vocabulary of three words and small weights that are all 0.

    :param tensors: the type of each tensor; those of F32 are vectors, the others matrices.
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
        text(f"blk.{number}")
        + (struct.pack("<IQ", 1, 16) if kind == F32 else struct.pack("<IQQ", 2, 4, 4))
        + struct.pack("<IQ", kind, 32 * number)
        for number, kind in enumerate(tensors)
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(infos)
    return head + bytes(32 * len(tensors) + 256)
