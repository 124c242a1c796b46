"""A file that keeps what was found out about a tokenizer's bytes: for 150 000 tokens that takes a second."""

from __future__ import annotations

import contextlib
import hashlib
import os
from itertools import accumulate, pairwise
from pathlib import Path

import msgspec
import openvino_genai as genai

from ovms_embedded.worker.byte_table import ByteTable, Decoder, decoder_for

SOURCES = ("openvino_tokenizer.xml", "openvino_tokenizer.bin", "openvino_detokenizer.xml", "openvino_detokenizer.bin")
CHECKED = 16
"""Bytes of the digest in front of the file, which tells whether the rest is whole."""


class _Kept(msgspec.Struct, array_like=True):
    """What a file holds; no sizes if no table agrees with the tokenizer."""

    sizes: list[int]
    text: bytes
    special: list[int]
    strips: bool


def find_decoder(tokenizer: genai.Tokenizer, folder: Path, cache: str | None) -> Decoder:
    """Return :func:`decoder_for`'s decoder, from the cache if the same tokenizer was there before.

    :param folder: the model's.
    :param cache: the model's folder for what is made of it, if it has one.
    """
    path = _path(folder, cache)
    if path is not None and (kept := _read(path)):
        return _table(kept) if kept.sizes else tokenizer
    decoder = decoder_for(tokenizer)
    if path is not None:
        with contextlib.suppress(OSError):  # a full disk costs the next load a second, and nothing else
            _write(path, decoder)
    return decoder


def _path(folder: Path, cache: str | None) -> Path | None:
    sources = [folder / name for name in SOURCES]
    if not cache or not all(each.is_file() for each in sources):
        return None
    digest = hashlib.sha256(genai.get_version().encode())
    for each in sources:
        with each.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return Path(cache, f"bytes-{digest.hexdigest()[:32]}")


def _table(kept: _Kept) -> ByteTable:
    ends = accumulate(kept.sizes, initial=0)
    whole = [kept.text[start:end] for start, end in pairwise(ends)]
    plain = whole.copy()
    for token in kept.special:
        plain[token] = b""
    return ByteTable(whole, plain, strips=kept.strips)


def _read(path: Path) -> _Kept | None:
    try:
        content = path.read_bytes()
        if _checksum(content[CHECKED:]) != content[:CHECKED]:
            return None
        return msgspec.msgpack.decode(content[CHECKED:], type=_Kept)
    except (OSError, msgspec.MsgspecError):
        return None


def _write(path: Path, decoder: Decoder) -> None:
    kept = _Kept([], b"", [], strips=False)
    if isinstance(decoder, ByteTable):
        whole, plain = decoder.whole, decoder.plain
        special = [token for token, (one, other) in enumerate(zip(whole, plain, strict=True)) if one != other]
        kept = _Kept([len(each) for each in whole], b"".join(whole), special, decoder.strips)
    content = msgspec.msgpack.encode(kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(_checksum(content) + content)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:CHECKED]
