"""The ASGI application: who may ask, which endpoint answers, and what becomes of errors."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from ovms_face_http.errors import INVALID, NO_RETRY, SERVER, Problem, problem_of, unknown_url
from ovms_face_http.exchange import Exchange, Stream, encode
from ovms_face_http.guard import Denied, preflight
from ovms_kernel.api.faces import OvmsError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping, Sequence

    from starlette.routing import BaseRoute

    from ovms_face_http.exchange import Receive, Send
    from ovms_face_http.guard import Guard
    from ovms_kernel.api.faces import Dialect

    Scope = MutableMapping[str, Any]
    Endpoint = Callable[[Exchange], Awaitable[None]]

log = logging.getLogger(__name__)

AT_ONCE = 2048
"""Requests that are answered at the same time; the next one is asked to come back."""
PING_PERIOD = 5.0
"""Seconds without a piece of an answer after which its client is shown that it is still being made."""
OPEN = frozenset({"/health"})
"""Paths that need no key."""


@dataclass
class Routes:
    """What is answered where."""

    exact: dict[tuple[str, str], Endpoint] = field(default_factory=dict)
    """By method and path."""
    below: list[tuple[str, str, Endpoint]] = field(default_factory=list)
    """By method and the beginning of the path, the longest first."""
    sockets: dict[str, Callable[[Scope, Receive, Send], Awaitable[None]]] = field(default_factory=dict)
    """Websockets by path."""
    dialects: list[tuple[Dialect, Sequence[BaseRoute]]] = field(default_factory=list)

    def find(self, method: str, path: str) -> Endpoint | None:
        """Return the endpoint of a request; ``None`` if there is none here."""
        if found := self.exact.get((method, path)):
            return found
        for verb, beginning, endpoint in self.below:
            if verb == method and path.startswith(beginning):
                return endpoint
        return None

    def methods(self, path: str) -> list[str]:
        """Return the methods that a path has."""
        exact = [verb for verb, each in self.exact if each == path]
        return sorted({*exact, *(verb for verb, each, _ in self.below if path.startswith(each))})

    def dialect(self, scope: Scope) -> tuple[Dialect, BaseRoute, Scope] | None:
        """Return the dialect that answers a request, its route, and what that adds to the scope."""
        from starlette.routing import Match

        partial = None
        for dialect, routes in self.dialects:
            for route in routes:
                match, more = route.matches(scope)
                if match is Match.FULL:
                    return dialect, route, more
                if match is Match.PARTIAL and partial is None:
                    partial = dialect, route, more
        return partial


class Work:
    """The task that answers a request; uvicorn makes one for each. A cancel scope would cost 15 times as much."""

    __slots__ = ("ended", "task")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task  # noqa: S101 - this is called in one
        self.task = task
        self.ended = False

    def end(self) -> None:
        """Cancel it."""
        if not self.ended:
            self.ended = True
            self.task.cancel()


class App:
    """Answers HTTP requests and websockets."""

    def __init__(self, guard: Guard, max_body: int) -> None:
        self.guard = guard
        self.routes = Routes()
        self.streams: set[Stream] = set()
        self._max_body = max_body
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, whatever happens; a client that goes away ends the work for it, and so does the end of the server."""
        scope["path"] = plain(scope["path"])
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._max_body, self.streams)
        connection = scope.get("ovms.connection")
        began = time.monotonic()
        self._running += 1
        work = Work()
        if connection is not None:
            connection.leave[exchange] = work.end
        try:
            await self._respond(exchange)
        except asyncio.CancelledError:
            if not work.ended:
                raise
        finally:
            self._running -= 1
            if connection is not None:
                del connection.leave[exchange]
        if work.ended and connection is not None:
            work.task.uncancel()
            if not connection.transport.is_closing():
                await _fail(exchange, Problem(503, "The server is stopping.", SERVER, "stopping"), None)
        if log.isEnabledFor(logging.INFO):
            seconds, status = time.monotonic() - began, exchange.status or 499
            log.info(
                "%s %s %s %d in %.3f s for %s",
                exchange.id, exchange.method, exchange.path, status, seconds, exchange.caller or "-",
            )  # fmt: skip

    async def keep_alive(self) -> None:
        """Send a sign of life to the clients whose answers take long, until cancelled."""
        while True:
            await anyio.sleep(1)
            due = time.monotonic() - PING_PERIOD
            for stream in [each for each in self.streams if each.last < due]:
                await stream.ping()

    async def _respond(self, exchange: Exchange) -> None:
        dialect: Dialect | None = None
        endpoint = self.routes.find(exchange.method, exchange.path)
        found = None
        if endpoint is None and (found := self.routes.dialect(exchange.scope)):
            dialect = found[0]
        try:
            if not self._admit(exchange):
                await exchange.answer(b"", 204, headers=preflight(exchange.headers))
            elif endpoint is not None:
                await endpoint(exchange)
            elif found:
                await _ask_dialect(exchange, found[1], found[2])
            else:
                await self._nothing_there(exchange)
        except Denied as error:
            kind = INVALID if error.status < 500 else SERVER
            problem = Problem(error.status, error.message, kind, error.code, None, tuple(error.headers))
            await _fail(exchange, problem, dialect)
        except OvmsError as error:
            await _fail(exchange, problem_of(error), dialect)
        except Exception:
            log.exception("The request %s failed", exchange.id)
            await _fail(exchange, unforeseen(exchange.id), dialect)

    def _admit(self, exchange: Exchange) -> bool:
        """Return false for a preflight, which is answered at once.

        :raises Denied: the request gets no further.
        """
        exchange.with_answer += self.guard.cross_origin(exchange.headers)
        if exchange.method == "OPTIONS" and b"access-control-request-method" in exchange.headers:
            return False
        if exchange.path not in OPEN:
            exchange.caller = self.guard.caller(exchange.headers)
            if self._running > AT_ONCE:
                raise Denied(
                    429, f"{AT_ONCE} requests run already; try again.", "rate_limit_exceeded", [(b"retry-after", b"1")]
                )
        return True

    async def _nothing_there(self, exchange: Exchange) -> None:
        methods = self.routes.methods(exchange.path)
        if exchange.method == "HEAD" and "GET" in methods:
            endpoint = self.routes.find("GET", exchange.path)
            assert endpoint  # noqa: S101 - it has that method
            await endpoint(exchange)
        elif methods:
            message = f"{exchange.path} takes {' or '.join(methods)}, not {exchange.method}."
            headers = ((b"allow", ", ".join(methods).encode()),)
            await _fail(exchange, Problem(405, message, INVALID, "method_not_allowed", None, headers), None)
        else:
            await _fail(exchange, unknown_url(exchange.method, exchange.path), None)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a websocket in, under the same rules as a request."""
        headers = dict(scope["headers"])
        socket = self.routes.sockets.get(scope["path"])
        try:
            self.guard.cross_origin(headers)
            self.guard.caller(headers)
        except Denied as error:
            await _refuse_socket(scope, send, error.status, error.message)
            return
        if socket is None:
            await _refuse_socket(scope, send, 404, "There is no websocket here.")
            return
        await socket(scope, receive, send)


def plain(path: str) -> str:
    """Return a path without the slashes too many that an address such as ``http://127.0.0.1:16680//v1/`` has."""
    if "//" in path or path.endswith("/"):
        return "/" + "/".join(part for part in path.split("/") if part)
    return path


