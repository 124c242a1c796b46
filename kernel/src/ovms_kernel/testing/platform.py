"""Platforms whose engine is :mod:`ovms_kernel.testing.misbehaving`: started as it is, or packed as OVMS is packed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from ovms_kernel.engine.ovms_linux import launch_on_linux
from ovms_kernel.testing.process import bare_environment
from ovms_kernel.values import LaunchPlan, Release

if TYPE_CHECKING:
    from ovms_kernel.values import Host, Installation, Ports, Requirement


class MisbehavingSettings(msgspec.Struct, frozen=True):
    """What can be set."""

    how: str = ""
    """How the engine fails; see ``misbehaving``."""
    version: str = "1.0"


class MisbehavingPlatform:
    """Fits every host; its engine behaves as the setting ``how`` says, which tests may change between starts."""

    settings_type = MisbehavingSettings

    def __init__(self, settings: MisbehavingSettings | None = None) -> None:
        settings = settings or MisbehavingSettings()
        self.how, self.version = settings.how, settings.version
        self.program = (sys.executable, "-m", "ovms_kernel.testing.misbehaving")

    def matches(self, host: Host) -> int:
        """Return a fit above every other platform's."""
        del host
        return 1000

    def release(self, host: Host, version: str) -> Release:
        """Return a release that needs no download."""
        del host
        return Release(version or self.version)

    async def requirements(self, installation: Installation) -> list[Requirement]:
        """Return nothing."""
        del installation
        return []

    def launch(self, installation: Installation, ports: Ports) -> LaunchPlan:
        """Return how to start it."""
        del installation, ports
        return LaunchPlan((*self.program, "--how", self.how), bare_environment(PATH=os.environ.get("PATH", "")))


class PackedPlatform:
    """A platform whose releases :mod:`ovms_kernel.testing.archives` has written and serves.

    :param mirrors: where the archives are.
    :param fields: further fields of each release.
    """

    def __init__(self, *mirrors: str, fit: int = 1000, **fields: Any) -> None:  # noqa: ANN401 - of a release
        self.mirrors = mirrors
        self.fit = fit
        self.fields = fields
        self.lacks: list[Requirement] = []
        """What the system lacks, as the test says."""

    def matches(self, host: Host) -> int:
        """Return the fit that the test says."""
        del host
        return self.fit

    def release(self, host: Host | None, version: str) -> Release:
        """Return the archive of a version."""
        del host
        version = version or "2026.3.0"
        fields: dict[str, Any] = {"mirrors": self.mirrors} | self.fields
        return Release(version, f"ovms_ubuntu24_{version}_python_on.tar.gz", **fields)

    async def requirements(self, installation: Installation) -> list[Requirement]:
        """Return what the test says."""
        del installation
        return self.lacks

    def launch(self, installation: Installation, ports: Ports) -> LaunchPlan:
        """Return how to start it."""
        del ports
        return launch_on_linux(installation)
