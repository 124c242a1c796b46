"""Listening: the socket, uvicorn's protocols on it, and the end without losing an answer."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
import ssl
import time
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
import psutil
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from ovms_face_http.corked import Corked
from ovms_kernel.api.faces import BadRequest, PreconditionFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovms_face_http.app import App
    from ovms_face_http.config import HttpSettings

HEAD_LIMIT = 20.0
"""Seconds that the head of a request may take, the first of a connection from its beginning."""
SILENCE_LIMIT = 60.0
"""Seconds that a client may pause while it sends a body."""
KEEP_ALIVE = 75.0
"""Seconds that a connection may be idle between two requests."""
HEAD_BYTES = 64 << 10
"""Bytes of a head."""
DRAIN_LIMIT = 20.0
"""Seconds that answers have when the server ends."""
CANCEL_LIMIT = 2.0
"""Seconds that work has to end once it is cancelled."""
BACKLOG = 1024


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which also gives up on slow requests and tells the work that its client is gone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as uvicorn makes it
        super().__init__(*args, **kwargs)
        self.leave: dict[object, Callable[[], None]] = {}
        """What to call when the client is gone, by request."""
        self.late_at = self.loop.time() + HEAD_LIMIT
        """When the client should have sent more, by the loop's clock; infinite while nothing is to come."""
        self._head_bytes = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; see :class:`Corked`."""
        super().connection_made(Corked(transport, self.loop))

    def data_received(self, data: bytes) -> None:
        """Read, and refuse a head without an end."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """Give the request a way to hear that its client is gone."""
        super().on_message_begin()
        self.scope["ovms.connection"] = self  # type: ignore[typeddict-unknown-key]
        self._in_head = True
        self.late_at = self.loop.time() + HEAD_LIMIT

    def on_headers_complete(self) -> None:
        """Wait for the body, piece by piece."""
        self._in_head, self._head_bytes = False, 0
        self.late_at = self.loop.time() + SILENCE_LIMIT
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Wait for the next piece."""
        self.late_at = self.loop.time() + SILENCE_LIMIT
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for nothing: uvicorn closes what is idle for long between two requests."""
        self.late_at = math.inf
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the work for this client."""
        super().connection_lost(exc)
        for leave in list(self.leave.values()):
            leave()

    def close_if_late(self, now: float) -> None:
        """Close the connection if its client has sent too little for too long."""
        # While an earlier request is answered, the next one is not read, which is not its client's fault.
        if self.late_at < now and not self.flow.read_paused and not self.transport.is_closing():
            self.transport.close()


class Server:
    """Serves an application on a socket, as an async context manager; leaving it lets answers end first."""

    def __init__(self, settings: HttpSettings, app: App, sock: socket.socket) -> None:
        self._sock = sock
        self._state = ServerState()
        self._config = uvicorn.Config(
            app,
            http=Connection,
            ws="websockets-sansio",
            ws_max_size=16 << 20,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(KEEP_ALIVE),
            backlog=BACKLOG,
        )
        self._tls = tls_of(settings) if settings.tls_cert else None

    async def __aenter__(self) -> Self:
        self._config.load()
        loop = asyncio.get_running_loop()
        self._tell_time()
        self._listener = await loop.create_server(
            lambda: Connection(config=self._config, server_state=self._state, app_state={}, _loop=loop),
            sock=self._sock,
            ssl=self._tls,
            backlog=BACKLOG,
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._listener.close()
        with anyio.CancelScope(shield=True):
            for connection in list(self._state.connections):
                connection.shutdown()
            late = await self._left(DRAIN_LIMIT)
            for connection in self._state.connections:
                for leave in list(getattr(connection, "leave", {}).values()):
                    leave()
            if late:
                for task in await self._left(CANCEL_LIMIT):
                    task.cancel()
                await self._left(CANCEL_LIMIT)

    async def _left(self, seconds: float) -> set[asyncio.Task[None]]:
        """Wait for the work that is under way; return what of it is not done by then."""
        running = set(self._state.tasks)
        return (await asyncio.wait(running, timeout=seconds))[1] if running else running

    async def keep_time(self) -> None:
        """Keep the Date of answers right and close connections that are late, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await anyio.sleep(1 - time.time() % 1)
            self._tell_time()
            for each in list(self._state.connections):
                if isinstance(each, Connection):  # not a websocket
                    each.close_if_late(loop.time())

    def _tell_time(self) -> None:
        self._state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]


def tls_of(settings: HttpSettings) -> ssl.SSLContext:
    """Return the TLS context of the certificate by setting.

    :raises BadRequest: it cannot be used; the sentence says which file and why.
    """
    files = {name: Path(getattr(settings, name)).expanduser() for name in ("tls_cert", "tls_key")}
    for name, path in files.items():
        try:
            path.open("rb").close()
        except OSError as error:
            raise BadRequest(f"faces.http.{name} {path} cannot be read ({error.strerror}); check the path.") from error

    def password() -> str:
        raise BadRequest(
            f"The key {files['tls_key']} is encrypted; write it without a password with `openssl pkey`, for your user "
            "only, and set faces.http.tls_key to that file."
        )

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(files["tls_cert"], files["tls_key"], password)
    except ssl.SSLError as error:
        cause = "they do not belong together" if error.reason == "KEY_VALUES_MISMATCH" else "one is not a PEM file"
        raise BadRequest(
            f"The certificate {files['tls_cert']} and the key {files['tls_key']} cannot be used: {cause}; "
            "check faces.http.tls_cert and faces.http.tls_key."
        ) from error
    return context


def bind(settings: HttpSettings) -> socket.socket:
    """Return a socket that is bound to the address, and not listening yet.

    :raises PreconditionFailed: the address is in use; the sentence says by what.
    :raises BadRequest: this machine does not have that address.
    """
    host = "127.0.0.1" if settings.host == "localhost" else settings.host
    try:
        found = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        cause = getattr(error, "strerror", None) or "no such name can exist"
        raise BadRequest(f"faces.http.host {host!r} is not an address of this machine ({cause}); change it.") from error
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        # On Windows the option means something else: it would let two servers share a port.
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE if os.name == "nt" else socket.SO_REUSEADDR, 1  # type: ignore[attr-defined,unused-ignore]
        )  # fmt: skip
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE or (os.name == "nt" and error.errno in (errno.EACCES, 10013, 10048)):
            raise PreconditionFailed(_in_use(settings.port)) from error
        if error.errno == errno.EACCES:
            raise PreconditionFailed(
                f"Port {settings.port} is reserved for administrators; choose one from 1024 up with `--port`."
            ) from error
        raise BadRequest(f"This machine cannot listen at {host} ({error.strerror}); change faces.http.host.") from error
    sock.settimeout(0)
    return sock


def _in_use(port: int) -> str:
    return (
        f"Port {port} is in use by {_holder(port)}; stop that, or choose another port with "
        f"`ovms-plugin serve --port {port + 1}` or the setting faces.http.port."
    )


def _holder(port: int) -> str:
    """Return what listens at a port, as far as the system tells."""
    try:
        pids = {
            each.pid
            for each in psutil.net_connections("tcp")
            if each.pid and each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
        }
        for pid in pids:
            process = psutil.Process(pid)
            return f"{process.name()} (process {pid})"
    except (psutil.Error, OSError):
        pass
    return "another program"
