"""Fetches one large file over HTTP so that any interruption only costs time.

What has arrived is kept in ``<name>.partial`` with a note of where it came from, and hashed while it is written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ovms_kernel.errors import NotFound, OvmsError, PreconditionFailed, Unavailable
from ovms_kernel.values import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedRandom
    from pathlib import Path

    import httpx

log = logging.getLogger(__name__)

BLOCK = 1 << 20
"""Bytes that are hashed and written at once."""
ATTEMPTS = 6
"""How often in a row an attempt may bring nothing."""
BACK_OFF = 0.5
"""Seconds before the second attempt; doubled each time."""
CONNECT_LIMIT = 10.0
STALL_LIMIT = 30.0
"""Seconds without a byte after which a connection counts as dead."""
MAGIC = {".zip": b"PK", ".gz": b"\x1f\x8b"}
"""How an archive begins; a page that asks for a password begins otherwise, whatever its status and type say."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the beginning of a partial file came from."""

    url: str
    validator: str
    """Strong ETag, or empty: what ``If-Range`` needs."""
    total: int
    """Bytes of the whole file; 0 if the server did not say."""


class _NotThis(OvmsError):
    """The server does not have the file, and asking again would not help."""


def open_client() -> httpx.AsyncClient:
    """Return a client that follows redirects, but never from https to http, and heeds the proxy variables."""
    import httpx

    async def guard(response: httpx.Response) -> None:
        step = response.next_request
        if step is not None and response.url.scheme == "https" and step.url.scheme != "https":
            raise _NotThis(f"leads from https to {step.url.scheme}")

    return httpx.AsyncClient(
        follow_redirects=True,
        timeout=httpx.Timeout(STALL_LIMIT, connect=CONNECT_LIMIT),
        event_hooks={"response": [guard]},
        headers={"accept-encoding": "identity", "user-agent": "ovms-plugin"},
    )


