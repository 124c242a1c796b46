"""macOS, through the embedded engine: its vendor builds no OVMS for it."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ovms_kernel.api.platforms import EXACT, Host, Installation, LaunchPlan, NotFound, Ports, Release, Requirement

if TYPE_CHECKING:
    from collections.abc import Mapping

DISTRIBUTION = "ovms-embedded"
INHERITED = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ", "__CF_USER_TEXT_ENCODING")
"""What the engine may see of our environment; everything else, keys and foreign Pythons above all, it must not."""


class MacOS:
    """Starts ``python -m ovms_embedded`` with the Python that runs us."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        del section  # there is nothing to set

    def matches(self, host: Host) -> int:
        """Return whether it is macOS; OpenVINO has wheels for Intel's and Apple's processors."""
        return EXACT if host.os == "darwin" and host.machine in ("arm64", "x86_64") else 0

    def release(self, host: Host, version: str) -> Release:
        """Return the version that is installed beside us."""
        del host
        installed = metadata.version(DISTRIBUTION)
        if version not in ("", installed):
            raise NotFound(
                f"macOS has the embedded engine only, and here that is version {installed}; "
                f"for another one run `pip install {DISTRIBUTION}=={version}`."
            )
        return Release(installed)

    async def requirements(self, installation: Installation) -> list[Requirement]:
        """Return nothing: what the engine needs came with it."""
        del installation
        return []

    def launch(self, installation: Installation, ports: Ports) -> LaunchPlan:
        """Return how to start it."""
        del installation, ports
        env = {name: os.environ[name] for name in INHERITED if name in os.environ}
        # -I shuts out foreign Pythons and the user's own site; UTF-8 as services may run in locale C.
        return LaunchPlan((sys.executable, "-I", "-X", "utf8", "-m", "ovms_embedded"), env)
