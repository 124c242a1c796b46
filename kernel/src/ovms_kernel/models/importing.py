"""Reading a model from a folder or an archive on this machine."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from ovms_kernel.errors import BadRequest, OvmsError
from ovms_kernel.models.files import CHUNK, GRAPH, METADATA, walk
from ovms_kernel.models.names import check_file_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ovms_kernel.models.work import Meter

MAX_MEMBERS = 10_000
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is read from: a folder, or one folder in an archive."""

    path: Path
    sizes: Mapping[str, int]
    """Bytes by the relative path that a file is to have."""
    members: Mapping[str, str] | None = None
    """Names in the archive by relative path; ``None`` for a folder."""
    graph: bool = False
    """It brings a graph of its own, which is kept."""


def open_source(path: Path) -> Source:
    """Look into a folder or archive without changing anything.

    :raises BadRequest: it is neither, or it holds something that has no place in a model.
    """
    path = path.expanduser().absolute()
    if path.is_dir():
        sizes = {name: status.st_size for name, status in walk(path) if not name.startswith(".")}
        return Source(path, sizes, graph=(path / GRAPH).is_file())
    if not path.is_file():
        raise BadRequest(f"{path} does not exist; give a folder or an archive that holds a model.")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _from_members(path, ((each.filename, each.file_size) for each in _plain_zip(archive, path)))
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                return _from_members(path, ((each.name, each.size) for each in _plain_tar(archive, path)))
    except (*DAMAGED, OSError, ValueError) as error:
        raise BadRequest(f"{path} is damaged ({' '.join(str(error).split())}); get it again.") from error
    raise BadRequest(f"{path} is neither a folder nor a zip or tar archive.")


def copy_into(source: Source, into: Path, meter: Meter) -> dict[str, tuple[int, str]]:
    """Copy every file, and the graph if it brings one; return size and SHA-256 of each file but the graph."""
    try:
        return _copy(source, into, meter)
    except DAMAGED as error:
        raise BadRequest(f"{source.path} is damaged ({' '.join(str(error).split())}); get it again.") from error
    except OSError as error:
        raise OvmsError(f"{source.path} could not be copied ({error.strerror}); check the disk.") from error


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
    names = [*source.sizes, GRAPH] if source.graph else [*source.sizes]
    if source.members is None:
        for name in names:
            with (source.path / name).open("rb") as stream:
                yield name, stream
    elif zipfile.is_zipfile(source.path):
        with zipfile.ZipFile(source.path) as archive:
            for name in names:
                with archive.open(source.members[name]) as content:
                    yield name, content
    else:
        wanted = {member: name for name, member in source.members.items() if name in names}
        with tarfile.open(source.path) as archive:
            for member in archive:
                # Only in the order of the archive: a compressed one cannot be read otherwise in good time.
                if member.name in wanted and (unpacked := archive.extractfile(member)) is not None:
                    with unpacked:
                        yield wanted[member.name], unpacked


def _plain_zip(archive: zipfile.ZipFile, path: Path) -> Iterator[zipfile.ZipInfo]:
    for member in archive.infolist():
        if member.flag_bits & 1:
            raise BadRequest(f"{path} is encrypted; unpack it and import the folder.")
        if (member.external_attr >> 16) & 0o170000 == 0o120000:
            raise BadRequest(f"{member.filename!r} in {path} is a link; import the unpacked folder instead.")
        if not member.is_dir():
            yield member


def _plain_tar(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        if member.isreg():
            yield member
        elif not member.isdir():
            raise BadRequest(f"{member.name!r} in {path} is a link or device; import the unpacked folder instead.")


def _from_members(path: Path, members: Iterator[tuple[str, int]]) -> Source:
    """Find the one folder of the archive that holds the model, and check every name."""
    names: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for member, size in members:
        name = check_file_path(member.removeprefix("./"), str(path))
        if name in names:
            raise BadRequest(f"{name!r} stands twice in {path}; get the archive again.")
        names[name], sizes[name] = member, size
        if len(sizes) > MAX_MEMBERS:
            raise BadRequest(f"{path} holds more than {MAX_MEMBERS} files, too many for a model.")
    while names and all("/" in name for name in names) and len({name.split("/", 1)[0] for name in names}) == 1:
        names = {name.split("/", 1)[1]: member for name, member in names.items()}
        sizes = {name.split("/", 1)[1]: size for name, size in sizes.items()}
    kept = {name: size for name, size in sizes.items() if name not in (GRAPH, METADATA) and not name.startswith(".")}
    wanted = {name: member for name, member in names.items() if name in kept or name == GRAPH}
    return Source(path, kept, wanted, GRAPH in names)
