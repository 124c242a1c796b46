"""What is in a model's folder: sizes, small texts, digests, and what they say about the model."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ovms_kernel.fetch.names import is_junk
from ovms_kernel.values import ModelFiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

GRAPH = "graph.pbtxt"
METADATA = ".ovms-plugin.json"
OURS = frozenset({GRAPH, METADATA})
"""Files in a model's folder that we write; they are not part of what was pulled."""

MAX_TEXT = 1 << 20
DATA = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json", "normalizer.json"})
"""Tables for tokenizers: JSON, but nothing that tells what a model is."""


def is_text(path: str, size: int) -> bool:
    """Tell whether recognising a model may need that file's content."""
    return size <= MAX_TEXT and path.endswith((".json", ".jinja")) and path.rsplit("/", 1)[-1] not in DATA


def walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield each regular file below the folder, as a relative path with forward slashes, in a fixed order.

    Symbolic links to files are followed, those to folders are not; the plugin's files, and those that systems put
    beside others, are left out.
    """
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            relative = path.relative_to(folder).as_posix()
            if relative not in OURS and not is_junk(relative) and path.is_file():
                yield relative, path.stat()


def read_files(folder: Path, identifier: str) -> ModelFiles:
    """Read what recognising a model on disk needs; ``identifier`` is the last part of its id."""
    sizes = {path: status.st_size for path, status in walk(folder)}
    return ModelFiles(identifier, sizes, read_texts(folder, sizes))


def read_texts(folder: Path, sizes: Mapping[str, int]) -> dict[str, str]:
    """Read the small text files among those listed; one that is not UTF-8 counts as absent."""
    texts = {}
    for path, size in sizes.items():
        if is_text(path, size):
            try:
                texts[path] = (folder / path).read_text("utf-8")
            except (OSError, UnicodeDecodeError):
                continue
    return texts


def is_served_format(paths: Iterable[str]) -> bool:
    """Tell whether an OpenVINO engine can use a model of those files: IR, or GGUF."""
    names = set(paths)
    return any(
        path.endswith(".gguf") or (path.endswith(".xml") and path.removesuffix(".xml") + ".bin" in names)
        for path in names
    )


def manifest_digest(files: Mapping[str, tuple[int, str]]) -> str:
    """Return one digest for a whole model: of the sorted list of its files, with size and SHA-256 of each."""
    lines = (f"{path}\0{size}\0{sha256}\n" for path, (size, sha256) in sorted(files.items()))
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def weight_bytes(sizes: Mapping[str, int]) -> int:
    """Return the bytes of weights: what a load brings into memory at least."""
    return sum(size for path, size in sizes.items() if path.endswith((".bin", ".gguf")) and "tokenizer" not in path)


# -- for graph drivers ---------------------------------------------------------------------------------------------


def architectures_of(files: ModelFiles) -> tuple[str, ...]:
    """Return the architectures that ``config.json`` names; none if it names none."""
    config = files.json("config.json") or {}
    names = config.get("architectures")
    return tuple(each for each in names if isinstance(each, str)) if isinstance(names, list) else ()


def module_types_of(files: ModelFiles) -> tuple[str, ...] | None:
    """Return the types of the modules in ``modules.json`` of sentence-transformers; ``None`` without that file."""
    try:
        modules = json.loads(files.texts["modules.json"])
    except (KeyError, ValueError):
        return None
    if not isinstance(modules, list):
        return None
    return tuple(str(each.get("type", "")) for each in modules if isinstance(each, dict))
