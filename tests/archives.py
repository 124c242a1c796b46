"""Archives in the layout of OVMS's releases, a web server that serves them well or badly, and a platform of them."""

from __future__ import annotations

import hashlib
import io
import random
import stat
import sys
import tarfile
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Self

from ovms_kernel.engine.ovms_linux import launch_on_linux
from ovms_kernel.values import Release

if TYPE_CHECKING:
    from pathlib import Path

    from ovms_kernel.values import Host, Installation, LaunchPlan, Ports, Requirement

LAUNCHER = f"""#!/bin/sh
# What bin/ovms would be; the library path and so on are the platform's, the Python is the tests'.
[ "$*" = --version ] && [ -n "{{says}}" ] && echo "OpenVINO Model Server {{says}}" && exit
exec env -u PYTHONPATH -u LD_LIBRARY_PATH {sys.executable} {{engine}} "$@"
"""
MISBEHAVING = "-m ovms_kernel.testing.misbehaving --how=version=@VERSION@,@HOW@"
TOKENIZERS_LINK = "lib/python/openvino_tokenizers/lib/libopenvino_tokenizers.so"
"""The one absolute link in the archives with Python: Dockerfile.ubuntu makes it and create_package.sh copies it."""
EMBEDDED = "-I -m ovms_embedded"
"""The embedded engine, which would tell its own version, so that the launcher has to tell the archive's."""


