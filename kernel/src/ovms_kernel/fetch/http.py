"""HTTP for downloads: ranges, redirects, proxies, a certificate authority, and bounds for what is read whole.

Blocking, for threads. An answer's body can be ended from another thread, which httpx does not offer.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urljoin, urlsplit

import anyio
import anyio.to_thread

from ovms_kernel.errors import Unavailable
from ovms_kernel.fetch.proxies import proxy_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    import urllib3

    from ovms_kernel.values import RemoteFile

REACH_LIMIT = 1.8
"""Seconds that finding out whether a server can be reached may take."""
CONNECT_LIMIT = 10.0
"""Seconds to connect."""
READ_LIMIT = 60.0
"""Seconds without a byte; transfers have a shorter limit of their own."""
MAX_REDIRECTS = 10
PORTS = {"http": 80, "https": 443}
SOCKS_PORT = 1080
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
UNSATISFIED = re.compile(r"bytes \*/(\d+)")


class FetchFailed(Unavailable):
    """An answer did not arrive or is none that can be used; trying again may help.

    :param status: of the answer; 0 if there was none.
    :param retry_after: seconds that the server asks to wait.
    :param contradiction: the answer does not fit the listing; the next one may come from a sounder copy, a third is not
        asked for.
    :param final: asking the same server again does not help.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        retry_after: float | None = None,
        contradiction: bool = False,
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.contradiction = contradiction
        self.final = final


class TooLarge(FetchFailed):
    """An answer has more bytes than it may have."""


