"""Models from ModelScope, through its own client: it lists, searches and authenticates.

Its own downloads are not used: they write every large file twice, give each at most an hour, let progress fall, and
know no limit of rate and no cancel (modelscope-hub 0.5.1). The kernel does that part for every hub.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from ovms_kernel.api.hubs import (
    LISTING_LIMIT,
    LISTING_TIME,
    FetchFailed,
    FoundModel,
    HubSettings,
    ModelRef,
    RemoteFile,
    Web,
    check_owner,
    check_reachable,
    proxy_for,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelscope_hub import HubApi
    from requests import PreparedRequest, Response, Session

    from ovms_kernel.api.hubs import Body, OvmsError

REACH_TIME = 2.0
"""Seconds to connect, before the hub counts as unreachable."""


class ModelScope:
    """The hub driver. Without a token it uses ``MODELSCOPE_API_TOKEN``, or that of ``modelscope login``."""

    alias = "ms"
    settings_type = HubSettings

    def __init__(self, settings: HubSettings) -> None:
        self._settings = settings
        self._web = Web(proxy=settings.proxy, ca_file=settings.ca_file)
        self._api: HubApi | None = None
        self.pace = settings.pace()

    async def list_files(self, ref: ModelRef) -> list[RemoteFile]:
        """Return every file of the model that the patterns let through."""
        await check_reachable(self._client().legacy.endpoint, self._settings.proxy)
        # The client tries a listing again for some seconds; a cancel need not wait for that.
        return await anyio.to_thread.run_sync(self._list, ref, abandon_on_cancel=True)

    async def search(self, words: str, limit: int) -> list[FoundModel]:
        """Return models that the words find."""
        await check_reachable(self._client().legacy.endpoint, self._settings.proxy)
        return await anyio.to_thread.run_sync(self._search, words, limit, abandon_on_cancel=True)

    def open(self, ref: ModelRef, file: RemoteFile, start: int, end: int) -> Body:
        """Ask for a range of a file."""
        legacy = self._client().legacy
        url = legacy.get_download_url(ref.id, "model", file.path, ref.revision or "master")
        headers = {}
        if token := self._settings.token or legacy._token:
            # Older endpoints take the cookie, newer ones the header; the client sends both.
            headers = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}
        try:
            return self._web.open(url, start=start, end=end, headers=headers)
        except FetchFailed as error:
            raise self._ours(error, ref, file.path) from error

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

        check_owner(ref)
        api = self._client()
        try:
            entries = api.list_repo_files(ref.id, "model", revision=ref.revision or None)
            files = [
                RemoteFile(_path(entry.path), int(entry.size or 0), _digest(entry.sha256))
                for entry in entries
                if entry.type != "tree"
            ]
        except (HubError, OSError) as error:
            raise self._ours(error, ref) from error
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            # The client believes whatever a page says that is JSON, such as a login page's.
            raise FetchFailed(
                f"{api.legacy.endpoint} answers with something other than a list of files "
                f"({type(error).__name__}); check the setting hubs.modelscope.endpoint and the proxy."
            ) from error
        return self._settings.wanted(files, ref, api.legacy.endpoint)

    def _search(self, words: str, limit: int) -> list[FoundModel]:
        from modelscope_hub.errors import HubError

        api = self._client()
        try:
            found = api.list_repos("model", search=words, page_size=limit)
            return [FoundModel(str(each.id), int(getattr(each, "downloads", 0) or 0)) for each in found.items]
        except (HubError, OSError) as error:
            raise self._ours(error, ModelRef(words)) from error
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise FetchFailed(
                f"{api.legacy.endpoint} cannot be searched ({type(error).__name__}); try again later."
            ) from error

    def _ours(self, error: Exception, ref: ModelRef, path: str = "") -> OvmsError:
        """Return our error for one of the client's or of requests."""
        what = f"{path} of {ref.id}" if path else ref.id
        endpoint = self._client().legacy.endpoint
        status = int(getattr(error, "status_code", 0) or getattr(error, "status", 0) or 0)
        if refused := refusal(status, "modelscope", endpoint, ref, path):
            return refused
        if status == 416:
            message = f"The hub has fewer bytes of {what} than it lists; try another mirror or revision."
            return FetchFailed(message, contradiction=True)
        if isinstance(error, FetchFailed) and not status:
            return error
        reason = f"it answers with status {status}" if status else _cause(error)
        message = f"{endpoint} cannot be reached for {what} now ({reason}); check the network or try later."
        return FetchFailed(message, status=status, retry_after=getattr(error, "retry_after", None))


def _insist(session: Session, proxy: str, ca_file: str) -> None:
    """Make a session of the client's use what is set here, and bound what it reads.

    The client has no parameters for either. What a session itself is told, requests gives up for the environment's
    ``HTTPS_PROXY`` and ``REQUESTS_CA_BUNDLE``; what a single request is told wins over both. The proxy is chosen as for
    every other download: requests knows no networks of IPv6 in ``NO_PROXY`` and no ``socks://``.
    """
    from requests.adapters import HTTPAdapter

    class Bounded(HTTPAdapter):
        def send(self, request: PreparedRequest, **how: Any) -> Response:  # type: ignore[override]  # noqa: ANN401
            how["timeout"] = (REACH_TIME, LISTING_TIME)
            response = super().send(request, **how)
            _bound(response.raw)
            return response

    merge = session.merge_environment_settings

    def told(url: str, given: dict[str, str] | None, stream: Any, verify: Any, cert: Any) -> Any:  # noqa: ANN401
        chosen = proxy_for(url, proxy)
        proxies = {"http": chosen, "https": chosen} if chosen else {"no_proxy": "*"}
        return merge(url, proxies | (given or {}), stream, ca_file or verify, cert)

    session.merge_environment_settings = told  # type: ignore[method-assign, assignment]
    for scheme in ("https://", "http://"):
        session.mount(scheme, Bounded())


def _bound(raw: Any) -> None:  # noqa: ANN401 - urllib3's answer, without types here
    """Bound the bytes and seconds of an answer, in both ways in which the client reads one."""
    stream, read1, end, size = raw.stream, raw.read1, time.monotonic() + LISTING_TIME, 0

    def counted(piece: bytes) -> bytes:
        nonlocal size
        size += len(piece)
        if size > LISTING_LIMIT:
            raise OSError(f"an answer of more than {LISTING_LIMIT >> 20} MB")
        if time.monotonic() > end:
            raise OSError(f"an answer that takes more than {LISTING_TIME:g} s")
        return piece

    def pieces(*words: Any, **how: Any) -> Iterator[bytes]:  # noqa: ANN401
        timer = threading.Timer(LISTING_TIME, raw.shutdown)
        timer.daemon = True
        timer.start()
        try:
            yield from map(counted, stream(*words, **how))
        finally:
            timer.cancel()

    raw.stream = pieces
    raw.read1 = lambda *words, **how: counted(read1(*words, **how))


def _path(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a path that is not a text")
    return value


def _digest(value: object) -> str:
    """Return a SHA-256 as the hub lists it; empty if that is none."""
    return value.lower() if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{64}", value) else ""


def _cause(error: Exception) -> str:
    """Return the innermost cause in words."""
    cause: BaseException = error
    while inner := cause.__cause__ or cause.__context__:
        cause = inner
    words = re.sub(r"<[^>]*>:? ?", "", " ".join(str(cause).split()))
    return words if 0 < len(words) < 160 else type(cause).__name__