def linux_archive(
    path: Path,
    version: str = "2026.3.0",
    *,
    how: str = "",
    engine: str = MISBEHAVING,
    python: bool = True,
    padding: int = 0,
) -> str:
    """Write a ``.tar.gz`` with the names, links and modes of the vendor's and return its SHA-256.

    Its ``ovms`` starts an engine in Python.

    :param padding: bytes that do not compress, so that a download takes some time.
    """
    command = engine.replace("@HOW@", how).replace("@VERSION@", version)
    launcher = LAUNCHER.format(engine=command, says=version if engine == EMBEDDED else "")
    noise = random.Random(version).randbytes(padding)
    files: dict[str, bytes] = {
        "bin/ovms": launcher.encode(),
        "include/ovms.h": b"header",
        "lib/libopenvino.so.2630": noise or b"library",
        "lib/libopenvino_tokenizers.so": b"tokenizers",
        "lib/libazurestorage.so": b"azure",
        "lib/plugins.xml": b"<ie/>",
        "share/espeak-ng-data/phontab": b"p",
        "thirdparty-licenses/openvino.LICENSE.txt": b"Apache",
        "LICENSE": b"Apache",
        "metadata.json": b"{}",
    }
    links = {"lib/libopenvino.so": "libopenvino.so.2630", "lib/libazurestorage.so.7": "libazurestorage.so"}
    if python:
        files |= {
            "bin/convert_tokenizer": b"#!/usr/bin/python3\n",
            "lib/python/pyovms.so": b"module",
            "lib/python/openvino_tokenizers/__init__.py": b"",
        }
        links[TOKENIZERS_LINK] = "/ovms/lib/libopenvino_tokenizers.so"
    _write_tar(path, files, links)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_tar(path: Path, files: dict[str, bytes], links: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for folder in sorted({"", *(parent for name in (*files, *links) for parent in _parents(name))}):
            tar.addfile(_entry(folder, tarfile.DIRTYPE, 0o755))
        for name, data in files.items():
            info = _entry(name, tarfile.REGTYPE, 0o555 if name.startswith(("bin/", "lib/")) else 0o444)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in links.items():
            info = _entry(name, tarfile.SYMTYPE, 0o777)
            info.linkname = target
            tar.addfile(info)


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    """Return an entry below ``ovms``, owned by root as in the vendor's archives."""
    info = tarfile.TarInfo(f"ovms/{name}".rstrip("/"))
    info.type, info.mode, info.uname, info.gname = kind, mode, "root", "root"
    return info


def _parents(name: str) -> list[str]:
    return [each.as_posix() for each in PurePosixPath(name).parents if each.as_posix() != "."]


def windows_archive(path: Path, *, backslashes: bool = False) -> str:
    """Write a ``.zip`` as OVMS's releases are packed and return its SHA-256."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("ovms/ovms.exe", "ovms/openvino.dll", "ovms/python/python.exe", "ovms/espeak-ng-data/phontab"):
            # ZipInfo would turn backslashes round, as zip wants it; some makers do not.
            info = zipfile.ZipInfo(name)
            info.filename = name.replace("/", "\\") if backslashes else name
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, name)
    return hashlib.sha256(path.read_bytes()).hexdigest()


LOOK = "bytes=0-3"
"""The range by which an install finds out how large an archive is, and whether it is one."""


@dataclass
class ArchiveServer:
    """Serves a folder; what it does wrong is said per test.

    ``with ArchiveServer(folder) as server``; ``server.url`` is a mirror.
    """

    folder: Path
    cut_after: list[int] = field(default_factory=list)
    """For each of the next answers with a part of a file: how many bytes before the connection breaks."""
    ranges: bool = True
    strong: bool = True
    """Whether it sends an ETag that can be resumed by."""
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    """Fixed answers by path: status, headers, body."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and ``Range`` of every request."""
    sent: int = 0
    """Bytes of archives that were sent."""
    hold: threading.Event | None = None
    """If set, an answer stops in the middle until the event is set."""
    halfway: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                """Leave it to the test's server."""
                owner.serve(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: object) -> None:
                """Say nothing of clients that went away."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.hold:
            self.hold.set()
        self._server.shutdown()
        self._server.server_close()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        wanted = request.headers.get("range", "")
        self.requests.append((request.path, wanted))
        if request.path in self.answers:
            status, headers, body = self.answers[request.path]
            self._answer(request, status, headers, body)
            return
        file = self.folder / request.path.lstrip("/")
        if not file.is_file():
            self._answer(request, 404, {"content-type": "text/html"}, b"<html>not found</html>")
            return
        data = file.read_bytes()
        headers = {"content-type": "application/octet-stream", "etag": self._etag(data)}
        begin, end = 0, len(data)
        status = 200
        if wanted and self.ranges and request.headers.get("if-range", headers["etag"]) == headers["etag"]:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(data)) + 1, len(data))
            if begin >= len(data):
                self._answer(request, 416, {"content-range": f"bytes */{len(data)}"}, b"")
                return
            headers["content-range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            status = 206
        is_look = wanted == LOOK
        cut = self.cut_after.pop(0) if self.cut_after and not is_look else None
        self._answer(request, status, headers, data[begin:end], cut)

    def _etag(self, data: bytes) -> str:
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        return tag if self.strong else f"W/{tag}"

    def _answer(
        self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, cut: int | None = None
    ) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("content-length", str(len(body)))
        request.end_headers()
        part = body if cut is None else body[:cut]
        if self.hold and status in (200, 206) and len(body) > 1000:
            request.wfile.write(part[: len(part) // 2])
            request.wfile.flush()
            self.sent += len(part) // 2
            self.halfway.set()
            self.hold.wait()
            part = part[len(part) // 2 :]
        request.wfile.write(part)
        request.wfile.flush()
        self.sent += len(part)
        if cut is not None:
            request.close_connection = True
            request.connection.close()


class PackedPlatform:
    """A platform whose releases are archives of this module.

    :param mirrors: where the archives are.
    :param fields: further fields of each release.
    """

    def __init__(self, *mirrors: str, fit: int = 1000, **fields: Any) -> None:
        self.mirrors = mirrors
        self.fit = fit
        self.fields = fields
        self.lacks: list[Requirement] = []
        """What the system lacks, as the test says."""

    def matches(self, host: Host) -> int:
        """Return the fit that the test says."""
        del host
        return self.fit

    def release(self, host: Host | None, version: str) -> Release:
        """Return the archive of a version."""
        del host
        version = version or "2026.3.0"
        fields: dict[str, Any] = {"mirrors": self.mirrors} | self.fields
        return Release(version, f"ovms_ubuntu24_{version}_python_on.tar.gz", **fields)

    async def requirements(self, installation: Installation) -> list[Requirement]:
        """Return what the test says."""
        del installation
        return self.lacks

    def launch(self, installation: Installation, ports: Ports) -> LaunchPlan:
        """Return how to start it."""
        del ports
        return launch_on_linux(installation)
