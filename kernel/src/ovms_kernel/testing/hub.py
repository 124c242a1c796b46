"""A hub on this machine that behaves as ModelScope's file API does towards its real client, and misbehaves on demand.

``python -m ovms_kernel.testing.hub FOLDER`` prints its address and serves every ``FOLDER/<owner>/<name>`` until its
stdin ends.

What the client uses: ``/api/v1/models/<id>/repo/files`` lists with size and SHA-256; ``/api/v1/models/<id>/repo`` gives
a file: small ones directly and whole, whatever range is asked for; large ones through a redirect to a store that knows
ranges. Errors are JSON with ``Code`` and ``Message``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping

API = re.compile(r"/api/v1/models/(.+)/repo(/files)?$")
DIRECT = 4096
"""Files up to this size come directly, without a redirect and without ranges."""
PIECE = 64 << 10


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to go wrong with one request for a file."""

    kind: Literal["status", "cut", "stall", "corrupt", "whole", "other_size", "html"]
    value: int = 0
    """Status code, bytes before the cut or stall, or the size claimed."""
    retry_after: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One request for a file's bytes, as the store saw it."""

    path: str
    start: int
    end: int
    """Last byte asked for."""


@dataclass
class _Repo:
    files: dict[str, Path] = field(default_factory=dict)
    listed: list[dict[str, Any]] = field(default_factory=list)
    token: str = ""


