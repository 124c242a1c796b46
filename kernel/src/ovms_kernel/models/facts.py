"""What lists of models say of a model: format, family, number of parameters, precision of the weights."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ovms_kernel.values import ModelFiles

PARAMETERS = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bBmM])(?![A-Za-z])")
"""After a separator, so that "v2M" or "int4b" do not count."""
PRECISION = re.compile(r"(?i)(?:^|[-_.])(int4|int8|fp16|bf16|fp32|q\d(?:_[0k1](?:_[sml])?)?)(?![a-z0-9])")
CONSTANT = re.compile(rb'<data element_type="(\w+)"[^>]*? offset="(\d+)" size="(\d+)"')
"""A constant in an IR file: its type, and where its bytes are among the weights; several may share them."""
BITS = {"u4": 4, "i4": 4, "nf4": 4, "u8": 8, "i8": 8, "f8e4m3": 8, "f8e5m2": 8, "f16": 16, "bf16": 16, "f32": 32}
NAMES = {"u4": "int4", "i4": "int4", "u8": "int8", "i8": "int8", "f16": "fp16", "f32": "fp32"}


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
