"""Unpacks an engine's archive as if somebody hostile had made it.

Nothing is written outside the folder, whatever the names say: no absolute paths, no ``..``, no links that lead out, no
file behind a link, no devices, and bounds for size, count and ratio. Links that stay inside are kept, as OVMS's
libraries need them. tar's own data filter is applied as well; the rules here also hold for zip, and for the Pythons
whose filter had gaps.
"""

from __future__ import annotations

import errno
import lzma
import os
import posixpath
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from ovms_kernel.errors import BadRequest, PreconditionFailed
from ovms_kernel.values import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BLOCK = 1 << 20
"""Bytes per read and write."""
REPORT_STEP = 8 << 20
"""Bytes between two reports."""
RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(1, 10))})
"""What Windows takes for a device, whatever the folder."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may hold; an OVMS release has about 1 GB in a few thousand files."""

    size: int = 16 << 30
    """Bytes of all files."""
    count: int = 100_000
    ratio: int = 200
    """Bytes of all files by bytes of the archive; it counts from 64 MiB on."""


@dataclass(slots=True)
class _Checker:
    """Sees every entry before it is written; refuses the archive rather than skip what is wrong in it."""

    archive: Path
    limits: Limits
    top: str = ""
    """How absolute links name the archive's own top folder, such as ``/ovms/``; empty = no absolute link is allowed."""
    folders: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    passed: dict[str, str] = field(default_factory=dict)
    """Folders that the target of a link passes through, and that link."""
    size: int = 0
    count: int = 0

    def refuse(self, why: str) -> BadRequest:
        return BadRequest(f"The archive {self.archive.name} {why}, so it is not unpacked; get it from its vendor.")

    def admit(self, name: str, kind: str, size: int, target: str = "") -> str:
        """Return the entry's path, normalised; ``kind`` is ``folder``, ``file`` or ``link``.

        :param target: of a link, as ``link_target`` returns it.
        """
        path = self._path(name)
        key = _key(path)
        self.count += 1
        self.size += size
        if self.count > self.limits.count:
            raise self.refuse(f"holds more than {self.limits.count} entries")
        if size < 0 or self.size > self.limits.size:
            raise self.refuse(f"would take more than {self.limits.size >> 20} MiB")
        if self.size > max(64 << 20, self.limits.ratio * self.archive.stat().st_size):
            raise self.refuse(f"grows more than {self.limits.ratio} fold")
        parents = list(_parents(key))
        if any(each in self.links or each in self.files for each in parents):
            raise self.refuse(f"holds {name!r}, which lies behind a link or a file")
        self.folders.update(parents)
        if key in self.links or key in self.files or (kind != "folder" and (not key or key in self.folders)):
            raise self.refuse(f"holds {name!r} twice")
        if kind == "link":
            self._check_target(path, target)
        {"folder": self.folders, "file": self.files, "link": self.links}[kind].add(key)
        return path

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
        if os.name == "nt" and any(":" in part or part.partition(".")[0].lower() in RESERVED for part in parts):
            raise self.refuse(f"holds the path {name!r}, which Windows cannot have")
        return "/".join(parts)

    def link_target(self, path: str, target: str) -> str:
        """Return where a link is to point; one below ``top`` becomes relative, every other one stays as it is."""
        name = self.top.strip("/")
        if name and target.startswith(self.top) and path.startswith(f"{name}/"):
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
                self.passed[_key("/".join(at))] = path
        if last == ".." and not at:
            raise self.refuse(f"holds the link {path!r} to {target!r}, which leads out of the folder")


def _key(path: str) -> str:
    """Return what two paths share if they are one file here."""
    return path.casefold() if os.name == "nt" or sys.platform == "darwin" else path


