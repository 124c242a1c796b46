"""Images and sounds in requests: base64, a data URI, a path on this machine, or a URL of an allowed host."""

from __future__ import annotations

import base64
import binascii
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio

from ovms_kernel.errors import BadRequest, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

Source = Literal["base64", "path", "url"]

MAX_FILE = 512 << 20
"""Bytes of a file that is read for a request."""
MAX_FETCH = 64 << 20
"""Bytes that are fetched from a URL."""
FETCH_LIMIT = 60.0
"""Seconds that a fetch may take."""


def host_names(hosts: Iterable[str]) -> frozenset[str]:
    """Return the names of hosts that may be fetched from, as they are compared."""
    return frozenset(host.strip().lower() for host in hosts if host.strip())


def source_of(text: str) -> Source:
    """Tell what a text stands for that came without saying so."""
    if re.match(r"https?://", text, re.IGNORECASE):
        return "url"
    if text.startswith(("file://", "~/", "~\\")):
        return "path"
    # Base64 may begin with a slash, but is hardly the name of a file that exists.
    if len(text) < 4096 and Path(text).is_absolute() and (not text.startswith("/") or _exists(text)):
        return "path"
    if len(text) < 1024 and re.search(r"\.\w{2,5}$", text) and re.search(r"[/\\]", text):
        return "path"  # a path that does not exist, to be refused as one
    return "base64"


async def read_media(
    field: str,
    value: object,
    *,
    source: str | None = None,
    hosts: frozenset[str] = frozenset(),
    local: bool = False,
) -> bytes:
    """Return the bytes that a field of a request stands for.

    :param field: its name, for the error.
    :param source: ``base64``, ``path`` or ``url``, as the request says; ``None`` if it does not.
    :param hosts: that may be fetched from.
    :param local: the caller may name files of this machine.
    :raises BadRequest: there is nothing to read, or it may not be read.
    """
    if not isinstance(value, str) or not value.strip():
        ways = "or the path of a file on this machine" if local else "or an uploaded file"
        raise BadRequest(f"The field {field} must be base64, a data URI, {ways}.")
    text = value.strip()
    kind = source or ("base64" if text.startswith("data:") else source_of(text))
    if kind == "base64":
        return await anyio.to_thread.run_sync(decode_base64, field, text)
    if kind == "path":
        if not local:
            raise BadRequest(
                f"The field {field} is a path, which is read for programs of this machine only; upload it."
            )
        return await anyio.to_thread.run_sync(read_file, field, text)
    if kind == "url":
        return await _fetch(field, text, hosts)
    raise BadRequest(f"The kind of {field} must be base64, path or url, not {kind!r}.")


def decode_base64(field: str, text: str) -> bytes:
    """Return the bytes of base64 or of a data URI; line breaks, the URL alphabet and missing padding are all right.

    :raises BadRequest: it is something else, or empty.
    """
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise BadRequest(f"The data URI in {field} must be of the form data:<type>;base64,<data>.")
    plain = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        data = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise BadRequest(f"The field {field} is neither base64, nor a data URI, nor the path of a file that exists.")
    return data


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def read_file(field: str, text: str) -> bytes:
    """Return the bytes of a file of this machine.

    :raises BadRequest: its path is not absolute, it is not a regular file, too large, or cannot be read.
    """
    try:
        path = _path_of(text)
        if not path.is_absolute():
            raise BadRequest(f"The path in {field} must be absolute, not {text}.")
        status = path.stat()  # before it is opened: to open a pipe that nobody writes to would wait for ever
        if not stat.S_ISREG(status.st_mode):
            raise BadRequest(f"{path}, named in {field}, is not a regular file; name one.")
        if status.st_size > MAX_FILE:
            raise BadRequest(f"{path}, named in {field}, has more than {MAX_FILE >> 20} MB; send a smaller one.")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~ of somebody who is not known here
        cause = getattr(error, "strerror", None) or error
        raise BadRequest(
            f"The file {text}, named in {field}, cannot be read ({cause}); check its path and permissions."
        ) from error


def _path_of(text: str) -> Path:
    if text.startswith("file://"):
        from urllib.parse import urlsplit
        from urllib.request import url2pathname

        text = url2pathname(urlsplit(text).path)
    return Path(text).expanduser()


async def _fetch(field: str, url: str, hosts: frozenset[str]) -> bytes:
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    from ovms_kernel.fetch.http import FetchFailed, TooLarge, Web

    try:
        parsed = parse_url(url)  # by what makes the request, so that both see the same host
    except LocationParseError as error:
        raise BadRequest(
            f"The field {field} does not hold a valid URL; write one that begins with https://."
        ) from error
    host = (parsed.host or "").strip("[]").lower()
    if parsed.scheme not in ("http", "https") or not host:
        raise BadRequest(f"The URL in {field} must begin with http:// or https://.")
    if host not in hosts:
        raise BadRequest(
            f"Nothing is fetched from {host}: add it to the setting allowed_hosts, "
            f"or send {field} as base64 or as a path."
        )
    # Redirects are not followed: they could lead to hosts that are not allowed.
    web = Web(follow=False)
    try:
        return await anyio.to_thread.run_sync(
            lambda: web.read(parsed.url, limit=MAX_FETCH, seconds=FETCH_LIMIT), abandon_on_cancel=True
        )
    except TooLarge as error:
        raise BadRequest(f"The URL in {field} leads to more than {MAX_FETCH >> 20} MB; send a smaller file.") from error
    except FetchFailed as error:
        if error.status:
            raise BadRequest(f"{host} answered {error.status} for the URL in {field}; check the URL.") from error
        raise Unavailable(f"The URL in {field} could not be fetched from {host}: {error.message}") from error
