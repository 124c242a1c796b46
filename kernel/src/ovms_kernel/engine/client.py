"""The engine's REST and KServe gRPC behind one object: the only place that opens connections to it.

Requests are sent once and never retried, as the engine may have begun to work on them. httpx and grpc are imported when
the first request is made.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anyio

from ovms_kernel.errors import BadRequest, EngineFailed, NotFound, OvmsError, TimedOut, Unauthorized, Unavailable
from ovms_kernel.values import Answer

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Iterator, Mapping

    import grpc.aio
    import httpx

    from ovms_kernel.engine.transport import Body
    from ovms_kernel.values import Endpoint, Upload

RELOAD_LIMIT = 3600.0
"""Seconds that a reload may take; it returns only when every model was tried."""
PROBE_LIMIT = 3.0
"""Seconds that a question about health may take."""
WRAPPER = "failed: "
"""What a calculator really said stands behind the last of these."""
BORDER = b"\n\n"
"""The end of an event; within one, a line's end is escaped."""
BROKE_OFF = "The engine broke off in the middle of its answer; its log says why."
BY_STATUS: dict[int, type[OvmsError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    408: TimedOut,
    412: BadRequest,
    413: BadRequest,
    422: BadRequest,
    429: Unavailable,
    503: Unavailable,
}


class NotServed(NotFound):
    """The engine does not serve the model that a request names, as it was started again, or somebody unloaded that."""


class NotReached(Unavailable):
    """No connection to the engine could be opened, so it has not begun to work on the request."""


class NotLoadedYet(Unavailable):
    """The engine has not begun to work on a request, as the model is being loaded, again or for the first time."""


class EngineClient:
    """Connections to one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._http: httpx.AsyncClient | None = None
        self._heads: dict[tuple[str, str], tuple[httpx.URL, bytes]] = {}
        self._channel: grpc.aio.Channel | None = None

    async def aclose(self) -> None:
        """Close all connections; requests that are under way end with an error."""
        http, self._http = self._http, None
        channel, self._channel = self._channel, None
        if http is not None:
            await http.aclose()
        if channel is not None:
            await channel.close()

    # -- requests of services --------------------------------------------------------------------------------------

    async def post(self, path: str, body: bytes, *, content_type: str = "application/json") -> Answer:
        """Send one request and return the whole answer; see ``drivers.Engine``."""
        with _translated():
            status, headers, answer = await self._send(path, body, content_type)
            content = await answer.read()
        if status >= 400:
            raise _error(status, content)
        return Answer(content, dict(headers).get(b"content-type", b"").decode("latin-1"))

    async def upload(self, path: str, fields: Mapping[str, str | list[str]], files: Mapping[str, Upload]) -> Answer:
        """Send one multipart request and return the whole answer; see ``drivers.Engine``."""
        parts = {name: (each.name, each.data, each.content_type) for name, each in files.items()}
        with _translated():
            response = await self._client().post(path, data=dict(fields), files=parts)
        return _answer(response)

    async def stream(
        self, path: str, body: bytes, *, content_type: str = "application/json"
    ) -> AsyncGenerator[bytes, None]:
        """Send one request and yield its events as they arrive; see ``drivers.Engine``."""
        with _translated():
            status, _, answer = await self._send(path, body, content_type)
        try:
            if status >= 400:
                with _translated():
                    content = await answer.read()
                raise _error(status, content)
            rest = b""
            with _translated(begun=True):
                async for data in answer:
                    whole, border, rest = (rest + data).rpartition(BORDER)
                    if border:
                        for events in _checked(whole + border):
                            yield events
            if rest.strip():
                yield _event(rest, whole=False)
        finally:
            await answer.aclose()

    # -- health and models -----------------------------------------------------------------------------------------

    async def live(self) -> bool:
        """Tell whether REST answers."""
        return await self._is_ok("/v2/health/live")

    async def server_ready(self) -> bool:
        """Tell whether the engine has looked at its whole configuration; models may have failed all the same."""
        return await self._is_ok("/v2/health/ready")

    async def model_ready(self, name: str) -> bool:
        """Tell whether the engine serves a model.

        :raises Unavailable: it cannot be asked, which says nothing about the model.
        :raises TimedOut: it does not answer.
        """
        return await self._says_ok(f"/v2/models/{quote(name, safe='')}/ready")

    async def model_problem(self, name: str) -> str:
        """Return what the engine found wrong with the chat template of a model that it serves; empty if nothing.

        The embedded engine says it in the model's metadata; Intel's has no word for it there.
        """
        with _translated(), _limit(PROBE_LIMIT):
            response = await self._client().get(f"/v2/models/{quote(name, safe='')}")
        found = _object(_answer(response).body).get("chat_template")
        problem = found.get("problem") if isinstance(found, dict) else None
        return problem if isinstance(problem, str) else ""

    async def config(self) -> dict[str, Any]:
        """Return what ``GET /v1/config`` says of every servable."""
        with _translated(), _limit(PROBE_LIMIT * 10):
            response = await self._client().get("/v1/config")
        return _object(_answer(response).body)

    async def reload(self) -> dict[str, Any]:
        """Make the engine read its configuration again and return when it has tried every model in it.

        :raises OvmsError: something in it did not load; the answer does not say what.
        """
        with _translated(), _limit(RELOAD_LIMIT):
            response = await self._client().post("/v1/config/reload")
        return _object(_answer(response).body)

    async def grpc_live(self) -> bool:
        """Tell whether gRPC answers; true if the endpoint offers none."""
        if not self.endpoint.grpc:
            return True
        import grpc.aio

        from ovms_kernel.engine.protos.ovms_kserve_pb2 import ServerLiveRequest, ServerLiveResponse

        if self._channel is None:
            self._channel = self._open_channel()
        call = self._channel.unary_unary(
            "/inference.GRPCInferenceService/ServerLive",
            request_serializer=ServerLiveRequest.SerializeToString,
            response_deserializer=ServerLiveResponse.FromString,
        )
        try:
            return bool((await call(ServerLiveRequest(), timeout=PROBE_LIMIT)).live)
        except grpc.aio.AioRpcError:
            return False

    # -- connections -----------------------------------------------------------------------------------------------

    async def _send(self, path: str, body: bytes, content_type: str) -> tuple[int, list[tuple[bytes, bytes]], Body]:
        """Send a request of a service and return the head of the answer and its body.

        Past httpx's client, whose cookies, redirects and merged addresses cost more than all else that we do.
        """
        client = self._client()
        if (known := self._heads.get((path, content_type))) is None:
            from ovms_kernel.engine.transport import head_of

            url = client.build_request("POST", path).url
            headers = [(b"host", url.netloc), (b"accept", b"*/*"), (b"content-type", content_type.encode())]
            if self.endpoint.api_key:
                headers.append((b"authorization", f"Bearer {self.endpoint.api_key}".encode()))
            known = self._heads[path, content_type] = url, head_of("POST", url, headers)
        url, head = known
        return await self._transport.exchange(url, b"%scontent-length: %d\r\n\r\n" % (head, len(body)), body)

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            import httpx

            from ovms_kernel.engine.transport import EngineTransport

            headers = {"authorization": f"Bearer {self.endpoint.api_key}"} if self.endpoint.api_key else {}
            self._transport = EngineTransport(self._tls())
            self._http = httpx.AsyncClient(
                base_url=self.endpoint.rest,
                headers=headers,
                timeout=None,  # noqa: S113 - each call has a limit of its own
                # The engine is on this machine, or where the user said: no proxy lies between.
                trust_env=False,
                transport=self._transport,
            )
        return self._http

    def _tls(self) -> ssl.SSLContext | None:
        if not self.endpoint.rest.startswith("https"):
            return None
        import ssl

        return ssl.create_default_context(cafile=self.endpoint.ca_file or None)

    async def _is_ok(self, path: str) -> bool:
        try:
            return await self._says_ok(path)
        except (Unavailable, TimedOut):
            return False

    async def _says_ok(self, path: str) -> bool:
        with _translated(), _limit(PROBE_LIMIT):
            return (await self._client().get(path)).status_code == 200

    def _open_channel(self) -> grpc.aio.Channel:
        import grpc
        import grpc.aio

        # A refused connection must be tried again soon: this is how readiness is seen.
        options = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 200)]
        if not self.endpoint.rest.startswith("https"):
            return grpc.aio.insecure_channel(self.endpoint.grpc, options=[*options, ("grpc.enable_http_proxy", 0)])
        # A file of a few kilobytes, read once for each connection.
        root = Path(self.endpoint.ca_file).read_bytes() if self.endpoint.ca_file else None
        credentials = grpc.ssl_channel_credentials(root)
        return grpc.aio.secure_channel(self.endpoint.grpc, credentials, options=options)


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError as error:
        raise TimedOut(f"The engine did not answer within {seconds:g} s; try again, or restart it.") from error


@contextmanager
def _translated(*, begun: bool = False) -> Iterator[None]:
    """Turn the errors of httpx into ours.

    :param begun: the answer had begun to arrive.
    """
    import httpx

    try:
        yield
    except httpx.ConnectError as error:
        if type(error.__cause__).__name__ == "SSLCertVerificationError":
            raise Unavailable("The engine's certificate is not trusted; set the file of its authority.") from error
        raise NotReached("The engine does not answer; it is not running or has just stopped.") from error
    except (httpx.HTTPError, httpx.StreamError, RuntimeError) as error:
        if begun and isinstance(error, httpx.HTTPError):
            raise EngineFailed(BROKE_OFF) from error
        # RuntimeError: the client was closed because the engine ended.
        raise Unavailable("The engine broke off before it answered; it may have stopped.") from error


def _answer(response: httpx.Response) -> Answer:
    if response.status_code >= 400:
        raise _error(response.status_code, response.content)
    return Answer(response.content, response.headers.get("content-type", ""))


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise EngineFailed("The engine's answer is not a JSON object; is this really an OpenVINO Model Server?")
    return value


def _checked(events: bytes) -> Iterator[bytes]:
    """Yield whole events, all at once unless one may be an error (K.8), which is raised after those before it."""
    if b'"error"' not in events and events.startswith(b"data:") and b"\n\n{" not in events:
        yield events
        return
    for event in events.removesuffix(BORDER).split(BORDER):
        yield _event(event)


def _event(event: bytes, *, whole: bool = True) -> bytes:
    """Return one event with its blank line; an error that the engine put into the stream is raised (K.8).

    :param whole: its blank line was seen; the last event may lack it, but not half of itself.
    """
    stripped = event.lstrip()
    if not whole or stripped.startswith(b"{") or b'"error"' in stripped[:64]:
        payload = stripped.removeprefix(b"data:").strip()
        try:
            value = json.loads(payload)
        except ValueError as error:
            if not whole and payload != b"[DONE]":
                raise EngineFailed(BROKE_OFF) from error
            value = None
        if isinstance(value, dict) and value.get("error") and "choices" not in value:
            raise EngineFailed(explain(payload))
    return event + b"\n\n"


def _error(status: int, body: bytes) -> OvmsError:
    text = explain(body)
    if status == 500 and "api" in text.lower() and "key" in text.lower():
        return Unauthorized(text)  # a wrong key is a 500
    if status == 500 and "not loaded yet" in text.lower():
        return NotLoadedYet(text)  # and so is a model that is still loading (D.1)
    if status == 404 and ("requested name is not found" in text.lower() or "name is retired" in text.lower()):
        return NotServed(text)
    return BY_STATUS.get(status, EngineFailed)(text)


def explain(body: bytes) -> str:
    """Return what the engine's error body really says, without the wrapper of its graph machinery."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    text = value.get("error") if isinstance(value, dict) else None
    if isinstance(text, dict):  # as OpenAI writes it
        text = text.get("message")
    if not isinstance(text, str) or not text.strip():
        text = body[:300].decode(errors="replace").strip() or "no cause given"
    said = " ".join(text.rpartition(WRAPPER)[2].split()) or " ".join(text.split())
    return f"The engine says: {said}" if said else "The engine gave no cause."