class Download:
    """One file on its way to ``target``; survives being killed at any time.

    :param trusted: a digest is known, so that the file may be put together from several mirrors.
    :param room_for: told the size once it is known; raises if there is no room.
    """

    def __init__(
        self, target: Path, report: Callable[[Progress], None], room_for: Callable[[int], None], *, trusted: bool
    ) -> None:
        self.target = target
        self.partial = target.with_name(target.name + ".partial")
        self._note = target.with_name(target.name + ".partial.json")
        self._report = report
        self._room_for = room_for
        self._trusted = trusted
        self._shown = 0
        self._hash = hashlib.sha256()
        self._origin = self._read_note()

    async def fetch(self, client: httpx.AsyncClient, url: str) -> str:
        """Fetch the file, going on where the last attempt ended; return its SHA-256 once ``partial`` is complete.

        :raises NotFound: the server does not have it.
        :raises Unavailable: the server cannot be reached or gives something else.
        :raises PreconditionFailed: the disk is full.
        """
        import httpx

        failures = 0
        while True:
            before = self._size()
            try:
                await self._attempt(client, url)
                return self._hash.hexdigest()
            except _NotThis as error:
                raise Unavailable(error.message) from error
            except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
                failures = 0 if self._size() > before else failures + 1
                cause = " ".join(str(error).split()) or type(error).__name__
                log.info("%s after %d bytes: %s", url, self._size(), cause)
                if failures >= ATTEMPTS or isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
                    raise Unavailable(cause) from error
                if failures > 1 and isinstance(error, httpx.ConnectError):
                    raise Unavailable(cause) from error  # another mirror, or the user, can do more about it
            except OSError as error:
                raise PreconditionFailed(
                    f"The download {self.partial} cannot be written ({error.strerror}); mend that and retry."
                ) from error
            await anyio.sleep(BACK_OFF * 2 ** max(failures - 1, 0) * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    def discard(self) -> None:
        """Forget what was fetched."""
        self.partial.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self._origin = None

    def finish(self) -> None:
        """Give the complete file its name."""
        self.partial.replace(self.target)
        self._note.unlink(missing_ok=True)

    async def _attempt(self, client: httpx.AsyncClient, url: str) -> None:
        begin = await anyio.to_thread.run_sync(self._resume, url)
        headers = {}
        if begin:
            headers["range"] = f"bytes={begin}-"
            if self._origin and self._origin.url == url and self._origin.validator:
                headers["if-range"] = self._origin.validator
        async with client.stream("GET", url, headers=headers) as response:
            total = self._total(response, begin)
            if response.status_code == 416 and total == begin:
                return  # it was complete
            self._check(response, url)
            if response.status_code == 200 and begin:
                begin = 0  # the server starts from the beginning, be it that the file changed or that it always does
                self._hash = hashlib.sha256()
            elif self._origin and self._origin.total and total and self._origin.total != total:
                raise self._changed("it has another size than what was fetched before")
            self._room_for(max(total - begin, 0))
            self._write_note(Origin(url, _strong(response.headers.get("etag", "")), total))
            await self._receive(response, begin, total)
        if total and self._size() != total:
            import httpx

            raise httpx.ReadError(f"{self._size()} of {total} bytes arrived")

    async def _receive(self, response: httpx.Response, begin: int, total: int) -> None:
        waiting: list[bytes] = []
        length = 0
        with self.partial.open("r+b" if self.partial.exists() else "w+b") as file:
            file.truncate(begin)
            file.seek(begin)
            try:
                async for chunk in response.aiter_raw():
                    if not begin and not length and not self._is_archive(chunk):
                        self.discard()
                        raise _NotThis("gives something that is not an archive, perhaps a page that asks to log in")
                    waiting.append(chunk)
                    length += len(chunk)
                    if length >= BLOCK:
                        begin += length
                        await anyio.to_thread.run_sync(self._write, file, waiting)
                        waiting, length = [], 0
                        self._tell(begin, total)
            finally:
                self._write(file, waiting)
        self._tell(begin + length, total)

    def _write(self, file: BufferedRandom, chunks: list[bytes]) -> None:
        for chunk in chunks:
            file.write(chunk)
            self._hash.update(chunk)

    def _is_archive(self, chunk: bytes) -> bool:
        return chunk.startswith(MAGIC.get(self.target.suffix, b""))

    def _check(self, response: httpx.Response, url: str) -> None:
        status = response.status_code
        if status in (404, 410):
            raise NotFound(f"{url} does not exist")
        if status == 416:
            raise self._changed("it is shorter than what was fetched before")
        if status in (408, 425, 429) or status >= 500:
            import httpx

            raise httpx.HTTPStatusError(f"status {status}", request=response.request, response=response)
        if status not in (200, 206):
            raise _NotThis(f"answers with status {status}")
        # storage.openvinotoolkit.org answers 200 with a page for a missing file (spec/field.md 5).
        if "html" in response.headers.get("content-type", ""):
            raise _NotThis("gives a web page instead of the archive, perhaps one that asks to log in")

    def _total(self, response: httpx.Response, begin: int) -> int:
        """Return the size of the whole file; 0 if it is not said."""
        if response.status_code in (206, 416):
            unit, _, place = response.headers.get("content-range", "").partition(" ")
            extent, _, total = place.partition("/")
            if response.status_code == 206 and (unit != "bytes" or extent.partition("-")[0] != str(begin)):
                raise self._changed("the server gave another part than it was asked for")
            return int(total) if total.isdigit() else 0
        length = response.headers.get("content-length", "")
        return int(length) if length.isdigit() else 0

    def _changed(self, why: str) -> httpx.ReadError:
        """What is here does not fit what the server has: start again."""
        import httpx

        self.discard()
        return httpx.ReadError(why)

    def _resume(self, url: str) -> int:
        """Return how much is here, having hashed it."""
        self._hash = hashlib.sha256()
        if not (self._origin and (self._trusted or self._origin.url == url)) or not self.partial.exists():
            self.discard()
            self.target.parent.mkdir(parents=True, exist_ok=True)
            return 0
        size = 0
        with self.partial.open("rb") as file:
            while block := file.read(BLOCK):
                self._hash.update(block)
                size += len(block)
        self._tell(size, self._origin.total)
        return size

    def _size(self) -> int:
        try:
            return self.partial.stat().st_size
        except OSError:
            return 0

    def _tell(self, completed: int, total: int) -> None:
        # A fresh start must not look like going backwards.
        self._shown = max(self._shown, completed)
        self._report(Progress("downloading", self._shown, max(total, self._shown if total else 0), self.target.name))

    def _read_note(self) -> Origin | None:
        try:
            return Origin(**json.loads(self._note.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _write_note(self, origin: Origin) -> None:
        self._origin = origin
        partial = self._note.with_name(self._note.name + ".new")
        partial.write_text(json.dumps(asdict(origin)), "utf-8")
        partial.replace(self._note)


def _strong(etag: str) -> str:
    return "" if etag.startswith("W/") else etag
