"""Where requests go: to `ovms-plugin serve` where it runs for this data folder, else to a kernel in this process."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from ovms_cli import output
from ovms_kernel.api.commands import (
    Answer,
    BadRequest,
    EngineFailed,
    LocalModel,
    NotFound,
    NotSupported,
    OvmsError,
    PreconditionFailed,
    Refused,
    TimedOut,
    Unauthorized,
    Unavailable,
    hookimpl,
    read_server,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    import httpx

    from ovms_cli.session import Session
    from ovms_kernel.api.commands import Extensions, Kernel, Request, RunningServer, Service

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
CODES: dict[str, type[OvmsError]] = {
    "model_not_found": NotFound,
    "overloaded": Unavailable,
    "refused": Refused,
    "unsupported": NotSupported,
    "timeout": TimedOut,
    "not_ready": PreconditionFailed,
    "engine_unauthorized": Unauthorized,
}
"""Errors by the code in the server's answer, where the status does not tell."""
CONNECT = 5.0
"""Seconds for a connection to this machine."""


class Services(Protocol):
    """What commands need of a kernel to ask services; see ``KernelApi``."""

    def service(self, name: str) -> Service:
        """Return one service."""
        ...

    async def list_models(self) -> list[LocalModel]:
        """Return the installed models, by id."""
        ...

    async def invoke(self, service: str, request: Request) -> Answer:
        """Answer one request as a whole."""
        ...

    def stream(self, service: str, request: Request) -> AsyncGenerator[bytes, None]:
        """Answer one request piece by piece."""
        ...


@asynccontextmanager
async def kernel_of(session: Session) -> AsyncIterator[Kernel]:
    """Give a kernel to ask services of: with an engine, and a word about why the first answer takes a while."""
    async with session.kernel() as kernel:
        if not await kernel.check_engine() and await kernel.list_models():
            output.say("No engine is installed; installing it first.")
            with output.progress("engine") as report:
                await kernel.install_engine(report=report)
        if not kernel.engine_runs():
            kernel.register("terminal", Starting())
        yield kernel


@asynccontextmanager
async def services_of(session: Session) -> AsyncIterator[Services]:
    """Give where requests go. A server that runs gets them, so that it knows which models are in use."""
    if (server := read_server(session.settings.data_dir)) is None:
        async with kernel_of(session) as kernel:
            yield kernel
        return
    installed = session.extensions(["services"])
    async with client_of(server) as client:
        yield ServerServices(client, installed)


class Starting:
    """Listens to the kernel and says once why the answer is not there yet."""

    told = False

    @hookimpl
    def ovms_amend_launch(self) -> None:
        """Say that the engine starts, and how to keep it for all requests."""
        if not self.told:
            self.told = True
            output.say("Starting the engine for this request; `ovms-plugin serve` keeps one running.")


class ServerServices:
    """The services of the server that runs for this data folder.

    :param installed: the extensions of this environment, whose services say at which path each is offered.
    """

    def __init__(self, client: httpx.AsyncClient, installed: Extensions) -> None:
        self._client = client
        self._installed = installed

    def service(self, name: str) -> Service:
        """Return one service.

        :raises NotFound: there is none of that name.
        """
        return self._installed.service(name)

    async def list_models(self) -> list[LocalModel]:
        """Return the installed models, by id; of each only what the server says."""
        found = json.loads((await send(self._client, "GET", "/v1/models")).body)["data"]
        return [
            LocalModel(
                each["id"], Path(), each.get("type", ""), each.get("size", 0), "",
                datetime.fromtimestamp(each["created"], UTC), alias_of=each.get("alias_of", ""),
            )
            for each in found
        ]  # fmt: skip

    async def invoke(self, service: str, request: Request) -> Answer:
        """Answer one request as a whole."""
        if not request.files:
            content = request.body if request.fields is None else json.dumps(dict(request.fields)).encode()
            headers = {"content-type": "application/json"}
            return await send(self._client, "POST", self._path(service), content=content, headers=headers)
        return await send(self._client, "POST", self._path(service, "/edits"), **form_of(request))

    async def stream(self, service: str, request: Request) -> AsyncGenerator[bytes, None]:
        """Answer one request piece by piece: whole server-sent events, or the bytes of a sound."""
        fields = {**(request.fields if request.fields is not None else json.loads(request.body)), "stream": True}
        sent = form_of(replace(request, fields=fields)) if request.files else {"json": fields}
        try:
            async with self._client.stream("POST", self._path(service), **sent) as response:
                if response.is_error:
                    raise error_of(response.status_code, await response.aread())
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    async for data in response.aiter_bytes():
                        yield data
                    return
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        yield f"{line}\n\n".encode()
        except Exception as error:
            raise told(error) from error

    def _path(self, service: str, ending: str = "") -> str:
        """Return the path of a service, the one with an ending where it has one."""
        paths = self.service(service).definition.paths
        if not paths:
            raise NotSupported(f"The server does not offer {service} over HTTP; stop it to ask the service from here.")
        return next((each for each in paths if ending and each.endswith(ending)), paths[0])


async def send(client: httpx.AsyncClient, method: str, path: str, **body: Any) -> Answer:  # noqa: ANN401 - as httpx takes it
    """Send one request to the server and return the whole answer; an error is raised as the kernel would."""
    try:
        response = await client.request(method, path, **body)
    except Exception as error:
        raise told(error) from error
    if response.is_error:
        raise error_of(response.status_code, response.content)
    return Answer(response.content, response.headers.get("content-type", "application/json"))


def form_of(request: Request) -> dict[str, Any]:
    """Return a request with files as httpx takes a multipart form: a list as a field that comes several times."""
    fields = request.fields if request.fields is not None else json.loads(request.body)
    form: dict[str, str | list[str]] = {}
    for name, value in fields.items():
        if isinstance(value, list):
            form[f"{name.removesuffix('[]')}[]"] = [_text(each) for each in value]
        elif value is not None:
            form[name] = _text(value)
    # The endpoints for recordings call theirs `file`.
    uploads = {
        "file" if name == "audio" else name: (each.name, each.data, each.content_type)
        for name, each in request.files.items()
    }
    return {"data": form, "files": uploads}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def told(error: Exception) -> Exception:
    """Return an error of the connection as one with a sentence; any other as it is."""
    import httpx

    if not isinstance(error, httpx.TransportError):
        return error
    kind = type(error).__name__
    return Unavailable(f"The server stopped answering ({kind}); start it again with `ovms-plugin serve`.")


def error_of(status: int, body: bytes) -> OvmsError:
    """Return the error that the server answers with, as a kernel in this process would raise it."""
    try:
        found = json.loads(body)["error"]
        message, code = str(found["message"]), found.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = f"The server answered with status {status}.", None
    by_status = ERRORS.get(status, EngineFailed if status >= 500 else BadRequest)
    return CODES.get(code, by_status)(message)


@asynccontextmanager
async def client_of(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """Give a connection to the server that runs here, with the key that it needs."""
    import httpx

    headers = {"authorization": f"Bearer {key}"} if (key := server.key()) else {}
    limits = httpx.Timeout(None, connect=CONNECT)
    # The server is on this machine: no proxy is meant for it.
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=limits, trust_env=False) as client:
        yield client
