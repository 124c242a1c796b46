"""Whether a model's files are what they seem: no Git LFS pointers, no weights that are shorter than the graph says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ovms_kernel.errors import BadRequest
from ovms_kernel.models import gguf
from ovms_kernel.models.gguf import LATER_PART

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/v1\n"
"""How a Git LFS pointer begins (git-lfs, docs/spec.md)."""
POINTER_SIZE = 1024
CONSTANT = re.compile(rb'<data element_type="\w+"[^>]*? offset="(\d+)" size="(\d+)"')
"""A constant in an IR file, and where its bytes are among the weights."""


def faults_of(folder: Path, sizes: Mapping[str, int]) -> dict[str, str]:
    """Return what is wrong with the files of a model, a sentence by path."""
    faults = {}
    for path, size in sizes.items():
        if size <= POINTER_SIZE and (folder / path).read_bytes().startswith(POINTER):
            faults[path] = (
                f"{path} is a Git LFS pointer and not the file itself; run `git lfs pull` where the model was cloned, "
                "then import it again."
            )
    for path in sizes:
        weights = path.removesuffix(".xml") + ".bin"
        if path.endswith(".xml") and weights in sizes and not {path, weights} & faults.keys():
            needed = max(
                (int(at) + int(size) for at, size in CONSTANT.findall((folder / path).read_bytes())), default=0
            )
            if sizes[weights] < needed:
                faults[weights] = f"{weights} has {sizes[weights]} bytes and {path} needs {needed}; get the file again."
    return faults


def check_sound(folder: Path, sizes: Mapping[str, int]) -> gguf.Gguf | None:
    """Refuse a model whose files are not what they seem; return the header of a GGUF model.

    :raises BadRequest: the first fault, or a GGUF file that the engine cannot load.
    """
    for fault in faults_of(folder, sizes).values():
        raise BadRequest(fault)
    header = None
    for path in sorted(sizes):
        if path.endswith(".gguf") and not LATER_PART.search(path):
            with (folder / path).open("rb") as file:
                found = gguf.read_header(file.read, path)
            if "mmproj" not in path:
                gguf.check_loadable(found, path)
                header = header or found
    return header
