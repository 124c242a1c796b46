"""The ASGI application: OVMS's paths, methods and statuses."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ovms_embedded import SERVER_NAME, SERVER_VERSION, log
from ovms_embedded.config import ConfigError
from ovms_embedded.metrics import Seen
from ovms_embedded.rest.endpoints import dispatch
from ovms_embedded.rest.errors import HttpError, Invalid, calculator_error
from ovms_embedded.rest.http import (
    BODY_LIMIT,
    EVENTS,
    JSON,
    JSON_LIMIT,
    LARGE,
    RETRY_AFTER,
    Disconnected,
    Held,
    Reply,
    Request,
    Stream,
    encode,
    read_body,
    read_form,
    read_json,
)
from ovms_embedded.rest.protocol import EXCHANGE
from ovms_embedded.servable import Overloaded, Servable, State
from ovms_embedded.workers import CallFailed

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from ovms_embedded.cli import Settings
    from ovms_embedded.manager import Manager
    from ovms_embedded.metrics import Metrics
    from ovms_embedded.rest.http import Receive, Send
    from ovms_embedded.rest.protocol import Exchange

CONFIG = re.compile(r".?/v1/config")
RELOAD = re.compile(r".?/v1/config/reload")
MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
MODELS = re.compile(r"/(?:v3/v1|v3|v1)/models(?:/(.*))?")
GENERATIVE = re.compile(r"/(?:v3|v1)/.+")
GENERATE = "/v3/"
"""Where nothing but generative endpoints take a POST; both prefixes have as many characters."""


class App:
    """Answers every HTTP request."""

    def __init__(self, manager: Manager, settings: Settings, metrics: Metrics | None) -> None:
        self._manager = manager
        self._settings = settings
        self._metrics = metrics
        self._bodies = Held()
        self._origins = {each.strip() for each in settings.allowed_origins.split(",")}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange: Exchange = scope["extensions"][EXCHANGE]
        headers = dict(scope["headers"])
        cors = self._cors(headers.get(b"origin"))
        try:
            try:
                answer = await self._route(scope, headers, receive, send, cors)
            except HttpError as error:
                log.serving.debug("%s %s: %d %s", scope["method"], scope["path"], error.status, error)
                body = encode({"error": str(error)})
                await _respond(exchange, error.status, Reply(body), [*cors, *error.headers])
            else:
                if answer is not None:
                    await _respond(exchange, 200, answer, cors)
        except Disconnected:
            return
        except Exception:  # noqa: BLE001 - the last resort: a fault of the engine is one answer, not a silent close
            log.serving.exception("%s %s failed", scope["method"], scope["path"])
            if exchange.begun:
                exchange.abort()
            else:
                await _respond(exchange, 500, Reply(encode({"error": "Internal server error"})), cors)

    def _cors(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        if origin is None:
            return []
        if "*" in self._origins:
            headers = [(b"access-control-allow-origin", b"*")]
        elif origin.decode("latin-1") in self._origins:
            headers = [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
        else:
            return []
        if self._settings.allow_credentials:
            headers.append((b"access-control-allow-credentials", b"true"))
        return headers

    async def _route(
        self,
        scope: MutableMapping[str, Any],
        headers: dict[bytes, bytes],
        receive: Receive,
        send: Send,
        cors: list[tuple[bytes, bytes]],
    ) -> Reply | None:
        method: str = scope["method"]
        path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1").partition("?")[0]
        if method == "OPTIONS":
            return self._preflight(cors)
        if "/../" in _plain(path):
            raise HttpError(400, "Path contains invalid sequence")
        if method not in ("GET", "POST"):
            raise HttpError(406, "Unsupported method")
        get = method == "GET"
        if not get and path.startswith(GENERATE):
            return await self._generate(path, headers, receive, send, cors, scope["extensions"][EXCHANGE])
        if path == "/v2/health/live":
            return _only(get, Reply(b""))
        if path == "/v2/health/ready":
            _only(get)
            if not self._manager.first_pass_done:
                raise HttpError(503, "Server is not ready")
            return Reply(b"")
        if path == "/v2":
            return _only(get, Reply(encode({"name": SERVER_NAME, "version": SERVER_VERSION})))
        if path == "/metrics":
            _only(get)
            return Reply(self._page(), b"text/plain")
        if CONFIG.fullmatch(path):
            return _only(get, Reply(encode(self._manager.status())))
        if RELOAD.fullmatch(path):
            _only(not get)
            return await self._reload()
        if match := MODEL.fullmatch(path):
            return await self._model(*match.groups(), get=get)
        if get and (match := MODELS.fullmatch(path)):
            return self._models(match[1])
        if GENERATIVE.fullmatch(path):
            _only(not get)
            return await self._generate(path, headers, receive, send, cors, scope["extensions"][EXCHANGE])
        raise HttpError(400, "Invalid request URL")

    def _page(self) -> bytes:
        metrics = self._metrics
        if metrics is None:
            raise HttpError(400, "Metrics are disabled")
        for name, servable in self._manager.servables.items():
            labels = f'name="{name}"'
            loaded = int(servable.worker is not None)
            metrics.set("ovms_graph_loaded", labels, loaded)
            metrics.set("ovms_streams", labels, loaded)
            metrics.set("ovms_infer_req_active", labels, servable.in_use)
            metrics.set("ovms_infer_req_queue_size", labels, servable.limit())
        return metrics.text().encode()

    def _preflight(self, cors: list[tuple[bytes, bytes]]) -> Reply:
        cors += [
            (b"access-control-allow-methods", self._settings.allowed_methods.encode("latin-1", "replace")),
            (b"access-control-allow-headers", self._settings.allowed_headers.encode("latin-1", "replace")),
        ]
        return Reply(b"")

    async def _reload(self) -> Reply:
        try:
            await self._manager.reload()
        except ConfigError as error:
            text = (
                str(error)
                if "not found" in str(error)
                else "Reloading config file failed. Check server logs for more info."
            )
            raise HttpError(error.status, text) from error
        return Reply(encode(self._manager.status()))

    async def _model(self, name: str, version: str | None, action: str | None, *, get: bool) -> Reply:
        _only(get if action != "/infer" else not get)
        servable = self._manager.find(unquote(name))
        if servable is None or (version is not None and version != "1"):
            raise HttpError(404, "Model with requested name is not found")
        if action == "/ready":
            if servable.state is not State.AVAILABLE:
                raise HttpError(404, "Model is not ready")
            return Reply(b"")
        await self._usable(servable)
        if action == "/infer":
            raise HttpError(400, "This graph serves generative endpoints; it takes no KServe inference requests.")
        graph = servable.graph
        streams = [(graph.inputs, "inputs"), (graph.outputs, "outputs")] if graph else []
        answer: dict[str, Any] = {"name": unquote(name), "versions": ["1"], "platform": "OpenVINO"}
        for names, key in streams:
            answer[key] = [{"name": each, "datatype": "INVALID", "shape": []} for each in names]
        if servable.template is not None:
            answer["chat_template"] = {"problem": servable.template.problem or None}
        return Reply(encode(answer))

    def _models(self, wanted: str | None) -> Reply:
        names: list[str] = []
        for servable in self._manager.servables.values():
            if servable.state is State.AVAILABLE:
                names += [] if servable.hides_base() else [servable.name]
                names += servable.aliases()
        now = int(time.time())
        found = [{"id": name, "object": "model", "created": now, "owned_by": "OVMS"} for name in names]
        if not wanted:
            return Reply(encode({"data": found, "object": "list"}))
        one = next((each for each in found if each["id"] == unquote(wanted)), None)
        if one is None:
            raise HttpError(500, "Model not found")
        return Reply(encode(one))

    # -- generative endpoints --------------------------------------------------------------------------------------

    async def _generate(
        self,
        path: str,
        headers: dict[bytes, bytes],
        receive: Receive,
        send: Send,
        cors: list[tuple[bytes, bytes]],
        exchange: Exchange,
    ) -> Reply | None:
        key = self._settings.api_key
        if key and not hmac.compare_digest(headers.get(b"authorization", b""), f"Bearer {key}".encode()):
            raise HttpError(500, "Unauthorized: invalid or missing api-key")
        with self._bodies.request() as take:
            request = await self._read(path, headers, receive, take, exchange)
            servable = self._manager.find(request.model)
            if servable is None:
                raise HttpError(404, "Mediapipe graph definition with requested name is not found")
            arrived = time.monotonic()
            if not servable.serves:
                await self._manager.settle(servable)
                await self._manager.wake(servable)
                await self._usable(servable)
            metrics = self._metrics
            seen = Seen(metrics, servable.name, arrived, stream=request.stream) if metrics else None
            return await self._serve(servable, request, send, cors, exchange, seen)

    async def _serve(
        self,
        servable: Servable,
        request: Request,
        send: Send,
        cors: list[tuple[bytes, bytes]],
        exchange: Exchange,
        seen: Seen | None,
    ) -> Reply | None:
        try:
            servable.enter()
        except Overloaded as error:
            if seen:
                seen.reject()
            raise HttpError(503, "The queue of this model is full, try again later.", RETRY_AFTER) from error
        if seen:
            seen.accept()
        succeeded = False
        task = _current()
        exchange.watch(task.cancel)
        try:
            if exchange.disconnected:
                raise Disconnected
            answer: Reply | Stream | None = await self._answer(servable, request)
            if isinstance(answer, Stream):
                await _stream(send, exchange, answer, cors)
                answer = None
            succeeded = True
        except asyncio.CancelledError:
            if exchange.disconnected:
                task.uncancel()
                raise Disconnected from None
            raise
        else:
            return answer
        finally:
            exchange.watch(None)
            servable.leave()
            if seen:
                seen.end(succeeded=succeeded)

    async def _read(
        self, path: str, headers: dict[bytes, bytes], receive: Receive, take: Callable[[int], None], exchange: Exchange
    ) -> Request:
        content_type = headers.get(b"content-type", b"")
        kind = content_type if content_type == JSON else content_type.partition(b";")[0].strip().lower()
        if (body := exchange.take_body()) is None:
            body = await read_body(receive, headers, JSON_LIMIT if kind == JSON else BODY_LIMIT, take)
        else:
            take(len(body))
        path = _plain(path[len(GENERATE) :])
        if kind == JSON:
            fields = read_json(body) if len(body) < LARGE else await asyncio.to_thread(read_json, body)
            model = fields.get("model")
            if not isinstance(model, str):
                raise HttpError(
                    412, "model field is missing in JSON body" if model is None else "model field is not a string"
                )
            stream = fields.get("stream", False)
            if not isinstance(stream, bool):
                raise HttpError(412, "stream field is not a boolean")
            return Request(path, model or path, fields, stream=stream, media=self._settings.media)
        if kind == b"multipart/form-data":
            form = read_form(body, content_type)
            fields, files = await (form if len(body) < LARGE else asyncio.to_thread(asyncio.run, form))
            model = fields.get("model")
            stream = fields.get("stream") == "true"
            name = model if isinstance(model, str) and model else path
            return Request(path, name, fields, files, multipart=True, stream=stream)
        return Request(path, path)

    async def _usable(self, servable: Servable) -> None:
        if servable.state is State.RETIRED:
            raise HttpError(404, "Mediapipe graph definition with requested name is retired")
        if servable.state is not State.AVAILABLE:
            raise HttpError(500, "Mediapipe graph definition with requested name is not loaded yet")

    async def _answer(self, servable: Servable, request: Request) -> Reply | Stream:
        node = servable.graph.node if servable.graph else ""
        try:
            answer = await dispatch(request, servable, self._manager)
            if isinstance(answer, Reply):
                return answer
            return Stream(answer.pieces, await anext(answer.pieces, b""), node)
        except (Invalid, CallFailed) as error:
            raise calculator_error(node, error.kind, str(error)) from error


def _plain(path: str) -> str:
    return unquote(path) if "%" in path else path


def _only(allowed: bool, reply: Reply | None = None) -> Reply:  # noqa: FBT001 - reads as a sentence
    if not allowed:
        raise HttpError(406, "Unsupported method")
    return reply or Reply(b"")


def _current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise AssertionError
    return task


async def _respond(exchange: Exchange, status: int, reply: Reply, headers: list[tuple[bytes, bytes]]) -> None:
    await exchange.reply(status, [(b"content-type", reply.content_type), *headers], reply.body)


async def _stream(send: Send, exchange: Exchange, stream: Stream, headers: list[tuple[bytes, bytes]]) -> None:
    head = [(b"content-type", EVENTS), (b"cache-control", b"no-cache"), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    async with aclosing(stream.pieces) as pieces:
        await exchange.write(stream.first)
        try:
            async for piece in pieces:
                await exchange.write(piece)
        except (Invalid, CallFailed) as error:
            text = str(calculator_error(stream.node, error.kind, str(error)))
            await exchange.write(encode({"error": text}))
    await send({"type": "http.response.body", "body": b""})