def _is_absolute(name: str) -> bool:
    return not name or "\0" in name or name[0] in "/\\" or name[1:2] == ":"


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def extract(
    archive: Path, into: Path, report: Callable[[Progress], None], limits: Limits | None = None, *, top: str = ""
) -> int:
    """Unpack a ``.tar.gz`` or ``.zip`` into a folder that is new or empty; return the bytes written.

    :param top: how absolute links name the archive's own top folder; OVMS's archives are made from ``/ovms/``.
    :raises BadRequest: it is no archive, damaged, or holds what no honest archive holds.
    :raises PreconditionFailed: the disk is full.
    """
    checker = _Checker(archive, limits or Limits(), top)
    into.mkdir(parents=True, exist_ok=True)
    unpack = _unzip if archive.suffix == ".zip" else _untar
    try:
        unpack(archive, into, checker, report)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise checker.refuse(f"is damaged ({' '.join(str(error).split()) or type(error).__name__})") from error
    except OSError as error:
        if error.errno is None:  # what gzip calls a bad file
            raise checker.refuse(f"is damaged ({error})") from error
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise PreconditionFailed(f"The engine cannot be unpacked into {into} ({why}); mend that and retry.") from error
    checker.finish()
    return checker.size


def _untar(archive: Path, into: Path, checker: _Checker, report: Callable[[Progress], None]) -> None:
    total = archive.stat().st_size
    with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar:
        told = 0

        def tell(_: int) -> None:
            nonlocal told
            if (at := raw.tell()) - told >= REPORT_STEP:
                told = at
                report(Progress("extracting", at, total, archive.name))

        for member in tar:
            if member.isdir():
                into.joinpath(checker.admit(member.name, "folder", 0)).mkdir(parents=True, exist_ok=True)
                continue
            if not member.isreg() and not member.issym():
                kind = "hard link" if member.islnk() else "device or special file"
                raise checker.refuse(f"holds the {kind} {member.name!r}")
            kind = "file" if member.isreg() else "link"
            target = checker.link_target(member.name, member.linkname)
            path = into / checker.admit(member.name, kind, member.size, target)
            tarfile.data_filter(member.replace(linkname=target, deep=False), str(into))
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "link":
                path.symlink_to(target)
            elif source := tar.extractfile(member):
                _write(source, path, tell, executable=bool(member.mode & 0o111))
    report(Progress("extracting", total, total, archive.name))


def _unzip(archive: Path, into: Path, checker: _Checker, report: Callable[[Progress], None]) -> None:
    with zipfile.ZipFile(archive) as opened:
        plan = [(entry, *_zip_entry(opened, entry, checker)) for entry in opened.infolist()]
        total = checker.size
        room = shutil.disk_usage(into).free
        if room < total:
            raise PreconditionFailed(
                f"{total >> 20} MiB are needed in {into.parent} and {room >> 20} MiB are free; make room and retry."
            )
        done = told = 0

        def tell(written: int) -> None:
            nonlocal done, told
            done += written
            if done - told >= REPORT_STEP:
                told = done
                report(Progress("extracting", done, total, archive.name))

        for entry, kind, name in plan:
            path = into / name
            if kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "link":
                path.symlink_to(checker.link_target(name, opened.read(entry).decode()))
                continue
            with opened.open(entry) as source:
                _write(source, path, tell, executable=bool((entry.external_attr >> 16) & 0o111))
    report(Progress("extracting", total, total, archive.name))


def _zip_entry(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, checker: _Checker) -> tuple[str, str]:
    """Check one entry of a zip; return its kind and name."""
    name = entry.filename.replace("\\", "/")  # some makers of zips on Windows write these
    mode = stat.S_IFMT(entry.external_attr >> 16)
    if entry.flag_bits & 1:
        raise checker.refuse(f"holds {name!r} encrypted")
    if name.endswith("/"):
        return "folder", checker.admit(name, "folder", 0)
    if mode not in (0, stat.S_IFREG, stat.S_IFLNK):
        raise checker.refuse(f"holds the device or special file {name!r}")
    if mode == stat.S_IFLNK:
        if entry.file_size > 4096:
            raise checker.refuse(f"holds the link {name!r} with a target of {entry.file_size} bytes")
        try:
            target = opened.read(entry).decode()
        except UnicodeDecodeError as error:
            raise checker.refuse(f"holds the link {name!r} with an unreadable target") from error
        return "link", checker.admit(name, "link", 0, checker.link_target(name, target))
    return "file", checker.admit(name, "file", entry.file_size)


def _write(source: IO[bytes], path: Path, tell: Callable[[int], None], *, executable: bool) -> None:
    """Write a file that must be new; ``x`` does not follow a link either."""
    with path.open("xb", buffering=0) as target:
        while block := source.read(BLOCK):
            tell(target.write(block))
        if executable and os.name == "posix":
            os.fchmod(target.fileno(), 0o755)
