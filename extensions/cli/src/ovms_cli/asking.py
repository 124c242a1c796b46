"""Asking services: through `ovms-plugin serve` where it runs for this data folder, else through a kernel of our own."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ovms_cli import output
from ovms_kernel.errors import (
    BadRequest,
    EngineFailed,
    NotFound,
    NotSupported,
    OvmsError,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.values import Answer, Request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    import httpx

    from ovms_cli.session import Session
    from ovms_kernel.drivers import Service
    from ovms_kernel.kernel import Kernel
    from ovms_kernel.values import Upload

ERRORS: dict[int, type[OvmsError]] = {
    400: BadRequest,
    401: Unauthorized,
    404: NotFound,
    408: TimedOut,
    501: NotSupported,
    502: EngineFailed,
    503: Unavailable,
}
"""Errors by the status of the server's answer."""
CONNECT = 5.0
"""Seconds for a connection to this machine."""


class Asker(Protocol):
    """Where requests go."""

    async def models(self, model_type: str) -> list[str]:
        """Return the ids of the installed models of a type."""
        ...

    async def invoke(self, service: str, fields: Mapping[str, Any], files: Mapping[str, Upload] = ...) -> Answer:
        """Answer one request as a whole."""
        ...

    def stream(self, service: str, fields: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """Answer one request piece by piece."""
        ...


@asynccontextmanager
async def asker(session: Session) -> AsyncIterator[Asker]:
    """Give where requests go: the server of this data folder if one runs, so that it counts every use of a model."""
    if server := _server_of(session.settings.data_dir):
        from ovms_kernel.extensions import compose

        services = compose(session.settings, kinds=["services"]).services
        async with _client(*server) as client:
            yield ServerAsker(client, services)
        return
    async with session.kernel() as kernel:
        if not kernel.engine_runs():
            kernel.events.register({"terminal": Starting()})
        yield KernelAsker(kernel)


class Starting:
    """Listens to the kernel and says once why the answer is not there yet."""

    told = False

    @hookimpl
    def ovms_amend_launch(self) -> None:
        """Say that the engine starts, and how to keep it for all requests."""
        if not self.told:
            self.told = True
            output.say("Starting the engine for this request; `ovms-plugin serve` keeps one running.")


class KernelAsker:
    """Asks a kernel of this process."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    async def models(self, model_type: str) -> list[str]:
        """Return the ids of the installed models of a type."""
        return [each.id for each in await self._kernel.list_models() if each.model_type == model_type]

    async def invoke(
        self, service: str, fields: Mapping[str, Any], files: Mapping[str, Upload] | None = None
    ) -> Answer:
        """Answer one request as a whole."""
        request = Request(json.dumps(fields, ensure_ascii=False).encode(), files=files or {}, caller="cli")
        return await self._kernel.invoke(service, request)

    def stream(self, service: str, fields: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """Answer one request piece by piece.

        :raises NotSupported: the service answers only as a whole.
        """
        request = Request(json.dumps(fields, ensure_ascii=False).encode(), caller="cli")
        return self._kernel.stream(service, request)


class ServerAsker:
    """Asks the server that runs for this data folder."""

    def __init__(self, client: httpx.AsyncClient, services: Mapping[str, Service]) -> None:
        self._client = client
        self._services = services

    async def models(self, model_type: str) -> list[str]:
        """Return the ids of the installed models of a type."""
        answer = await self._send("GET", "/v1/models")
        return [each["id"] for each in json.loads(answer.body)["data"] if each.get("model_type") == model_type]

    async def invoke(
        self, service: str, fields: Mapping[str, Any], files: Mapping[str, Upload] | None = None
    ) -> Answer:
        """Answer one request as a whole."""
        if not files:
            return await self._send("POST", self._path(service), json=dict(fields))
        form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
        uploads = {name: (each.name, each.data, each.content_type) for name, each in files.items()}
        return await self._send("POST", self._path(service, files=True), data=form, files=uploads)

    async def stream(self, service: str, fields: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """Answer one request piece by piece.

        :raises NotSupported: the service answers only as a whole.
        """
        if not self._services[service].definition.streaming:
            raise NotSupported(f"The service {service} does not stream; ask for the whole answer.")
        body = dict(fields) | {"stream": True}
        try:
            async with self._client.stream("POST", self._path(service), json=body) as response:
                if response.is_error:
                    raise _error(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        yield f"{line}\n\n".encode()
        except OSError as error:
            raise _gone(error) from error
        except Exception as error:
            raise _told(error) from error

    def _path(self, service: str, *, files: bool = False) -> str:
        definition = self._services[service].definition if service in self._services else None
        if definition is None or not definition.paths:
            raise NotFound(f"The server offers no service {service!r} over HTTP.")
        # Pictures that come with files are edited; there is one path for each.
        edits = [each for each in definition.paths if each.endswith("/edits")]
        return edits[0] if files and edits else definition.paths[0]

    async def _send(self, method: str, path: str, **body: Any) -> Answer:  # noqa: ANN401 - as httpx takes it
        try:
            response = await self._client.request(method, path, **body)
        except Exception as error:
            raise _told(error) from error
        if response.is_error:
            raise _error(response.status_code, response.content)
        return Answer(response.content, response.headers.get("content-type", "application/json"))


def _told(error: Exception) -> Exception:
    """Return an error of the connection as one with a sentence; any other as it is."""
    import httpx

    return _gone(error) if isinstance(error, httpx.TransportError) else error


def _gone(error: Exception) -> Unavailable:
    return Unavailable(f"The server ended while it answered ({type(error).__name__}); `ovms-plugin serve` starts it.")


def _error(status: int, body: bytes) -> OvmsError:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"The server answered with status {status}."
    kind = ERRORS.get(status, EngineFailed if status >= 500 else BadRequest)
    return kind(message)


@asynccontextmanager
async def _client(url: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Timeout(None, connect=CONNECT)
    # The server is on this machine: no proxy is meant for it, and its certificate may be the user's own.
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=limits, trust_env=False) as client:
        yield client


def _server_of(data_dir: Path) -> tuple[str, str] | None:
    """Return the base URL and the key of the server that runs for a data folder."""
    import psutil

    try:
        found = json.loads((data_dir / "run" / "http.json").read_bytes())
        url, key_file, pid = str(found["url"]), str(found["key_file"]), int(found["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not psutil.pid_exists(pid):
        return None
    try:
        return url, Path(key_file).read_text("ascii").strip()
    except OSError:
        return url, ""