async def check_reachable(url: str, proxy: str = "") -> None:
    """Return if the server of a URL, or the proxy to it, accepts connections.

    A client's own limits come after the look-up of the name, which may take half a minute without a network.

    :raises FetchFailed: it does not within two seconds; the sentence has the cause.
    """
    parts = urlsplit(proxy_for(url, proxy) or url)
    port = parts.port or PORTS.get(parts.scheme, SOCKS_PORT)

    # A server on this machine refuses at once, or is only busy.
    limit = CONNECT_LIMIT if parts.hostname in ("127.0.0.1", "::1", "localhost") else REACH_LIMIT

    def connect() -> None:
        socket.create_connection((parts.hostname or "", port), limit).close()

    try:
        with anyio.fail_after(limit):
            # Threads of its own: a pool that is busy must not look like a network that is gone.
            await anyio.to_thread.run_sync(connect, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
    except OSError as error:
        cause = error.strerror or (f"no answer within {limit:g} s" if isinstance(error, TimeoutError) else str(error))
        raise FetchFailed(
            f"{parts.hostname} cannot be reached ({cause}); check the network and proxy, or import a local copy."
        ) from error


class Body:
    """One open answer with status 200 or 206, read by one thread."""

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        self._response = response
        self._aborted = False
        self.url = url
        """Where it came from in the end."""
        self.headers: Mapping[str, str] = response.headers
        self.ranged = response.status == 206
        """It is the range that was asked for; otherwise the whole file."""
        self.start = 0
        total = self.headers.get("Content-Length", "")
        self._left = int(total) if total.isdigit() else -1
        if self.ranged:
            found = CONTENT_RANGE.fullmatch(self.headers.get("Content-Range", ""))
            self.start, total = (int(found[1]), found[3]) if found else (-1, "")
        self.total = int(total) if total.isdigit() else None
        """Bytes of the whole file, if the answer tells."""

    def read(self, size: int) -> bytes:
        """Return what has arrived, at most so many bytes; nothing at the end.

        :raises FetchFailed: the connection broke.
        """
        from urllib3.exceptions import HTTPError

        try:
            piece = bytes(self._response.read1(size))
        except (HTTPError, OSError, ValueError, AttributeError) as error:
            # The last two come of a connection that was shut down by ``abort`` in the middle of a read.
            raise FetchFailed(f"The connection broke ({type(error).__name__}); try again later.") from error
        if self._aborted:
            # Python gives up TLS with the first shutdown and then reads what has arrived as it is, still encrypted.
            raise FetchFailed("The connection was given up; try again later.")
        self._left -= len(piece)
        return piece

    def abort(self) -> None:
        """Make every ``read`` from now on raise, and one that waits in another thread."""
        self._aborted = True
        # The last of these comes of a ``close`` in another thread at the same moment.
        with suppress(OSError, RuntimeError, ValueError, TypeError, AttributeError):
            self._response.shutdown()

    def close(self) -> None:
        """Give the connection back, or close it if there is more to read."""
        if self._left == 0 and not self._aborted:
            self._response.drain_conn()
        self._response.close()


class Opener(Protocol):
    """How a hub opens a range."""

    def __call__(self, file: RemoteFile, start: int, end: int, /) -> Body:
        """Ask for the bytes from ``start`` to ``end``, both included.

        :raises FetchFailed: for the moment it does not work.
        :raises OvmsError: any other error ends the transfer.
        """
        ...


class Web:
    """Asks servers for files; safe to use from several threads.

    :param proxy: instead of the environment's.
    :param ca_file: instead of the authorities that the system and certifi know.
    :param follow: follow redirects; otherwise one is an answer that cannot be used.
    """

    def __init__(self, *, proxy: str = "", ca_file: str = "", follow: bool = True) -> None:
        self._proxy, self._ca_file, self._follow = proxy, ca_file, follow
        self._pools: dict[tuple[str, bool], urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def open(
        self, url: str, *, start: int | None = None, end: int | None = None, headers: Mapping[str, str] | None = None
    ) -> Body:
        """Ask for a file, or for its bytes from ``start`` to ``end``, both included.

        ``Authorization`` and ``Cookie`` go to the first host only, and https never turns into http.

        :raises FetchFailed: there is no answer with status 200 or 206; ``status`` has the one there is.
        """
        asked = {"Accept-Encoding": "identity", "User-Agent": "ovms-plugin", **(headers or {})}
        if start is not None:
            asked["Range"] = f"bytes={start}-{'' if end is None else end}"
        for _ in range(MAX_REDIRECTS):
            response = self._ask(url, asked)
            place = response.headers.get("Location", "")
            if response.status not in (301, 302, 303, 307, 308) or not place or not self._follow:
                break
            response.close()
            url, asked = _next(url, place, asked)
        else:
            raise FetchFailed(f"{_host(url)} redirects without end; try another mirror.", final=True)
        if response.status in (200, 206):
            body = Body(response, url)
            if body.ranged and body.start != (start or 0):
                body.close()
                raise FetchFailed(f"{_host(url)} sent another part than it was asked for; try again later.")
            return body
        error = _refusal(url, response, asked)
        response.close()
        raise error

    def read(
        self, url: str, *, limit: int, seconds: float = READ_LIMIT, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return a small answer.

        :param limit: bytes at most.
        :param seconds: for all of it, however slowly it comes.
        :raises TooLarge: it is larger.
        :raises FetchFailed: it takes longer, or as ``open``.
        """
        deadline = time.monotonic() + seconds
        body = self.open(url, headers=headers)
        timer = threading.Timer(seconds, body.abort)
        timer.daemon = True
        timer.start()
        try:
            data = bytearray()
            while piece := body.read(64 << 10):
                data += piece
                if len(data) > limit:
                    raise TooLarge(
                        f"{_host(url)} answers with more than {limit} bytes, which is refused; check the address."
                    )
            return bytes(data)
        except FetchFailed as error:
            if time.monotonic() >= deadline:
                raise FetchFailed(f"{_host(url)} did not answer within {seconds:g} s; try again later.") from error
            raise
        finally:
            timer.cancel()
            body.close()

    def _ask(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        import urllib3
        from urllib3.exceptions import HTTPError

        if urlsplit(url).scheme not in ("http", "https"):
            raise FetchFailed(f"{url.partition(':')[0]} cannot be used for downloads; use https.", final=True)
        try:
            return self._pool(proxy_for(url, self._proxy), secure=url.startswith("https:")).request(
                "GET",
                url,
                headers=dict(headers),
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_LIMIT, read=READ_LIMIT),
            )
        except (HTTPError, OSError, ValueError) as error:
            raise FetchFailed(
                f"{_host(url)} cannot be reached ({_cause(error)}); check the network and proxy."
            ) from error

    def _pool(self, proxy: str, *, secure: bool) -> urllib3.PoolManager:
        with self._lock:
            if (proxy, secure) not in self._pools:
                self._pools[proxy, secure] = self._new_pool(proxy, secure=secure or proxy.startswith("https:"))
            return self._pools[proxy, secure]

    def _new_pool(self, proxy: str, *, secure: bool) -> urllib3.PoolManager:
        import ssl

        import certifi
        import urllib3

        options: dict[str, Any] = {"num_pools": 16, "maxsize": 32}
        if secure:  # reading the authorities takes a while
            options["ssl_context"] = context = ssl.create_default_context(cafile=self._ca_file or None)
            if not self._ca_file:
                context.load_verify_locations(certifi.where())
        if not proxy:
            return urllib3.PoolManager(**options)
        if proxy.startswith("socks"):
            from urllib3.contrib.socks import SOCKSProxyManager

            return SOCKSProxyManager(proxy, **options)
        parts = urlsplit(proxy)
        if parts.username is not None:
            from urllib.parse import unquote

            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=login)
        return urllib3.ProxyManager(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", **options)


def _next(url: str, place: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return where a redirect leads and what may be sent there."""
    target = urljoin(url, place)
    here, there = urlsplit(url), urlsplit(target)
    if here.scheme == "https" and there.scheme != "https":
        raise FetchFailed(
            f"{_host(url)} leads from https to {there.scheme or 'nowhere'}, which is refused; use another address.",
            final=True,
        )
    if (here.scheme, here.netloc) != (there.scheme, there.netloc):
        headers = {name: value for name, value in headers.items() if name.lower() not in ("authorization", "cookie")}
    return target, headers


def _refusal(url: str, response: urllib3.BaseHTTPResponse, asked: Mapping[str, str]) -> FetchFailed:
    status = response.status
    if status == 416:
        found = UNSATISFIED.fullmatch(response.headers.get("Content-Range", ""))
        has = f"has {found[1]} bytes" if found else "is shorter"
        return FetchFailed(
            f"The file at {_host(url)} {has}, so {asked.get('Range')} is not in it.", status=416, contradiction=True
        )
    return FetchFailed(
        f"{_host(url)} answers with status {status}; check the address, or try again later.",
        status=status,
        retry_after=_retry_after(response.headers.get("Retry-After", "")),
        final=status < 500 and status not in (408, 425, 429),
    )


def _retry_after(value: str) -> float | None:
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


def _cause(error: Exception) -> str:
    """Return the last words of a nest of urllib3's errors, without addresses of objects."""
    from urllib3.exceptions import NameResolutionError

    reason: Any = error
    while isinstance(inner := getattr(reason, "reason", None) or getattr(reason, "original_error", None), Exception):
        reason = inner
    if isinstance(reason, NameResolutionError):
        return "its name does not resolve"
    words = re.sub(r"<[^>]*>:? ?", "", " ".join(str(reason).split()))
    return words.rpartition(": ")[2] if words.startswith("HTTP") else words or type(reason).__name__
