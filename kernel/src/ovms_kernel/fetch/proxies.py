"""Which proxy a request goes through: by ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY``, ``NO_PROXY``, or the system.

What a variable holds that nobody understands is passed over in ``NO_PROXY``, as curl does, and refused in words in the
others, as a request that goes around a proxy may leak where the user did not want it to.
"""

from __future__ import annotations

import ipaddress
import urllib.request
from contextlib import suppress
from urllib.parse import urlsplit

from ovms_kernel.errors import Unavailable

SCHEMES = {"http": "http", "https": "https", "socks": "socks5h", "socks5": "socks5", "socks5h": "socks5h"} | {
    name: name for name in ("socks4", "socks4a")
}
"""By how they are written; desktops write ``socks`` and mean version 5 with names resolved by the proxy."""


def proxy_for(url: str, chosen: str = "") -> str:
    """Return the proxy for a request, as a URL with one of the known schemes; empty if it needs none.

    :param chosen: the proxy by setting, which wins over the environment.
    :raises Unavailable: a variable or the setting names no proxy that can be used; the sentence names it.
    """
    parts = urlsplit(url)
    if chosen:
        return _checked(chosen, "the setting proxy")
    known = urllib.request.getproxies()
    if _bypassed(parts.hostname or "", parts.port, known.get("no", "")):
        return ""
    for name in (parts.scheme, "all"):
        if proxy := known.get(name):
            return _checked(proxy, f"{name.upper()}_PROXY")
    return ""


def _checked(proxy: str, source: str) -> str:
    scheme, _, rest = (proxy if "://" in proxy else f"http://{proxy}").partition("://")
    try:
        host = urlsplit(f"http://{rest}").hostname
        urlsplit(f"http://{rest}").port  # noqa: B018 - it raises if it is no number
    except ValueError:
        host = None
    if scheme.lower() not in SCHEMES or not host:
        shown = proxy.rpartition("@")[2]  # what stands before may be a password
        raise Unavailable(
            f"{source} names {shown!r}, which is not a proxy; "
            "write http://HOST:PORT or socks5h://HOST:PORT, or unset it."
        )
    return f"{SCHEMES[scheme.lower()]}://{rest}"


def _bypassed(host: str, port: int | None, listed: str) -> bool:
    """Tell whether ``NO_PROXY`` names the host: by name, by the end of its name, by address or by network."""
    host = host.lower().rstrip(".")
    address = None
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
    for entry in listed.lower().replace(",", " ").split():
        name, entry_port = _split_port(entry)
        if entry == "*":
            return True
        if entry_port and entry_port != port:
            continue
        if address is not None:
            with suppress(ValueError):
                network = ipaddress.ip_network(name, strict=False)
                if address.version == network.version and address in network:
                    return True
            continue
        name = name.removeprefix("*").lstrip(".").rstrip(".")
        if name and (host == name or host.endswith(f".{name}")):
            return True
    return False


def _split_port(entry: str) -> tuple[str, int | None]:
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        port = rest.removeprefix(":")
        return name, int(port) if port.isdigit() else None
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and ":" not in name:
        return name, int(port)
    return entry, None
