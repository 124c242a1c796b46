"""Reads tar and zip archives, of engines and of models, as if somebody hostile had made them.

Nothing is written outside the folder, whatever the names say: no absolute paths, no ``..``, no links that lead out, no
file behind a link, no devices, and bounds for size, count and ratio. tar's own data filter is applied as well; the
rules here also hold for zip, and for the Pythons whose filter had gaps.
"""

from __future__ import annotations

import lzma
import os
import posixpath
import stat
import sys
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, BinaryIO, Literal

import msgspec

from ovms_kernel.errors import BadRequest
from ovms_kernel.fetch.names import is_junk, is_reserved, one_name, path_fault
from ovms_kernel.files import disk_error
from ovms_kernel.values import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BLOCK = 1 << 20
"""Bytes per read and write."""
REPORT_STEP = 8 << 20
"""Bytes between two reports."""
DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, UnicodeDecodeError
)  # fmt: skip


class Rules(msgspec.Struct, frozen=True):
    """What an archive may hold."""

    size: int
    """Bytes of all files."""
    count: int
    ratio: int = 200
    """Bytes of all files by bytes of the archive; it counts from 64 MiB on."""
    links: bool = True
    """Whether links that stay inside are allowed."""
    top: str = ""
    """How absolute links name the archive's own top folder, such as ``/ovms/``; empty = no absolute link is allowed."""
    portable: bool = False
    """Whether names must be possible on every system, not on this one alone."""
    advice: str = "so it is not unpacked; get it from its vendor"


ENGINE = Rules(16 << 30, 100_000, top="/ovms/")
"""An OVMS release has about 1 GB in a few thousand files, and its build makes links below ``/ovms/``."""
MODEL = Rules(4 << 40, 10_000, links=False, portable=True, advice="so it is not imported; get it again or unpack it")


class Entry(msgspec.Struct, frozen=True):
    """One entry of an archive, checked."""

    path: str
    """Relative, with forward slashes."""
    kind: Literal["folder", "file", "link"]
    size: int = 0
    target: str = ""
    """Of a link, relative."""
    executable: bool = False


