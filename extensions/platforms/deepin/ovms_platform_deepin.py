"""OVMS on Deepin, with the build for Ubuntu 22.04, as AOG does it too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_kernel.api.platforms import (
    EXACT,
    GUESS,
    Build,
    Host,
    Installation,
    LaunchPlan,
    Ports,
    Release,
    Requirement,
    lacks_on_linux,
    launch_on_linux,
    ovms_release,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

BUILD = Build("ubuntu22", python="3.10", last="2026.4.1")
"""There is none for Deepin; this one's libraries are old enough."""
OLDEST = 23
"""The first Deepin whose C library (2.38) is newer than the build's (2.35); Deepin 20 has 2.28."""


class Deepin:
    """Knows which build fits Deepin."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        del section  # there is nothing to set

    def matches(self, host: Host) -> int:
        """Return how well the build fits."""
        if "deepin" not in (host.distribution, *host.like) or (host.os, host.machine) != ("linux", "x86_64"):
            return 0
        major = host.version.partition(".")[0]
        if not major.isdigit() or int(major) < OLDEST:
            return 0
        return EXACT if host.distribution == "deepin" else GUESS

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
