"""What we note beside a published model: where it came from, its files with their digests, and the graph we wrote.

The note is written last before a model is published, so a folder that has one is complete.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ovms_kernel.files import read_json, size_of, write_atomically
from ovms_kernel.models.files import GRAPH, METADATA, manifest_digest
from ovms_kernel.models.graph import is_edited
from ovms_kernel.values import LocalModel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

VERSION = 1


@dataclass(frozen=True, slots=True)
class Metadata:
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
    published: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    graph: str = ""
    """SHA-256 of ``graph.pbtxt`` as we wrote it; empty if it came with the model. Any other content is a user's."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Calculator options that the caller gave with the pull or import."""
    damaged: tuple[str, ...] = ()
    """Files that the last verification found changed; the next pull fetches them again."""
    pinned: bool = False
    """A person wants it to stay loaded."""
    keep: float | None = None
    """Seconds that a person wants it to stay loaded after its last use, negative = for ever."""
    load_bytes: int = 0
    """What its last load took of the engine's memory; 0 if that is not known."""
    format: str = "openvino"
    family: str = ""
    parameter_size: str = ""
    quantization: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())


def read_metadata(folder: Path) -> Metadata | None:
    """Return the note in a model's folder; ``None`` if there is none that can be used."""
    value = read_json(folder / METADATA)
    if value is None or value.pop("version", None) != VERSION:
        return None
    try:
        files = {str(path): (int(size), str(sha256)) for path, (size, sha256) in value.pop("files").items()}  # type: ignore[attr-defined]
        metadata = Metadata(files=files, **value)  # type: ignore[arg-type]
        datetime.fromisoformat(metadata.published)
        return metadata
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write the note into a model's folder, atomically."""
    value = {"version": VERSION} | asdict(metadata)
    write_atomically(folder / METADATA, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def is_whole(folder: Path, metadata: Metadata) -> bool:
    """Tell whether every file is there with its size, and none was found damaged; nothing is read."""
    sizes = ((folder / path, size) for path, (size, _) in metadata.files.items())
    return not metadata.damaged and all(size_of(file) == size for file, size in sizes)


def local_model(folder: Path, metadata: Metadata) -> LocalModel:
    """Return the model in that folder as the kernel hands it around."""
    return LocalModel(
        id=metadata.id,
        directory=folder,
        model_type=metadata.type,
        size=metadata.size,
        digest=manifest_digest(metadata.files),
        modified=datetime.fromisoformat(metadata.published),
        format=metadata.format,
        family=metadata.family,
        parameter_size=metadata.parameter_size,
        quantization=metadata.quantization,
    )


def describe(folder: Path, metadata: Metadata) -> dict[str, Any]:
    """Return everything about a model, for people and as JSON."""
    model = local_model(folder, metadata)
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
        "hub": metadata.hub,
        "revision": metadata.revision,
        "source": metadata.source,
        "options": dict(metadata.options),
        "files": [{"path": path, "size": size, "sha256": sha} for path, (size, sha) in metadata.files.items()],
        "graph": (folder / GRAPH).read_text("utf-8") if (folder / GRAPH).exists() else "",
        "graph_edited": is_edited(folder, metadata.graph),
    }
