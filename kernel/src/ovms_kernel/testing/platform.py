"""A platform whose engine is :mod:`ovms_kernel.testing.misbehaving`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import msgspec

from ovms_kernel.values import LaunchPlan, Release

if TYPE_CHECKING:
    from ovms_kernel.values import Host, Installation, Ports, Requirement

SYSTEM_VARIABLES = ("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "TEMP", "TMP")
"""Variables without which no program of Windows opens a socket or a temporary file."""


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


def bare_environment(**variables: str) -> dict[str, str]:
    """Return these variables and those without which the system starts no program."""
    return {name: os.environ[name] for name in SYSTEM_VARIABLES if name in os.environ} | variables
