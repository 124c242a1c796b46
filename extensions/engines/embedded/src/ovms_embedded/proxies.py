"""Requests through the proxies that ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` name.

urllib alone knows neither SOCKS nor ``ALL_PROXY``, and no address or network of IPv6 in ``NO_PROXY``.
"""

from __future__ import annotations

import ipaddress
import urllib.request
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

HTTP = ("http", "https")
SOCKS = ("socks", "socks4", "socks4a", "socks5", "socks5h")
TURNS = ("socks", "socks4a", "socks5h")
"""Those whose proxy looks up names."""
SOCKS_PORT = 1080


def handlers_for(url: str) -> list[urllib.request.BaseHandler]:
    """Return urllib's handlers that open a URL, through a proxy if one is meant for it.

    :raises ValueError: a variable names a proxy that cannot be used.
    """
    proxy = _proxy_for(url)
    if proxy.partition("://")[0] in SOCKS:
        return [urllib.request.ProxyHandler({}), _through_socks(proxy)]
    scheme = urlsplit(url).scheme
    return [
        urllib.request.ProxyHandler({scheme: proxy} if proxy else {}),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
    ]


def _proxy_for(url: str) -> str:
    """Return the proxy for a URL, with a scheme; empty if it needs none."""
    parts = urlsplit(url)
    known = urllib.request.getproxies()
    if _bypassed(parts.hostname or "", parts.port, known.get("no", "")):
        return ""
    for name in (parts.scheme, "all"):
        if proxy := known.get(name, ""):
            return _checked(proxy, f"{name.upper()}_PROXY")
    return ""


def _checked(proxy: str, source: str) -> str:
    scheme, _, rest = (proxy if "://" in proxy else f"http://{proxy}").partition("://")
    try:
        parts = urlsplit(f"http://{rest}")
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or scheme.lower() not in (*HTTP, *SOCKS):
        shown = proxy.rpartition("@")[2]  # what stands before may be a password
        message = f"{source} names {shown!r}, which is not a proxy; write http://HOST:PORT or socks5h://HOST:PORT"
        raise ValueError(message)
    return f"{scheme.lower()}://{rest}"


def _through_socks(proxy: str) -> urllib.request.BaseHandler:
    import socks
    from sockshandler import SocksiPyHandler

    parts = urlsplit(proxy)
    kind = socks.SOCKS4 if parts.scheme.startswith("socks4") else socks.SOCKS5
    user, password = (unquote(each) if each else None for each in (parts.username, parts.password))
    handler: Any = SocksiPyHandler(
        kind, parts.hostname, parts.port or SOCKS_PORT, parts.scheme in TURNS, user, password
    )
    return handler  # type: ignore[no-any-return]


def _bypassed(host: str, port: int | None, listed: str) -> bool:
    """Tell whether ``NO_PROXY`` names the host: by name, by the end of its name, by address or by network."""
    host = host.lower().rstrip(".")
    address = None
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
    for entry in listed.lower().replace(",", " ").split():
        if entry == "*":
            return True
        name, wanted = _split_port(entry)
        if wanted and wanted != port:
            continue
        if address is None:
            name = name.removeprefix("*").strip(".")
            if name and (host == name or host.endswith(f".{name}")):
                return True
            continue
        with suppress(ValueError, TypeError):  # no network, or one of the other version
            if address in ipaddress.ip_network(name, strict=False):
                return True
    return False


def _split_port(entry: str) -> tuple[str, int | None]:
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        name, _, port = entry.rpartition(":")
        if not name or ":" in name:  # no port, or an address of IPv6
            return entry, None
    return (name, int(port)) if port.isdigit() else (name if entry.startswith("[") else entry, None)
