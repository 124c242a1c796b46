"""Images that messages name: inside the request, on the web, or on this machine."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from ovms_embedded.rest.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.client import HTTPResponse

    from ovms_embedded.cli import Media
    from ovms_embedded.workers import Worker

    Result = TypeVar("Result")

TEXT_ONLY = "This servable supports only text input, but image_url has been provided"
MARK = "base64,"
REMOTE = ("http://", "https://", "ftp://", "sftp://")
LIMIT = 20_000_000
"""Bytes of an image that is fetched or read."""
SILENCE = 10.0
"""Seconds that a server of images may say nothing."""
PATIENCE = 60.0
"""Seconds that an image may take to arrive."""
REDIRECTS = (301, 302, 303, 307, 308)
HOPS = 5
"""Addresses that are asked for one image."""
SPELT = "%/:=&?~+!$,;'@()*[]"
"""Characters of a path or a query that stay as they are; the others are written as ``%`` and a number."""


async def read_images(sources: list[str], media: Media, worker: Worker) -> list[str | bytes]:
    """Return each image as the worker takes it: base64 as the request has it, or the bytes of a file.

    :raises Invalid: the model does not see, or an image is not allowed or not there.
    """
    if sources and not worker.info["vision"]:
        raise Invalid(TEXT_ONLY)
    return [await _image(each, media) for each in sources]


async def _image(source: str, media: Media) -> str | bytes:
    before, mark, text = source.partition(MARK)
    if mark:
        return text
    if before.startswith(REMOTE):
        address = _address(source, media)
        return await _aside(lambda: _fetch(address, media))
    if media.folder is None:
        raise Invalid("Loading images from local filesystem is disabled; see --allowed_local_media_path.")
    folder = media.folder
    return await _aside(lambda: _read(source, folder))


def _address(url: str, media: Media) -> str:
    """Return a URL that may be fetched, spelt anew, so that nobody finds another host in it than the one checked."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise Invalid("The URL of an image is malformed") from None
    if not host or (host not in media.domains and media.domains != {"all"}):
        raise Invalid("Given url does not match any allowed domain from allowed_media_domains")
    if parts.scheme not in ("http", "https"):
        raise Invalid(f"The embedded engine does not fetch images by {parts.scheme}; use http or https")
    where = f"[{host}]" if ":" in host else host
    if port is not None:
        where += f":{port}"
    return urlunsplit((parts.scheme, where, quote(parts.path, SPELT), quote(parts.query, SPELT), ""))


def _fetch(url: str, media: Media) -> bytes:
    from http.client import HTTPException
    from urllib import request
    from urllib.error import HTTPError

    from ovms_embedded.proxies import handlers_for

    for _ in range(HOPS):
        # Not build_opener: it follows redirects by itself, and knows files and FTP.
        opener = request.OpenerDirector()
        try:
            for handler in (*handlers_for(url), request.HTTPErrorProcessor(), request.HTTPDefaultErrorHandler()):
                opener.add_handler(handler)
            with opener.open(url, timeout=SILENCE) as answer:
                return _body(answer)
        except HTTPError as error:
            with error:
                target = error.headers.get("location") if media.redirects and error.code in REDIRECTS else None
                if target is None:
                    raise Invalid(f"Image downloading failed: {error.code} {error.reason}") from error
            url = _address(urljoin(url, target), media)
        except (OSError, HTTPException, ValueError) as error:
            raise Invalid(f"Image downloading failed: {getattr(error, 'reason', error)}") from error
    raise Invalid("Image downloading failed: too many redirects")


def _body(answer: HTTPResponse) -> bytes:
    end = time.monotonic() + PATIENCE
    data = bytearray()
    while piece := answer.read1(1 << 16):
        data += piece
        if len(data) > LIMIT:
            raise Invalid(f"Image downloading failed: it has more than {LIMIT} bytes")
        if time.monotonic() > end:
            raise Invalid(f"Image downloading failed: it takes more than {PATIENCE:.0f} seconds")
    return bytes(data)


def _read(source: str, folder: Path) -> bytes:
    try:
        path = Path(source).resolve()
        inside = path.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, with a zero byte, or links in a circle
        inside = False
    if not inside:
        raise Invalid("Given filepath is not subpath of allowed_local_media_path")
    try:
        if not path.is_file():
            raise Invalid("There is no image file at the given filepath")
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        raise Invalid(f"The image file cannot be read: {error.strerror}") from error
    if len(data) > LIMIT:
        raise Invalid(f"The image file has more than {LIMIT} bytes")
    return data


async def _aside(work: Callable[[], Result]) -> Result:
    """Run something that may take long in a thread for which nobody waits, neither at a cancel nor at the exit."""
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()  # from now on a cancel ends the waiting, not the work

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
            future.set_exception(error)

    threading.Thread(target=run, name="media", daemon=True).start()
    return await asyncio.wrap_future(future)
