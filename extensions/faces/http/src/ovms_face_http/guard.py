"""Who may ask: the Host and Origin of a request, and its key.

A page of a hostile site reaches a server on this machine in two ways: by a request of its own, which carries the page's
Origin, or by a name of its own that it makes resolve to this machine (DNS rebinding), which stands in Host.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_face_http.config import HttpSettings
    from ovms_face_http.keys import Keys

Headers = list[tuple[bytes, bytes]]

NAMES = frozenset({"localhost", "host.docker.internal", "host.containers.internal"})
"""Names that nobody on the internet can own."""
EXPOSED = b"x-request-id, retry-after, warning"
PREFLIGHT_AGE = b"600"


class Denied(Exception):
    """The request gets no further."""

    def __init__(self, status: int, message: str, code: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or []


@dataclass(frozen=True)
class Guard:
    """Judges the heads of requests.

    :param keys: ``None`` = no key is needed.
    """

    settings: HttpSettings
    keys: Keys | None
    names: frozenset[str] = field(init=False)
    """Values of Host that are accepted beside addresses."""

    def __post_init__(self) -> None:
        own = socket.gethostname().lower()
        listed = {urlsplit(each).hostname or "" for each in self.settings.allowed_origins}
        object.__setattr__(self, "names", NAMES | listed | {own, f"{own}.local", self.settings.host.lower()} - {""})

    def cross_origin(self, headers: Mapping[bytes, bytes]) -> Headers:
        """Check Host and Origin, and return the headers that let the page read the answer.

        :raises Denied: a page must not see this, whatever its key.
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if not self._is_ours(name):
            raise Denied(
                403,
                f"This server does not answer for the host {name!r}; use its address, or add the name's origin to "
                "faces.http.allowed_origins.",
                "host_not_allowed",
            )
        origin = headers.get(b"origin")
        if origin is None:
            return []
        text = origin.decode("latin-1")
        allowed = self.settings.allowed_origins
        if text not in allowed and "*" not in allowed and text.lower() != f"{self.settings.scheme}://{host}":
            raise Denied(
                403,
                f"Pages of {text} may not use this server; add that origin to faces.http.allowed_origins.",
                "origin_not_allowed",
            )
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED),
            (b"vary", b"origin"),
        ]

    def _is_ours(self, name: str) -> bool:
        # What is an address already does not have to be resolved by anybody.
        return name in self.names or _is_address(name.strip("[]"))

    def caller(self, headers: Mapping[bytes, bytes]) -> str:
        """Return the name of the key that a request carries; empty where none is needed.

        :raises Denied: it carries none, or a wrong one.
        """
        if self.keys is None:
            return ""
        key = sent_key(headers)
        if key and (name := self.keys.name_of(key)) is not None:
            return name
        said = "That API key is not known here" if key else "This needs an API key"
        raise Denied(
            401,
            f"{said}; send `Authorization: Bearer KEY`. `ovms-plugin connect` shows the key, "
            "`ovms-plugin key add NAME` makes another.",
            "invalid_api_key",
            [(b"www-authenticate", b'Bearer realm="ovms-plugin"')],
        )


@lru_cache(maxsize=64)
def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def sent_key(headers: Mapping[bytes, bytes]) -> str:
    """Return the key in a request as OpenAI's, Anthropic's or Azure's clients send it; empty if there is none."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and key.strip():
        return key.strip().decode("latin-1")
    return (headers.get(b"x-api-key") or headers.get(b"api-key") or b"").strip().decode("latin-1")


def preflight(headers: Mapping[bytes, bytes]) -> Headers:
    """Return what a browser wants to know before it sends a request of an allowed page."""
    told = [
        (b"access-control-allow-methods", b"GET, POST, DELETE, HEAD, OPTIONS"),
        (b"access-control-allow-headers", headers.get(b"access-control-request-headers", b"authorization")),
        (b"access-control-max-age", PREFLIGHT_AGE),
    ]
    if headers.get(b"access-control-request-private-network") == b"true":
        told.append((b"access-control-allow-private-network", b"true"))
    return told