def unforeseen(request: str) -> Problem:
    """Return the error of what nobody foresaw."""
    message = f"Internal error; the log has the details of request {request}."
    return Problem(500, message, SERVER, "internal_error", None, (NO_RETRY,))


async def _ask_dialect(exchange: Exchange, route: BaseRoute, more: Mapping[str, Any]) -> None:
    scope = exchange.scope
    scope.update(more)
    scope["ovms.request"], scope["ovms.stream"] = exchange.id, exchange.stream
    pieces: AsyncGenerator[bytes, None] | None = exchange.pieces()

    async def receive() -> MutableMapping[str, Any]:
        nonlocal pieces
        if pieces is None:
            return await exchange.receive()  # waits until the client is gone
        if (piece := await anext(pieces, None)) is None:
            pieces = None
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            exchange.started, exchange.status = True, message["status"]
            message["headers"] = [*message.get("headers", ()), *exchange.with_answer]
        await exchange.send(message)

    await route.handle(scope, receive, send)


async def _fail(exchange: Exchange, problem: Problem, dialect: Dialect | None) -> None:
    if problem.status >= 500:
        log.warning("%s: %d %s", exchange.id, problem.status, problem.message)
    if exchange.started:
        return  # uvicorn closes the connection of an answer without an end
    body = dialect.error(problem.status, problem.message, problem.code or "") if dialect else problem.as_dict()
    await exchange.answer(encode(body), problem.status, headers=problem.headers)


async def _refuse_socket(scope: Scope, send: Send, status: int, message: str) -> None:
    if "websocket.http.response" in scope.get("extensions", {}):
        body = encode(Problem(status, message, INVALID).as_dict())
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body})
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": message[:120]})
