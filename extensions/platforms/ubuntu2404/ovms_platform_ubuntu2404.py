"""OVMS on Ubuntu 24.04, on what derives from it, and, if it runs there, on its newer relatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_kernel.api.platforms import (
    DERIVED,
    GUESS,
    Build,
    Finding,
    Host,
    Installation,
    LaunchPlan,
    Ports,
    Release,
    Requirement,
    check_python,
    fit_on_linux,
    hookimpl,
    lacks_on_linux,
    launch_on_linux,
    ovms_release,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

BUILD = Build("ubuntu24", python="3.12")
CODENAMES = {
    "noble": DERIVED,
    # Newer than the build's libraries: Ubuntu 24.10 to 26.04, Debian 13.
    **dict.fromkeys(("oracular", "plucky", "questing", "resolute", "trixie"), GUESS),
}


class Ubuntu2404:
    """Knows the build for Ubuntu 24.04."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        del section  # there is nothing to set

    def matches(self, host: Host) -> int:
        """Return how well the build fits."""
        return fit_on_linux(host, "ubuntu", "24.04", CODENAMES)

    def release(self, host: Host, version: str) -> Release:
        """Return the archive."""
        return ovms_release(BUILD, host, version)

    async def requirements(self, installation: Installation) -> list[Requirement]:
        """Return what the system lacks."""
        return await lacks_on_linux(installation, BUILD)

    def launch(self, installation: Installation, ports: Ports) -> LaunchPlan:
        """Return how to start it."""
        del ports
        return launch_on_linux(installation)

    @hookimpl
    def ovms_check_host(self, host: Host) -> list[Finding]:
        """Say what more would be possible."""
        return check_python(BUILD, host, self.matches(host))
