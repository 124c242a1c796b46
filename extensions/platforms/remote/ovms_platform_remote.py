"""An OVMS, or another KServe endpoint, that somebody else runs, such as on Kubernetes, or several of them.

See docs/cluster.md, and :class:`RemoteSettings` for what can be set below ``platforms.remote``.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from ovms_kernel.api.platforms import (
    BadRequest,
    Endpoint,
    Host,
    Installation,
    LaunchPlan,
    NotSupported,
    Ports,
    PreconditionFailed,
    Release,
    Requirement,
)


class RemoteSettings(msgspec.Struct, frozen=True):
    """What can be set."""

    url: str = ""
    """Base URL of the engine, such as `https://models.example.org`; it is used as soon as this is set."""
    others: tuple[str, ...] = ()
    """Base URLs of further engines that share the work; a request goes to one that serves its model."""
    grpc: str = ""
    """gRPC target, such as `models.example.org:443`; empty = none."""
    api_key: str = ""
    """The engine's API key."""
    api_key_file: str = ""
    """File that holds the API key; wins over `api_key`."""
    ca_file: str = ""
    """File of the certificate authority of the engine's certificate; empty = the system's."""


class Remote:
    """Names an engine and starts none; it is chosen as soon as it has a ``url``."""

    settings_type = RemoteSettings

    def __init__(self, settings: RemoteSettings) -> None:
        self._settings = settings
        self._url = settings.url.rstrip("/")
        self._others = tuple(each.rstrip("/") for each in settings.others)
        for name, url in (("url", self._url), *(("others", each) for each in self._others)):
            parts = urlsplit(url)
            if url and (parts.scheme not in ("http", "https") or not parts.hostname):
                raise BadRequest(f"platforms.remote.{name} must be like https://models.example.org, not {url}.")
        if self._others and not self._url:
            raise BadRequest("platforms.remote.others needs platforms.remote.url, the first of the engines.")

    def matches(self, host: Host) -> int:
        """Return a fit above all others if there is a URL: who sets one wants it."""
        del host
        return 100 if self._url else 0

    def release(self, host: Host, version: str) -> Release:
        """Return that there is nothing to fetch; the version is not ours to choose."""
        del host
        if version not in ("", "remote"):
            raise NotSupported(f"{self._in_charge()} decides its version, so {version} cannot be chosen here.")
        return Release("remote")

    async def requirements(self, installation: Installation) -> list[Requirement]:
        """Return nothing: the system that it needs is not this one."""
        del installation
        return []

    def launch(self, installation: Installation, ports: Ports) -> LaunchPlan:
        """Return where it answers."""
        del installation, ports
        if not self._url:
            raise PreconditionFailed("Set platforms.remote.url to the engine that somebody else runs.")
        key = self._settings.api_key
        if file := self._settings.api_key_file:
            try:
                key = Path(file).read_text("utf-8-sig").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise PreconditionFailed(f"The API key in {file} cannot be read: {error}.") from error
        ca_file = self._settings.ca_file
        if ca_file and not Path(ca_file).is_file():
            raise PreconditionFailed(
                f"The certificate authority {ca_file} is not there; set platforms.remote.ca_file to its file."
            )
        return LaunchPlan((), {}, endpoint=Endpoint(self._url, self._settings.grpc, key, ca_file, self._others))

    def _in_charge(self) -> str:
        return f"The administrator of the engine at {self._url or 'the remote URL'}"
