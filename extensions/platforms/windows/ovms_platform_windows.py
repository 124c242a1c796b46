"""OVMS on Windows 10 and 11; it brings its own Python."""

from __future__ import annotations

from anyio import to_thread

from ovms_kernel.api.platforms import (
    EXACT,
    Build,
    Host,
    Installation,
    LaunchPlan,
    Ports,
    Release,
    Requirement,
    lacks_on_windows,
    launch_on_windows,
    ovms_release,
)

BUILD = Build("windows", suffix=".zip")


class Windows:
    """Knows the build for Windows."""

    def matches(self, host: Host) -> int:
        """Return how well the build fits."""
        return EXACT if (host.os, host.machine) == ("windows", "x86_64") else 0

    def release(self, host: Host, version: str) -> Release:
        """Return the archive."""
        return ovms_release(BUILD, host, version)

    async def requirements(self, installation: Installation) -> list[Requirement]:
        """Return what the system lacks."""
        del installation
        return await to_thread.run_sync(lacks_on_windows)

    def launch(self, installation: Installation, ports: Ports) -> LaunchPlan:
        """Return how to start it."""
        del ports
        return launch_on_windows(installation)