class FakeHub:
    """The server; a context manager. Its fields may be changed while it runs.

    :param rate: bytes per second on each connection; 0 = as fast as it goes.
    :param tls: to speak HTTPS.
    """

    handler: ClassVar[type[Handler]]

    def __init__(self, rate: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.rate = rate
        self.latency = 0.0
        """Seconds before each answer."""
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        """By path of the file, ``listing`` for the listing; each is used once, in order."""
        self.requests: list[Request] = []
        self.paths: list[str] = []
        """Path and query of every request."""
        self.listings = 0
        self.connections = 0
        """Open transfers right now."""
        self.most_connections = 0
        self.sent = 0
        """Bytes of files that were sent."""
        self.raw: bytes | Iterator[bytes] | None = None
        """What every request for a listing is answered with instead; an iterator is sent piece by piece."""
        self.refuse_all = 0
        """A status for every request, while it is not 0."""
        self.repos: dict[tuple[str, str], _Repo] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        handler = type("Handler", (self.handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._scheme = "https" if tls else "http"
        if tls:
            # Hands are shaken with the first read, in the connection's own thread: a silent client holds up nobody.
            listening = self._server.socket
            self._server.socket = tls.wrap_socket(listening, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        """Its address, to be used as the client's endpoint."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def add(
        self, model: str, source: Path | Mapping[str, Path], *, revision: str = "master", token: str = ""
    ) -> list[dict[str, Any]]:
        """Offer a model: all files below a folder, or those given; return its listing, which may be changed."""
        if isinstance(source, Path):
            files = {each.relative_to(source).as_posix(): each for each in sorted(source.rglob("*")) if each.is_file()}
        else:
            files = dict(source)
        folders = sorted({str(Path(path).parent.as_posix()) for path in files if "/" in path})
        listed = [{"Path": each, "Name": Path(each).name, "Type": "tree", "Size": 0, "Sha256": ""} for each in folders]
        listed += [_entry(path, file) for path, file in files.items()]
        self.repos[model, revision] = _Repo(files, listed, token)
        return listed

    def fault(self, path: str, *faults: Fault) -> None:
        """Let the next requests for that path go wrong."""
        self.faults[path].extend(faults)

    # -- for the handler -------------------------------------------------------------------------------------------

    def repo(self, model: str, revision: str) -> _Repo | None:
        """Return what is offered under that name."""
        return self.repos.get((model, revision))

    def next_fault(self, path: str) -> Fault | None:
        """Return what is to go wrong now."""
        with self._lock:
            return self.faults[path].popleft() if self.faults[path] else None

    def begin(self, request: Request) -> None:
        """Note the begin of a transfer."""
        with self._lock:
            self.requests.append(request)
            self.connections += 1
            self.most_connections = max(self.most_connections, self.connections)

    def finish(self, sent: int) -> None:
        """Note the end of a transfer."""
        with self._lock:
            self.connections -= 1
            self.sent += sent

    def wait(self, seconds: float) -> bool:
        """Wait, but not beyond the server's end; return whether it ends."""
        return self._closing.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the base class's types
        """Say nothing of connections that the client broke: that is what is tested."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers as ModelScope does; another hub overrides ``answer``."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"
    wbufsize = 0
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""

    def do_GET(self) -> None:
        """Answer one request."""
        hub, url = self.hub, urlsplit(self.path)
        hub.paths.append(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        if hub.latency:
            hub.wait(hub.latency)
        if hub.refuse_all:
            self.error(hub.refuse_all, "refused")
        elif url.path.startswith("/store/"):
            model, revision, path = (unquote(part) for part in url.path.removeprefix("/store/").split("/", 2))
            self.give(model, revision, path, ranges=True)
        elif hub.raw is not None:
            self.send_raw(hub.raw)
        else:
            self.answer(url.path, query)

    def send_raw(self, content: bytes | Iterator[bytes]) -> None:
        """Send what a hub should not, without a length if it comes in pieces; gzip is said to be gzip."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        if isinstance(content, bytes):
            self.send_header("Content-Length", str(len(content)))
            if content.startswith(b"\x1f\x8b"):
                self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        with suppress(OSError):
            for piece in [content] if isinstance(content, bytes) else content:
                self.wfile.write(piece)

    def answer(self, path: str, query: dict[str, str]) -> None:
        """Answer a request to the hub itself."""
        if found := API.match(unquote(path)):
            self._api(found[1], query.get("Revision", "master"), query, listing=bool(found[2]))
        else:
            self.error(404, "no such page")

    def _api(self, model: str, revision: str, query: dict[str, str], *, listing: bool) -> None:
        repo = self.hub.repo(model, revision)
        path = "listing" if listing else query.get("FilePath", "")
        if repo is None or (not listing and path not in repo.files):
            self.error(404, "The model or file does not exist")
        elif self.is_refused(repo):
            self.error(401 if self.headers.get("Authorization") else 403, "access denied")
        elif listing:
            self.hub.listings += 1
            if fault := self.hub.next_fault(path):
                self.error(fault.value, "listing failed", fault.retry_after)
            else:
                self.json(200, {"Code": 200, "Success": True, "Message": "success", "Data": {"Files": repo.listed}})
        elif repo.files[path].stat().st_size <= DIRECT:
            self.give(model, revision, path, ranges=False)
        else:
            self.redirect(model, revision, path)

    def is_refused(self, repo: _Repo) -> bool:
        """Tell whether a request lacks the token that a model needs."""
        return bool(repo.token) and self.headers.get("Authorization") != f"Bearer {repo.token}"

    def redirect(self, model: str, revision: str, path: str) -> None:
        """Send the client to the store, which knows ranges."""
        self.send_response(302)
        self.send_header("Location", "/store/" + "/".join(quote(part, safe="") for part in (model, revision, path)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def give(self, model: str, revision: str, path: str, *, ranges: bool) -> None:
        """Send a file or a part of it, or what is to go wrong instead."""
        repo = self.hub.repo(model, revision)
        if repo is None or path not in repo.files:
            self.error(404, "gone")
            return
        file = repo.files[path]
        size = file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), int(asked[2] or size - 1)) if asked else (0, size - 1)
        fault = self.hub.next_fault(path) or Fault("status", 200)
        if fault.kind == "status" and fault.value != 200:
            self.error(fault.value, "fault", fault.retry_after)
            return
        if fault.kind == "html":
            self.body(200, b"<html>sign in</html>", "text/html")
            return
        partial = asked is not None and ranges and fault.kind != "whole"
        if not partial:
            start, end = 0, size - 1
        elif start >= size:
            self.error(416, "range", extra={"Content-Range": f"bytes */{size}"})
            return
        end = min(end, size - 1)
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(end - start + 1))
        self.send_header("Content-Type", "application/octet-stream")
        if partial:
            claimed = fault.value if fault.kind == "other_size" else size
            self.send_header("Content-Range", f"bytes {start}-{end}/{claimed}")
        self.end_headers()
        self.hub.begin(Request(path, start, end))
        sent = 0
        try:
            sent = self._send(file, start, end, fault)
        finally:
            self.hub.finish(sent)

    def _send(self, file: Path, start: int, end: int, fault: Fault) -> int:
        position, began = start, time.monotonic()
        stop = start + fault.value if fault.kind in ("cut", "stall") else end + 1
        with file.open("rb") as stream:
            if not self.hub.rate and fault.kind == "status":
                with suppress(ConnectionError):
                    self.connection.sendfile(stream, start, end - start + 1)
                return end - start + 1
            while position <= end:
                if position >= stop:
                    if fault.kind == "stall":
                        self.hub.wait(60)
                    self.close_connection = True
                    with suppress(OSError):
                        self.connection.shutdown(socket.SHUT_RDWR)
                    break
                stream.seek(position)
                piece = stream.read(min(PIECE, end + 1 - position, stop - position))
                if fault.kind == "corrupt":
                    piece = bytes(each ^ 255 for each in piece)
                self.wfile.write(piece)
                position += len(piece)
                if self.hub.rate:
                    due = began + (position - start) / self.hub.rate
                    if self.hub.wait(max(0.0, due - time.monotonic())):
                        break
        return position - start

    def error(self, status: int, text: str, retry_after: str = "", extra: Mapping[str, str] | None = None) -> None:
        """Send an error."""
        headers = dict(extra or {}) | ({"Retry-After": retry_after} if retry_after else {})
        self.json(status, {"Code": status, "Success": False, "Message": text}, headers)

    def json(self, status: int, value: Any, extra: Mapping[str, str] | None = None) -> None:  # noqa: ANN401
        """Send JSON."""
        self.body(status, json.dumps(value).encode(), "application/json", extra)

    def body(self, status: int, data: bytes, content_type: str, extra: Mapping[str, str] | None = None) -> None:
        """Send an answer."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


FakeHub.handler = Handler


def _entry(path: str, file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    size = file.stat().st_size
    name = Path(path).name
    return {"Path": path, "Name": name, "Type": "blob", "Size": size, "Sha256": digest, "IsLFS": size > DIRECT}


def main() -> None:
    """Serve a folder of models until the standard input ends."""
    root = Path(sys.argv[1])
    with FakeHub(rate=int(os.environ.get("FAKE_HUB_RATE", "0"))) as hub:
        for folder in sorted(root.glob("*/*")):
            hub.add(folder.relative_to(root).as_posix(), folder)
        print(hub.url, flush=True)  # noqa: T201 - the process that started it reads this
        sys.stdin.read()


if __name__ == "__main__":
    main()
