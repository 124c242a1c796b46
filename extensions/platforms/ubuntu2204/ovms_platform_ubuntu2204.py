"""OVMS on Ubuntu 22.04, on what derives from it, and, if it runs there, on relatives with libraries as new."""

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

BUILD = Build("ubuntu22", python="3.10", last="2026.4.1")
CODENAMES = {
    "jammy": DERIVED,
    # With libraries as new as the build's: Ubuntu 22.10 to 23.10, Debian 12.
    **dict.fromkeys(("kinetic", "lunar", "mantic", "bookworm"), GUESS),
}


class Ubuntu2204:
    """Knows the build for Ubuntu 22.04."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        del section  # there is nothing to set

    def matches(self, host: Host) -> int:
        """Return how well the build fits."""
        return fit_on_linux(host, "ubuntu", "22.04", CODENAMES)

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