@dataclass(slots=True)
class _Checker:
    """Sees every entry before it is written; refuses the archive rather than skip what is wrong in it."""

    archive: Path
    rules: Rules
    folders: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    passed: dict[str, str] = field(default_factory=dict)
    """Folders that the target of a link passes through, and that link."""
    size: int = 0
    count: int = 0

    def refuse(self, why: str) -> BadRequest:
        return BadRequest(f"The archive {self.archive.name} {why}, {self.rules.advice}.")

    def admit(
        self,
        name: str,
        kind: Literal["folder", "file", "link"],
        size: int = 0,
        target: str = "",
        *,
        executable: bool = False,
    ) -> Entry:
        """Return the entry, checked."""
        path = self._path(name)
        key = self.key(path)
        self.count += 1
        self.size += size
        if self.count > self.rules.count:
            raise self.refuse(f"holds more than {self.rules.count} entries")
        if size < 0 or self.size > self.rules.size:
            raise self.refuse(f"would take more than {self.rules.size >> 20} MiB")
        if self.size > max(64 << 20, self.rules.ratio * self.archive.stat().st_size):
            raise self.refuse(f"grows more than {self.rules.ratio} fold")
        parents = list(_parents(key))
        if any(each in self.links or each in self.files for each in parents):
            raise self.refuse(f"holds {name!r}, which lies behind a link or a file")
        self.folders.update(parents)
        if key in self.links or key in self.files or (kind != "folder" and (not key or key in self.folders)):
            raise self.refuse(f"holds {name!r} twice")
        if kind == "link":
            if not self.rules.links:
                raise self.refuse(f"holds the link {name!r}")
            target = self._inside(path, target)
            self._check_target(path, target)
        {"folder": self.folders, "file": self.files, "link": self.links}[kind].add(key)
        return Entry(path, kind, size, target, executable)

    def finish(self) -> None:
        """Refuse links whose way leads through other links: with ``..`` behind one, it may end anywhere."""
        for folder, link in self.passed.items():
            if folder in self.links:
                raise self.refuse(f"holds the link {link!r}, which leads through another link")
        if not self.files:
            raise self.refuse("holds no files")

    def _path(self, name: str) -> str:
        if _is_absolute(name):
            raise self.refuse(f"holds the absolute path {name!r}")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise self.refuse(f"holds the path {name!r}, which leads out of the folder")
        path = "/".join(parts)
        if self.rules.portable and path and (fault := path_fault(path)):
            raise self.refuse(f"holds the path {name!r}: {fault}")
        if os.name == "nt" and any(":" in part or is_reserved(part) for part in parts):
            raise self.refuse(f"holds the path {name!r}, which Windows cannot have")
        return path

    def _inside(self, path: str, target: str) -> str:
        """Return where a link is to point; one below ``top`` becomes relative, every other one stays as it is."""
        name = self.rules.top.strip("/")
        if name and target.startswith(self.rules.top) and path.startswith(f"{name}/"):
            return posixpath.relpath(target.lstrip("/"), posixpath.dirname(path))
        return target

    def _check_target(self, path: str, target: str) -> None:
        if not target or _is_absolute(target):
            raise self.refuse(f"holds the link {path!r} to {target!r}, which is not inside")
        at = path.split("/")[:-1]
        *way, last = [part for part in target.split("/") if part not in ("", ".")] or ["."]
        for part in way:
            if part == "..":
                if not at:
                    raise self.refuse(f"holds the link {path!r} to {target!r}, which leads out of the folder")
                at.pop()
            else:
                at.append(part)
                self.passed[self.key("/".join(at))] = path
        if last == ".." and not at:
            raise self.refuse(f"holds the link {path!r} to {target!r}, which leads out of the folder")

    def key(self, path: str) -> str:
        """Return what two paths share if they are one file, on this system or on any."""
        ignores_case = self.rules.portable or os.name == "nt" or sys.platform == "darwin"
        return one_name(path) if ignores_case else path


def _is_absolute(name: str) -> bool:
    return not name or "\0" in name or name[0] in "/\\" or name[1:2] == ":"


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def extract(archive: Path, into: Path, report: Callable[[Progress], None], rules: Rules = ENGINE) -> int:
    """Unpack an archive into a folder that is new or empty; return the bytes written.

    :raises BadRequest: it is no archive, damaged, or holds what no honest archive holds.
    :raises PreconditionFailed: the disk is full.
    """
    into.mkdir(parents=True, exist_ok=True)
    written = 0
    try:
        with opened(archive, rules) as reader:
            told = 0

            def tell() -> None:
                nonlocal told
                if (at := reader.position()) - told >= REPORT_STEP:
                    told = at
                    report(Progress("extracting", at, reader.size, archive.name))

            for entry, stream in reader.entries():
                path = into / entry.path
                (path if entry.kind == "folder" else path.parent).mkdir(parents=True, exist_ok=True)
                if entry.kind == "link":
                    path.symlink_to(entry.target)
                elif stream is not None:
                    written += _write(stream, path, tell, executable=entry.executable)
    except OSError as error:
        raise disk_error(f"Unpacking into {into}", error) from error
    report(Progress("extracting", reader.size, reader.size, archive.name))
    return written


@contextmanager
def opened(archive: Path, rules: Rules) -> Iterator[Reader]:
    """Open a tar or zip archive; what is wrong with it is one sentence, whenever it is found.

    :raises BadRequest: it is no archive, damaged, or holds what no honest archive holds.
    """
    checker = _Checker(archive, rules)
    with archive.open("rb") as raw, damage_in_words(archive, rules):
        if zipfile.is_zipfile(raw):
            with zipfile.ZipFile(raw) as opened_zip:
                yield Reader(raw, checker, opened_zip)
        else:
            raw.seek(0)
            with tarfile.open(fileobj=raw, mode="r:*") as opened_tar:
                yield Reader(raw, checker, opened_tar)


