"""Reading a model from a folder or an archive on this machine."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from typing import IO, TYPE_CHECKING

import msgspec

from ovms_kernel.errors import BadRequest
from ovms_kernel.fetch.archive import MODEL, damage_in_words, opened
from ovms_kernel.fetch.names import check_file_path, is_junk
from ovms_kernel.files import CHUNK, disk_errors
from ovms_kernel.models.model_card import walk
from ovms_kernel.models.model_record import GRAPH, RECORD

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ovms_kernel.files import Meter


class Source(msgspec.Struct, frozen=True):
    """Where a model is read from: a folder, or one folder in an archive."""

    path: Path
    sizes: Mapping[str, int]
    """Bytes by the relative path that a file is to have."""
    prefix: str | None = None
    """The folder in the archive, ending with a slash unless it is the top; ``None`` for a folder on disk."""
    graph: bool = False
    """It brings a graph of its own, which is kept."""


def open_source(path: Path) -> Source:
    """Look into a folder or archive without changing anything.

    :raises BadRequest: it is neither, or it holds something that has no place in a model.
    """
    path = path.expanduser().absolute()
    if path.is_dir():
        sizes = {name: status.st_size for name, status in walk(path) if _is_wanted(name)}
        for name in sizes:
            check_file_path(name, str(path))
        return Source(path, sizes, graph=(path / GRAPH).is_file())
    if not path.is_file():
        raise BadRequest(f"{path} does not exist; give a folder or an archive that holds a model.")
    with disk_errors(f"Reading {path}"):
        if not (zipfile.is_zipfile(path) or tarfile.is_tarfile(path)):
            raise BadRequest(f"{path} is neither a folder nor a zip or tar archive; give one that holds a model.")
        with opened(path, MODEL) as archive:
            found = {entry.path: entry.size for entry, _ in archive.entries() if entry.kind == "file"}
    prefix = _common_folder(found)
    inside = {name.removeprefix(prefix): size for name, size in found.items()}
    return Source(path, {name: size for name, size in inside.items() if _is_wanted(name)}, prefix, GRAPH in inside)


def _common_folder(names: Mapping[str, int]) -> str:
    """Return the one folder that holds everything."""
    first = min(names, default="").split("/")[:-1]
    last = max(names, default="").split("/")[:-1]
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return "".join(f"{part}/" for part in first[:same])


def _is_wanted(name: str) -> bool:
    return not (name in (GRAPH, RECORD) or name.startswith(".") or is_junk(name))


def copy_into(source: Source, into: Path, meter: Meter) -> dict[str, tuple[int, str]]:
    """Copy every file, and the graph if it brings one; return size and SHA-256 of each file but the graph.

    :raises BadRequest: the source is damaged, or changed meanwhile.
    """
    with damage_in_words(source.path, MODEL):  # what is read here is read outside of the generator
        return _copy(source, into, meter)


def _copy(source: Source, into: Path, meter: Meter) -> dict[str, tuple[int, str]]:
    files = {}
    for name, stream in _streams(source):
        meter.subject = name
        digest, size = hashlib.sha256(), 0
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            while piece := stream.read(CHUNK):
                size += len(piece)
                if size > source.sizes.get(name, CHUNK):
                    raise BadRequest(f"{name} in {source.path} is longer than it says; get the model again.")
                digest.update(piece)
                file.write(piece)
                meter.advance(len(piece) if name != GRAPH else 0)
        if name != GRAPH:
            files[name] = (size, digest.hexdigest())
    if missing := source.sizes.keys() - files.keys():
        raise BadRequest(f"{min(missing)} vanished from {source.path} while it was read; try again.")
    return files


def _streams(source: Source) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the files to copy; those of an archive in its order, as a compressed one cannot be read otherwise."""
    wanted = {*source.sizes, *([GRAPH] if source.graph else [])}
    if source.prefix is None:
        for name in sorted(wanted):
            with (source.path / name).open("rb") as stream:
                yield name, stream
        return
    with opened(source.path, MODEL) as archive:
        for entry, content in archive.entries():
            name = entry.path.removeprefix(source.prefix)
            if content is not None and name in wanted:
                yield name, content
