"""Models from ModelScope, through its own client: it lists, authenticates, redirects and opens ranges.

Its own downloads are not used: they write every large file twice, give each at most an hour, let progress fall, and
know no limit of rate and no cancel (modelscope-hub 0.5.1). The kernel's ``fetch_files`` does that part.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Annotated, Any

import anyio.to_thread
import msgspec

from ovms_kernel.api.hubs import (
    BadRequest,
    FetchFailed,
    ModelRef,
    NotFound,
    OvmsError,
    Progress,
    RemoteFile,
    Unauthorized,
    fetch_files,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelscope_hub import HubApi
    from requests import Response, Session

CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class ModelScopeSettings(msgspec.Struct, frozen=True):
    """What can be set."""

    endpoint: str = ""
    """Base URL of a mirror."""
    token: str = ""
    """Access token; empty = `MODELSCOPE_API_TOKEN`, or what `modelscope login` stored."""
    proxy: str = ""
    """URL of a proxy; empty = the usual variables."""
    ca_file: str = ""
    """File of a certificate authority; empty = the system's."""
    allow_patterns: tuple[str, ...] = ()
    """Only files that match one of these shell patterns are pulled; none = all."""
    ignore_patterns: tuple[str, ...] = ()
    """Files that match one of these shell patterns are not pulled."""
    connections: Annotated[int, msgspec.Meta(ge=1)] = 8
    """Connections at the same time."""
    part_size: Annotated[int, msgspec.Meta(ge=1)] = 16 << 20
    """Bytes that one connection fetches at a time."""
    max_rate: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Bytes per second of all connections together; 0 = no limit."""
    stall_timeout: Annotated[float, msgspec.Meta(ge=0.01)] = 30.0
    """Time without a byte after which a connection is opened again."""
    retries: Annotated[int, msgspec.Meta(ge=0)] = 5
    """How often a part is tried again."""
    retry_delay: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    """Time before the first of these; it doubles with each."""


class ModelScope:
    """The hub driver."""

    settings_type = ModelScopeSettings

    def __init__(self, settings: ModelScopeSettings) -> None:
        self._settings = settings
        self._api: HubApi | None = None

    async def list_files(self, ref: ModelRef) -> list[RemoteFile]:
        """Return every file of the model that the patterns let through."""
        # The client tries a listing again for some seconds; whoever cancels need not wait for that.
        return await anyio.to_thread.run_sync(self._list, ref, abandon_on_cancel=True)

    async def download(
        self, ref: ModelRef, into: Path, report: Callable[[Progress], None], files: list[RemoteFile] | None = None
    ) -> None:
        """Fetch the files into the folder, each verified before it appears there under its name."""

        def open_range(file: RemoteFile, start: int, end: int) -> _Body:
            return self._open(ref, file, start, end)

        await fetch_files(
            await self.list_files(ref) if files is None else files,
            into,
            open_range,
            report,
            connections=self._settings.connections,
            part_size=self._settings.part_size,
            max_rate=self._settings.max_rate,
            stall=self._settings.stall_timeout,
            retries=self._settings.retries,
            retry_delay=self._settings.retry_delay,
        )

    def _client(self) -> HubApi:
        if self._api is None:
            import requests
            from modelscope_hub import HubApi

            api = HubApi(
                endpoint=self._settings.endpoint or None,
                token=self._settings.token or None,
                user_agent={"ovms-plugin": "1"},
            )
            for session in vars(api.legacy).values():
                if isinstance(session, requests.Session):
                    _insist(session, self._settings.proxy, self._settings.ca_file)
            # It writes on stderr by itself; what it says goes where everything else goes.
            logger = logging.getLogger("modelscope_hub")
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
            self._api = api
        return self._api

    def _list(self, ref: ModelRef) -> list[RemoteFile]:
        from modelscope_hub.errors import HubError

        if "/" not in ref.id:
            raise BadRequest(f"{ref.id} has no owner; write it as owner/name, such as OpenVINO/Qwen3-0.6B-int4-ov.")
        api = self._client()
        try:
            entries = api.list_repo_files(ref.id, "model", revision=ref.revision or None)
        except (HubError, OSError) as error:
            raise self._ours(error, ref) from error
        files = [
            RemoteFile(entry.path, int(entry.size or 0), (entry.sha256 or "").lower())
            for entry in entries
            if entry.type != "tree" and self._is_wanted(entry.path)
        ]
        if not files:
            raise NotFound(f"{ref.id} on {api.legacy.endpoint} has no files that could be pulled; look at its page.")
        return files

    def _is_wanted(self, path: str) -> bool:
        allowed = not self._settings.allow_patterns or any(
            fnmatch(path, each) for each in self._settings.allow_patterns
        )
        return allowed and not any(fnmatch(path, each) for each in self._settings.ignore_patterns)

    def _open(self, ref: ModelRef, file: RemoteFile, start: int, end: int) -> _Body:
        from modelscope_hub.errors import HubError

        headers = {"Range": f"bytes={start}-{end}", "Accept-Encoding": "identity"}
        try:
            response = self._client().legacy.download_stream(
                ref.id, "model", file.path, ref.revision or "master", headers=headers
            )
        except (HubError, OSError) as error:
            raise self._ours(error, ref, file.path) from error
        body = _Body(response)
        if body.ranged and body.start != start:
            body.close()
            raise FetchFailed(f"The hub sent another part of {file.path} than it was asked for; try again later.")
        return body

    def _ours(self, error: Exception, ref: ModelRef, path: str = "") -> OvmsError:
        """Return our error for one of the client's or of requests."""
        what = f"{path} of {ref.id}" if path else ref.id
        at = f" at revision {ref.revision}" if ref.revision else ""
        endpoint = self._client().legacy.endpoint
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            return Unauthorized(
                f"{endpoint} does not give out {what} with these credentials; set hubs.modelscope.token to a token "
                "that may read it, and accept the model's terms on its page."
            )
        if status in (404, 410):
            return NotFound(f"{endpoint} has no {what}{at}; check owner, name and revision on its site.")
        if status == 416:
            message = f"The hub has fewer bytes of {what} than it lists; try another mirror or revision."
            return FetchFailed(message, contradiction=True)
        reason = f"it answers with status {status}" if status else f"{type(error).__name__}"
        message = f"{endpoint} cannot be reached for {what} now ({reason}); check the network or try later."
        return FetchFailed(message, retry_after=getattr(error, "retry_after", None))