@contextmanager
def damage_in_words(archive: Path, rules: Rules) -> Iterator[None]:
    """Turn what tells of a damaged archive into a sentence.

    :raises BadRequest: it is damaged.
    """
    checker = _Checker(archive, rules)
    try:
        yield
    except DAMAGED as error:
        raise checker.refuse(f"is damaged ({' '.join(str(error).split()) or type(error).__name__})") from error
    except OSError as error:
        if error.errno is None:  # what gzip calls a bad file
            raise checker.refuse(f"is damaged ({error})") from error
        raise


class Reader:
    """An open archive."""

    def __init__(self, raw: BinaryIO, checker: _Checker, archive: tarfile.TarFile | zipfile.ZipFile) -> None:
        self._raw, self._checker, self._archive = raw, checker, archive
        self.size = checker.archive.stat().st_size
        """Bytes of the archive."""
        self._position = 0

    def position(self) -> int:
        """Return how many bytes of the archive are read; it never falls."""
        self._position = max(self._position, min(self._raw.tell(), self.size))
        return self._position

    def entries(self) -> Iterator[tuple[Entry, IO[bytes] | None]]:
        """Yield every entry, checked, with the content of files; what systems put beside files is left out.

        A content is read before the next entry is asked for. A zip is checked as a whole before the first one.
        """
        if isinstance(self._archive, zipfile.ZipFile):
            yield from self._zip_entries(self._archive)
        else:
            yield from self._tar_entries(self._archive)
        self._checker.finish()

    def _tar_entries(self, archive: tarfile.TarFile) -> Iterator[tuple[Entry, IO[bytes] | None]]:
        admit, refuse = self._checker.admit, self._checker.refuse
        for member in archive:
            if is_junk(member.name):
                continue
            if member.isdir():
                yield admit(member.name, "folder"), None
            elif member.issym():
                entry = admit(member.name, "link", 0, member.linkname)
                tarfile.data_filter(member.replace(linkname=entry.target, deep=False), ".")
                yield entry, None
            elif member.isreg() and not member.issparse():
                entry = admit(member.name, "file", member.size, executable=bool(member.mode & 0o111))
                tarfile.data_filter(member, ".")
                yield entry, archive.extractfile(member)
            else:
                kinds = {tarfile.LNKTYPE: "hard link", tarfile.GNUTYPE_SPARSE: "sparse file"}
                raise refuse(f"holds the {kinds.get(member.type, 'device or special file')} {member.name!r}")

    def _zip_entries(self, archive: zipfile.ZipFile) -> Iterator[tuple[Entry, IO[bytes] | None]]:
        plan = [
            (info, self._zip_entry(archive, info))
            for info in archive.infolist()
            if not is_junk(info.filename.replace("\\", "/"))
        ]
        for info, entry in plan:
            if entry.kind == "file":
                with archive.open(info) as stream:
                    yield entry, stream
            else:
                yield entry, None

    def _zip_entry(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
        admit, refuse = self._checker.admit, self._checker.refuse
        name = info.filename.replace("\\", "/")  # some makers of zips on Windows write these
        mode = info.external_attr >> 16
        if info.flag_bits & 1:
            raise refuse(f"holds {name!r} encrypted")
        if name.endswith("/"):
            return admit(name, "folder")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFLNK):
            raise refuse(f"holds the device or special file {name!r}")
        if stat.S_ISLNK(mode):
            if info.file_size > 4096:
                raise refuse(f"holds the link {name!r} with a target of {info.file_size} bytes")
            return admit(name, "link", 0, archive.read(info).decode())
        return admit(name, "file", info.file_size, executable=bool(mode & 0o111))


def _write(source: IO[bytes], path: Path, tell: Callable[[], None], *, executable: bool) -> int:
    """Write a file that must be new; ``x`` does not follow a link either."""
    written = 0
    with path.open("xb", buffering=0) as target:
        while block := source.read(BLOCK):
            written += target.write(block)
            tell()
        if executable and os.name == "posix":
            os.fchmod(target.fileno(), 0o755)
    return written
