"""The bytes of every token, so that decoding needs no inference of the library's detokenizer.

The library decodes by running a model: some 0.1 ms alone, some milliseconds between two steps of a generation. Nearly
every vocabulary is a table, though: byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece's (Llama 2, Gemma,
Mistral), where the text is the bytes of the tokens in a row. The table is read off the tokenizer and compared with
what the library says about each token, behind another one and before another one. If they differ, the library decodes.
"""

from __future__ import annotations

import re
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

import numpy as np
import openvino

if TYPE_CHECKING:
    from collections.abc import Sequence

    import openvino_genai

SPACE = "▁".encode()
"""What stands for a space in SentencePiece's vocabularies."""
BYTE = re.compile(rb"<0x([0-9A-F]{2})>")
"""A token that stands for a byte there."""
INVALID = re.compile("\ufffd+")
"""How many U+FFFD stand for bytes that are no UTF-8 is each decoder's own choice, and no difference."""
BETWEEN = "\0|"
"""Stands between the texts of two rows that are compared."""
STEP = 1_000_003
"""A prime: its multiples pair every token with another one."""
PROBE = "a b . , ! ? ' n't 'm 's 've 're  two  spaces don ' t\n\n x\t\U0001f389 日本語"
"""Text that decoders tidy up: spaces before punctuation, contractions, double spaces."""


class Decoder(Protocol):
    """The library's tokenizer, or a :class:`ByteTable` in its place."""

    def decode(self, tokens: list[int], /, *, skip_special_tokens: bool = True) -> str:
        """Return the text of tokens."""
        ...


class ByteTable:
    """The bytes of every token.

    :param whole: the bytes of each token, by its number.
    :param plain: the same without those of special tokens.
    :param strips: the first space of a text is left out.
    """

    def __init__(self, whole: list[bytes], plain: list[bytes], *, strips: bool) -> None:
        self.whole = whole
        self.plain = plain
        self.strips = strips

    def decode(self, tokens: list[int], /, *, skip_special_tokens: bool = True) -> str:
        """Return the text of tokens; numbers beyond the vocabulary have none."""
        pieces = self.plain if skip_special_tokens else self.whole
        size = len(pieces)
        text = b"".join([pieces[token] for token in tokens if token < size])
        return (_strip(text) if self.strips else text).decode("utf-8", "replace")


def decoder_for(tokenizer: openvino_genai.Tokenizer) -> Decoder:
    """Return a table of the tokenizer's bytes, or the tokenizer itself if no table agrees with it."""
    library: Decoder = tokenizer
    try:
        vocabulary: dict[bytes, int] = tokenizer.get_vocab()
    except RuntimeError:  # SentencePiece's own detokenizer keeps its vocabulary to itself
        return library
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for piece, token in vocabulary.items():
        pieces[token] = piece
    anchor = next((piece for piece in pieces if piece.isalpha() and piece.isascii()), None)
    if anchor is None:
        return library
    # A token in front of each keeps it from the start of the text, where some decoders leave out a space.
    said = _ask(tokenizer, np.full(len(pieces), vocabulary[anchor]), np.arange(len(pieces)), skip=True)
    lonely = anchor.decode()
    special = [token for token, text in enumerate(said) if text == lonely and pieces[token]]
    for candidate in (pieces, _sentencepiece(pieces) if SPACE in vocabulary else None):
        if candidate is not None and (table := _table(candidate, special, anchor, said, tokenizer)):
            return table
    return library


def _sentencepiece(pieces: list[bytes]) -> list[bytes]:
    return [
        bytes.fromhex(match[1].decode()) if (match := BYTE.fullmatch(piece)) else piece.replace(SPACE, b" ")
        for piece in pieces
    ]


def _table(
    pieces: list[bytes], special: list[int], anchor: bytes, said: list[str], tokenizer: openvino_genai.Tokenizer
) -> ByteTable | None:
    """Return a table if the library agrees with it on every token and on pairs in which each is first and second."""
    size = len(pieces)
    plain = pieces.copy()
    for token in special:
        plain[token] = b""
    if not _same([anchor] * size, plain, said):
        return None
    tokens = np.arange(size)
    others = tokens * STEP % size
    seconds = itemgetter(*others.tolist(), 0)(pieces)[:-1]
    pairs = _ask(tokenizer, tokens, others, skip=False)
    strips = not _same(pieces, seconds, pairs)
    if strips:
        bare = [_strip(piece) for piece in pieces]
        if not _same(
            bare, [second if first else _strip(second) for first, second in zip(pieces, seconds, strict=True)], pairs
        ):
            return None
    table = ByteTable(pieces, plain, strips=strips)
    hard: list[int] = tokenizer.encode(PROBE, add_special_tokens=False).input_ids.data[0].tolist()
    tails = [hard[start:] for start in range(len(hard))]
    same = all(tokenizer.decode(tail) == table.decode(tail) for tail in tails)
    return table if same else None


def _strip(text: bytes) -> bytes:
    return text[1:] if text[:1] == b" " else text


def _ask(tokenizer: openvino_genai.Tokenizer, *columns: np.ndarray, skip: bool) -> list[str]:
    rows = openvino.Tensor(np.ascontiguousarray(np.stack(columns, axis=1), np.int64))
    found: list[str] = tokenizer.decode(rows, skip_special_tokens=skip)
    return found


def _same(firsts: Sequence[bytes], seconds: Sequence[bytes], said: list[str]) -> bool:
    """Tell whether the library says of each pair what its bytes say in a row."""
    parts = [BETWEEN.encode()] * (3 * len(said))
    parts[1::3], parts[2::3] = firsts, seconds
    one = b"".join(parts).decode("utf-8", "replace")
    other = BETWEEN + BETWEEN.join(said)
    return one == other or INVALID.sub("\ufffd", one) == INVALID.sub("\ufffd", other)