class _Body:
    """One answer of the hub, or of the store that it redirects to."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._aborted = False
        self.ranged = response.status_code == 206
        self.start = 0
        total = response.headers.get("Content-Length", "")
        if self.ranged:
            found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            self.start, total = (int(found[1]), found[3]) if found else (-1, "")
        self.total = int(total) if total.isdigit() else None

    def read(self, size: int) -> bytes:
        """Return what has arrived, at most so many bytes; nothing at the end."""
        from urllib3.exceptions import HTTPError

        try:
            piece = bytes(self._response.raw.read1(size))
        except (HTTPError, OSError, ValueError, AttributeError) as error:
            # The last two come of a connection that was shut down by ``abort`` in the middle of a read.
            raise FetchFailed(f"The connection to the hub broke ({type(error).__name__}); try again later.") from error
        if self._aborted:
            # Python gives up TLS with the first shutdown and then reads what has arrived as it is, still encrypted.
            raise FetchFailed("The connection to the hub was given up; try again later.")
        return piece

    def abort(self) -> None:
        """Make every ``read`` from now on raise, and one that waits in another thread."""
        self._aborted = True
        # The last of these comes of a ``close`` in another thread at the same moment.
        with suppress(OSError, RuntimeError, ValueError, TypeError):
            self._response.raw.shutdown()

    def close(self) -> None:
        """Give the connection back, or close it if there is more to read."""
        self._response.close()


def _insist(session: Session, proxy: str, ca_file: str) -> None:
    """Make a session of the client's use what is set here.

    The client has no parameters for it, and what a session itself is told, requests gives up for the environment's
    ``HTTPS_PROXY`` and ``REQUESTS_CA_BUNDLE``; what a single request is told wins over both.
    """
    merge = session.merge_environment_settings
    proxies = {"http": proxy, "https": proxy} if proxy else {}

    def told(url: str, given: dict[str, str] | None, stream: Any, verify: Any, cert: Any) -> Any:  # noqa: ANN401
        return merge(url, proxies | (given or {}), stream, ca_file or verify, cert)

    session.merge_environment_settings = told  # type: ignore[method-assign, assignment]
