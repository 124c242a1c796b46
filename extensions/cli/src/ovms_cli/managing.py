"""Where models are managed: by the server that runs for this data folder, as it knows which are in use, else here."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import anyio.to_thread

from ovms_cli import output
from ovms_cli.asking import client_of, error_of, send, told
from ovms_kernel.api.administration import find_model
from ovms_kernel.api.commands import Progress, Unavailable, need_engine, parse_model_id, read_server, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    import httpx

    from ovms_cli.session import Session
    from ovms_kernel.api.commands import Kernel, LocalModel, RunningServer, Store

    Report = Callable[[Progress], None]

ENDED = "The server ended before the {} was done; run the same command again to resume it."


class Library(Protocol):
    """What commands need to change which models are here and which are loaded."""

    async def pull(self, model: str, model_type: str, *, refresh: bool, report: Report) -> LocalModel:
        """Fetch a model from its hub, or find that it is here and complete."""
        ...

    async def import_(
        self, path: Path, model: str, model_type: str, options: Mapping[str, Any], report: Report
    ) -> LocalModel:
        """Import a model from a folder or archive."""
        ...

    async def delete(self, model: str) -> None:
        """Unload a model and remove it from disk."""
        ...

    async def load(self, model: str, keep_alive: float | None) -> None:
        """Load a model; it stays for so many seconds after its last use, ``None`` = as the settings say."""
        ...

    async def unload(self, model: str) -> None:
        """Unload a model."""
        ...

    async def pin(self, model: str, *, pinned: bool) -> None:
        """Keep a model loaded, or no longer."""
        ...


@asynccontextmanager
async def library_of(session: Session, **overrides: Any) -> AsyncIterator[Library]:  # noqa: ANN401 - as read_settings takes them
    """Give where models are managed.

    :param overrides: settings of this command alone, which a server does not have: it is done here.
    """
    server = None if overrides else read_server(session.settings.data_dir)
    if server:
        async with client_of(server) as client:
            yield ServerLibrary(server, client, session.store())
        return
    async with session.kernel(**overrides) as kernel:
        yield KernelLibrary(session, kernel)


class KernelLibrary:
    """The models of this data folder, and the engine of another process if one runs."""

    def __init__(self, session: Session, kernel: Kernel) -> None:
        self._session = session
        self._kernel = kernel

    async def pull(self, model: str, model_type: str, *, refresh: bool, report: Report) -> LocalModel:
        """Fetch a model from its hub."""
        return await self._kernel.pull_model(model, model_type=model_type, refresh=refresh, report=report)

    async def import_(
        self, path: Path, model: str, model_type: str, options: Mapping[str, Any], report: Report
    ) -> LocalModel:
        """Import a model from a folder or archive."""
        return await self._kernel.import_model(path, model, model_type=model_type, options=options, report=report)

    async def delete(self, model: str) -> None:
        """Unload a model and remove it from disk."""
        await running(self._kernel)
        await self._kernel.delete_model(model)

    async def load(self, model: str, keep_alive: float | None) -> None:
        """Load a model."""
        await need_engine(self._kernel)
        await self._kernel.load_model(model, keep_alive=keep_alive)

    async def unload(self, model: str) -> None:
        """Unload a model."""
        await need_engine(self._kernel)
        # Named first, because the kernel passes over what is not served and a typing error should not.
        found = find_model(self._kernel, model)
        await self._kernel.unload_models([found.id])

    async def pin(self, model: str, *, pinned: bool) -> None:
        """Keep a model loaded, or no longer."""
        await self._kernel.pin_model(model, pinned=pinned)


class ServerLibrary:
    """The models of the server that runs for this data folder."""

    def __init__(self, server: RunningServer, client: httpx.AsyncClient, store: Store) -> None:
        self._server = server
        self._client = client
        self._store = store

    async def pull(self, model: str, model_type: str, *, refresh: bool, report: Report) -> LocalModel:
        """Fetch a model from its hub."""
        asked = {"model": model, "type": model_type, "refresh": refresh}
        return await self._follow("pull", asked, report)

    async def import_(
        self, path: Path, model: str, model_type: str, options: Mapping[str, Any], report: Report
    ) -> LocalModel:
        """Import a model from a folder or archive."""
        asked = {"path": _for_server(path), "model": model, "type": model_type, "options": dict(options)}
        return await self._follow("import", asked, report)

    async def delete(self, model: str) -> None:
        """Unload a model and remove it from disk."""
        await send(self._client, "DELETE", f"/v1/models/{quote(parse_model_id(model))}")

    async def load(self, model: str, keep_alive: float | None) -> None:
        """Load a model."""
        given = {} if keep_alive is None else {"parameters": {"keep_alive": keep_alive}}
        await self._change(model, "load", json=given)

    async def unload(self, model: str) -> None:
        """Unload a model."""
        await self._change(model, "unload")

    async def pin(self, model: str, *, pinned: bool) -> None:
        """Keep a model loaded, or no longer."""
        await self._change(model, "pin" if pinned else "unpin")

    async def _change(self, model: str, verb: str, **body: Any) -> None:  # noqa: ANN401 - as httpx takes it
        await send(self._client, "POST", f"/v2/repository/models/{quote(parse_model_id(model))}/{verb}", **body)

    async def _follow(self, what: str, asked: Mapping[str, Any], report: Report) -> LocalModel:
        """Ask for work and report its progress until it is done; leaving ends it, unless others wait for it, too."""
        headers = {"x-ovms-control": self._server.control}
        path = f"/v2/repository/{what}"
        try:
            async with self._client.stream("POST", path, json=asked, headers=headers) as response:
                if response.is_error:
                    raise error_of(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    found = json.loads(line)
                    if "error" in found:
                        raise error_of(400 if found["error"]["type"] == "invalid_request_error" else 500, line.encode())
                    if "model" in found:
                        return await anyio.to_thread.run_sync(self._store.find, found["model"])
                    if "notice" in found:
                        output.say(found["notice"])
                    else:
                        report(Progress(**found))
        except Exception as error:
            if told(error) is error:
                raise
            raise Unavailable(ENDED.format(what)) from error
        raise Unavailable(ENDED.format(what))


def _for_server(path: Path) -> str:
    return str(path.absolute())  # the server runs in another folder
