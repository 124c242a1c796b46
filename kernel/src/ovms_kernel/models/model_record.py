"""The record of a model, beside its files: where it came from, their digests, and the graph that was written for it.

It is written last before a model is published, so a folder that has one is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping  # noqa: TC003 - msgspec reads annotations
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import asdict

from ovms_kernel.files import read_json, size_of, write_atomically
from ovms_kernel.values import LocalModel

if TYPE_CHECKING:
    from pathlib import Path

VERSION = 1
GRAPH = "graph.pbtxt"
RECORD = ".ovms-plugin.json"
OURS = frozenset({GRAPH, RECORD})
"""Files in a model's folder that we write; they are not part of what was pulled."""


class ModelRecord(msgspec.Struct, frozen=True):
    """The content of ``.ovms-plugin.json``."""

    id: str
    type: str
    """Name of the graph driver."""
    files: Mapping[str, tuple[int, str]]
    """Size and SHA-256 of each file by relative path."""
    hub: str = ""
    """Where it was pulled from; empty for an import."""
    revision: str = ""
    """As it was asked for; empty for the hub's default."""
    source: str = ""
    """Folder or archive it was imported from."""
    published: str = msgspec.field(default_factory=lambda: datetime.now(UTC).isoformat())
    graph: str = ""
    """SHA-256 of ``graph.pbtxt`` as we wrote it; empty if it came with the model. Any other content is a user's."""
    options: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Calculator options that the caller gave with the pull or import."""
    damaged: tuple[str, ...] = ()
    """Files that the last verification found changed; the next pull fetches them again."""
    pinned: bool = False
    """A person wants it to stay loaded."""
    keep: float | None = None
    """Seconds that a person wants it to stay loaded after its last use, negative = for ever."""
    load_bytes: int = 0
    """What its last load took of the engine's memory; 0 if that is not known."""
    problem: str = ""
    """What the engine found wrong with it at its last load, though it serves it."""
    format: str = "openvino"
    family: str = ""
    parameter_size: str = ""
    quantization: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())


def read_record(folder: Path) -> ModelRecord | None:
    """Return the record in a model's folder; ``None`` if there is none that can be used."""
    value = read_json(folder / RECORD)
    if value is None or value.pop("version", None) != VERSION:
        return None
    try:
        record = msgspec.convert(value, ModelRecord)
        datetime.fromisoformat(record.published)
        return record
    except ValueError:
        return None


def write_record(folder: Path, record: ModelRecord) -> None:
    """Write the record into a model's folder, atomically."""
    value = {"version": VERSION} | asdict(record)
    write_atomically(folder / RECORD, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def is_whole(folder: Path, record: ModelRecord) -> bool:
    """Tell whether every file is there with its size, and none was found damaged; nothing is read."""
    sizes = ((folder / path, size) for path, (size, _) in record.files.items())
    return not record.damaged and all(size_of(file) == size for file, size in sizes)


def local_model(folder: Path, record: ModelRecord) -> LocalModel:
    """Return the model in that folder as the kernel hands it around."""
    return LocalModel(
        id=record.id,
        directory=folder,
        model_type=record.type,
        size=record.size,
        digest=manifest_digest(record.files),
        modified=datetime.fromisoformat(record.published),
        format=record.format,
        family=record.family,
        parameter_size=record.parameter_size,
        quantization=record.quantization,
    )


def describe(folder: Path, record: ModelRecord) -> dict[str, Any]:
    """Return everything about a model, for people and as JSON."""
    model = local_model(folder, record)
    return {
        "id": model.id,
        "type": model.model_type,
        "directory": str(folder),
        "size": model.size,
        "digest": model.digest,
        "modified": model.modified.isoformat(),
        "format": model.format,
        "family": model.family,
        "parameter_size": model.parameter_size,
        "quantization": model.quantization,
        "hub": record.hub,
        "revision": record.revision,
        "problem": record.problem,
        "source": record.source,
        "options": dict(record.options),
        "files": [{"path": path, "size": size, "sha256": sha} for path, (size, sha) in record.files.items()],
        "graph": (folder / GRAPH).read_text("utf-8") if (folder / GRAPH).exists() else "",
        "graph_edited": is_edited(folder, record.graph),
    }


def manifest_digest(files: Mapping[str, tuple[int, str]]) -> str:
    """Return one digest for a whole model: of the sorted list of its files, with size and SHA-256 of each."""
    lines = (f"{path}\0{size}\0{sha256}\n" for path, (size, sha256) in sorted(files.items()))
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def graph_digest(folder: Path) -> str:
    """Return the SHA-256 of a folder's ``graph.pbtxt`` as hex; empty if it has none."""
    try:
        return hashlib.sha256((folder / GRAPH).read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def is_edited(folder: Path, written: str) -> bool:
    """Tell whether a folder has a graph other than the one that we wrote, given by its SHA-256."""
    return graph_digest(folder) not in ("", written)
