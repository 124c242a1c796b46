"""The ASGI application: OVMS's paths, methods and statuses."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ovms_embedded import SERVER_NAME, SERVER_VERSION, log
from ovms_embedded.config import ConfigError
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
from ovms_embedded.servable import Overloaded, Servable, State
from ovms_embedded.workers import CallFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping

    from ovms_embedded.cli import Settings
    from ovms_embedded.manager import Manager
    from ovms_embedded.metrics import Metrics
    from ovms_embedded.rest.http import Pieces, Receive, Send

CONFIG = re.compile(r".?/v1/config")
RELOAD = re.compile(r".?/v1/config/reload")
MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
MODELS = re.compile(r"/(?:v3/v1|v3|v1)/models(?:/(.*))?")
GENERATIVE = re.compile(r"/(?:v3|v1)/(.+)")
MODEL_PREFIX = 4
"""Characters of ``/v3/``, cut to get a model's name from a path."""


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
        headers = dict(scope["headers"])
        cors = self._cors(headers.get(b"origin"))
        try:
            try:
                answer = await self._route(scope, headers, receive, send, cors)
            except HttpError as error:
                log.serving.debug("%s %s: %d %s", scope["method"], scope["path"], error.status, error)
                body = encode({"error": str(error)})
                await _respond(send, error.status, Reply(body), [*cors, *error.headers])
            else:
                if answer is not None:
                    await _respond(send, 200, answer, cors)
        except Disconnected:
            return
        except Exception:  # noqa: BLE001 - the last resort: a fault of the engine is one answer, not a silent close
            log.serving.exception("%s %s failed", scope["method"], scope["path"])
            # If the answer has begun already, the server can only close the connection.
            await _respond(send, 500, Reply(encode({"error": "Internal server error"})), cors)

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
        if "/../" in unquote(path):
            raise HttpError(400, "Path contains invalid sequence")
        if method not in ("GET", "POST"):
            raise HttpError(406, "Unsupported method")
        get = method == "GET"
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
            if self._metrics is None:
                raise HttpError(400, "Metrics are disabled")
            return Reply(self._page(self._metrics), b"text/plain")
        if CONFIG.fullmatch(path):
            return _only(get, Reply(encode(self._manager.status())))
        if RELOAD.fullmatch(path):
            _only(not get)
            return await self._reload()
        if match := MODEL.fullmatch(path):
            return await self._model(*match.groups(), get=get)
        if get and (match := MODELS.fullmatch(path)):
            return self._models(match[1])
        if match := GENERATIVE.fullmatch(path):
            _only(not get)
            return await self._generate(unquote(match[1]), path, headers, receive, send, cors)
        raise HttpError(400, "Invalid request URL")

    def _page(self, metrics: Metrics) -> bytes:
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
        uri: str,
        headers: dict[bytes, bytes],
        receive: Receive,
        send: Send,
        cors: list[tuple[bytes, bytes]],
    ) -> Reply | None:
        self._authorise(headers)
        with self._bodies.request() as take:
            request = await self._read(path, uri, headers, receive, take)
            return await self._serve(request, receive, send, cors)

    async def _serve(
        self, request: Request, receive: Receive, send: Send, cors: list[tuple[bytes, bytes]]
    ) -> Reply | None:
        servable = self._manager.find(request.model)
        if servable is None:
            raise HttpError(404, "Mediapipe graph definition with requested name is not found")
        arrived = time.monotonic()
        await self._manager.settle(servable)
        await self._manager.wake(servable)
        await self._usable(servable)
        with self._counted(servable, request, arrived):
            watch = asyncio.create_task(_watch(receive, _current()))
            try:
                answer = await self._answer(servable, request)
                if isinstance(answer, Reply):
                    return answer
                await _stream(send, answer.pieces, cors)
            except asyncio.CancelledError:
                if watch.done() and not watch.cancelled():
                    _current().uncancel()
                    raise Disconnected from None
                raise
            finally:
                watch.cancel()
        return None

    def _authorise(self, headers: dict[bytes, bytes]) -> None:
        key = self._settings.api_key
        if key and not hmac.compare_digest(headers.get(b"authorization", b""), f"Bearer {key}".encode()):
            raise HttpError(500, "Unauthorized: invalid or missing api-key")

    async def _read(
        self, path: str, uri: str, headers: dict[bytes, bytes], receive: Receive, take: Callable[[int], None]
    ) -> Request:
        content_type = headers.get(b"content-type", b"")
        kind = content_type.partition(b";")[0].strip().lower()
        body = await read_body(receive, headers, JSON_LIMIT if kind == JSON else BODY_LIMIT, take)
        fallback = unquote(uri[MODEL_PREFIX:])
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
            return Request(path, model or fallback, fields, stream=stream, media=self._settings.media)
        if kind == b"multipart/form-data":
            form = read_form(body, content_type)
            fields, files = await (form if len(body) < LARGE else asyncio.to_thread(asyncio.run, form))
            model = fields.get("model")
            stream = fields.get("stream") == "true"
            name = model if isinstance(model, str) and model else fallback
            return Request(path, name, fields, files, multipart=True, stream=stream)
        return Request(path, fallback)

    async def _usable(self, servable: Servable) -> None:
        if servable.state is State.RETIRED:
            raise HttpError(404, "Mediapipe graph definition with requested name is retired")
        if servable.state is not State.AVAILABLE:
            raise HttpError(500, "Mediapipe graph definition with requested name is not loaded yet")

    @contextmanager
    def _counted(self, servable: Servable, request: Request, arrived: float) -> Iterator[None]:
        method = "Stream" if request.stream else "Unary"
        labels = f'api="V3",interface="REST",method="{method}",name="{servable.name}"'
        count = self._metrics.add if self._metrics else lambda *_: None
        try:
            servable.enter()
        except Overloaded as error:
            count("ovms_requests_rejected", labels)
            raise HttpError(503, "The queue of this model is full, try again later.", RETRY_AFTER) from error
        count("ovms_requests_accepted", labels)
        count("ovms_current_graphs", f'name="{servable.name}"')
        began = time.monotonic()
        try:
            yield
        except BaseException:
            count("ovms_requests_fail", labels)
            raise
        else:
            count("ovms_requests_success", labels)
            count("ovms_responses", labels)
        finally:
            servable.leave()
            count("ovms_current_graphs", f'name="{servable.name}"', -1)
            if self._metrics:
                ended = time.monotonic()
                self._metrics.time("ovms_request_time_us", labels, ended - arrived)
                self._metrics.time("ovms_wait_for_infer_req_time_us", labels, began - arrived)
                self._metrics.time("ovms_inference_time_us", labels, ended - began)

    async def _answer(self, servable: Servable, request: Request) -> Reply | Stream:
        node = servable.graph.node if servable.graph else ""
        try:
            answer = await dispatch(request, servable, self._manager)
            if isinstance(answer, Reply):
                return answer
            pieces = answer.pieces
            first = await anext(pieces, b"")
        except (Invalid, CallFailed) as error:
            raise calculator_error(node, error.kind, str(error)) from error
        return Stream(_rest(first, pieces, node))


async def _rest(first: bytes, pieces: Pieces, node: str) -> Pieces:
    async with aclosing(pieces):
        yield first
        try:
            async for piece in pieces:
                yield piece
        except (Invalid, CallFailed) as error:
            yield encode({"error": str(calculator_error(node, error.kind, str(error)))})


def _only(allowed: bool, reply: Reply | None = None) -> Reply:  # noqa: FBT001 - reads as a sentence
    if not allowed:
        raise HttpError(406, "Unsupported method")
    return reply or Reply(b"")


def _current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise AssertionError
    return task


async def _watch(receive: Receive, task: asyncio.Task[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


async def _respond(send: Send, status: int, reply: Reply, headers: list[tuple[bytes, bytes]]) -> None:
    head = [(b"content-length", b"%d" % len(reply.body)), (b"content-type", reply.content_type), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": reply.body})


async def _stream(send: Send, pieces: Pieces, headers: list[tuple[bytes, bytes]]) -> None:
    head = [(b"content-type", EVENTS), (b"cache-control", b"no-cache"), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    async with aclosing(pieces):
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
