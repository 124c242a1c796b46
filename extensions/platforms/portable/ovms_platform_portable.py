"""Any system, through the embedded engine: nothing is fetched, as pip has installed it already."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ovms_kernel.api.platforms import Host, Installation, LaunchPlan, NotFound, Ports, Release, Requirement

if TYPE_CHECKING:
    from collections.abc import Mapping

DISTRIBUTION = "ovms-embedded"
INHERITED = ("HOME", "LANG", "LC_ALL", "PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "TZ", "USERPROFILE")
"""What the engine may see of our environment; everything else, keys and foreign Pythons above all, it must not."""


class Portable:
    """Starts ``python -m ovms_embedded`` with the Python that runs us."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        del section  # there is nothing to set

    def matches(self, host: Host) -> int:
        """Return the lowest fit there is: any system, if no other platform fits better."""
        del host
        return 1

    def release(self, host: Host, version: str) -> Release:
        """Return the version that is installed beside us."""
        del host
        installed = metadata.version(DISTRIBUTION)
        if version not in ("", installed):
            raise NotFound(
                f"The embedded engine is here in version {installed} only; "
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
