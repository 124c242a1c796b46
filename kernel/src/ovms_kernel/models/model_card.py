"""What a model's files say of it: sizes and small texts, format, family, number of parameters, precision."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ovms_kernel.drivers import ModelFiles
from ovms_kernel.fetch.names import is_junk
from ovms_kernel.files import read_json
from ovms_kernel.models.model_record import OURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAX_TEXT = 1 << 20
DATA = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json", "normalizer.json"})
"""Tables for tokenizers: JSON, but nothing that tells what a model is."""
PARAMETERS = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bBmM])(?![A-Za-z])")
"""After a separator, so that "v2M" or "int4b" do not count."""
PRECISION = re.compile(r"(?i)(?:^|[-_.])(int4|int8|fp16|bf16|fp32|q\d(?:_[0k1](?:_[sml])?)?)(?![a-z0-9])")
CONSTANT = re.compile(rb'<data element_type="(\w+)"[^>]*? offset="(\d+)" size="(\d+)"')
"""A constant in an IR file: its type, and where its bytes are among the weights; several may share them."""
BITS = {"u4": 4, "i4": 4, "nf4": 4, "u8": 8, "i8": 8, "f8e4m3": 8, "f8e5m2": 8, "f16": 16, "bf16": 16, "f32": 32}
CONFIG = "config.json"
LENGTHS = ("max_position_embeddings", "n_positions", "seq_len", "seq_length", "n_ctx", "max_seq_len")
"""Where a model's ``config.json`` says how many tokens it takes, by family; engines read the first that is there."""
NAMES = {"u4": "int4", "i4": "int4", "u8": "int8", "i8": "int8", "f16": "fp16", "f32": "fp32"}


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
                texts[path] = (folder / path).read_text("utf-8-sig")  # an editor of Windows may have put its mark there
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


def context_length(folder: Path) -> int | None:
    """Return how many tokens a prompt and its answer may have together; ``None`` if ``config.json`` does not say."""
    config = read_json(folder / CONFIG) or {}
    tables = [each for each in (config, config.get("text_config")) if isinstance(each, dict)]
    found = (table.get(name) for table in tables for name in LENGTHS)
    return next((each for each in found if isinstance(each, int) and each > 1), None)


def weight_bytes(sizes: Mapping[str, int]) -> int:
    """Return the bytes of weights: what a load brings into memory at least."""
    return sum(size for path, size in sizes.items() if path.endswith((".bin", ".gguf")) and "tokenizer" not in path)


# -- what lists of models show -------------------------------------------------------------------------------------


def format_of(sizes: Mapping[str, int]) -> str:
    """Return ``gguf`` or ``openvino``."""
    return "gguf" if any(path.endswith(".gguf") for path in sizes) else "openvino"


def family_of(files: ModelFiles) -> str:
    """Return the model's architecture family as its own config names it; empty if it does not."""
    config = files.json("config.json") or {}
    if isinstance(family := config.get("model_type"), str) and family:
        return family
    index = files.json("model_index.json") or {}
    name = index.get("_class_name")
    return str(name).removesuffix("Pipeline") if isinstance(name, str) else ""


def parameter_size_of(files: ModelFiles, weights: Mapping[str, int]) -> str:
    """Return the number of parameters as people write it, such as ``8B``: from the name, else from the weights."""
    if found := PARAMETERS.search(files.identifier):
        return found[1] + found[2].upper()
    if not (count := sum(size * 8 // BITS.get(kind, 8) for kind, size in weights.items())):
        return ""
    for unit, amount in (("B", 10**9), ("M", 10**6)):
        if count >= amount:
            return f"{count / amount:.1f}{unit}"
    return f"{count / 1000:.0f}K"


def quantization_of(files: ModelFiles, weights: Mapping[str, int]) -> str:
    """Return the precision of most of the weights, such as ``int4``; empty if nothing tells."""
    config = (files.json("openvino_config.json") or {}).get("quantization_config")
    if isinstance(config, dict) and isinstance(config.get("bits"), int):
        return f"int{config['bits']}"
    if found := PRECISION.search(files.identifier):
        return found[1].lower()
    most = max(weights, key=lambda kind: weights[kind], default="")
    return NAMES.get(most, most)


def weights_of(folder: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes of constants by type, from the IR files that describe the model; none for GGUF."""
    weights: Counter[str] = Counter()
    for path in sizes:
        if path.endswith(".xml") and "tokenizer" not in path:
            for kind, _, size in set(CONSTANT.findall((folder / path).read_bytes())):
                if kind.decode() in BITS:
                    weights[kind.decode()] += int(size)
    return dict(weights)


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
