"""An engine that pip installs beside this program, and that Python runs."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import TYPE_CHECKING, ClassVar

from ovms_kernel.engine.ovms import inherited
from ovms_kernel.errors import NotFound
from ovms_kernel.values import LaunchPlan, Release

if TYPE_CHECKING:
    from ovms_kernel.values import Host, Installation, Ports, Requirement

INHERITED = (
    "HOME", "LANG", "LC_ALL", "PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "TZ", "USERPROFILE",
    "__CF_USER_TEXT_ENCODING",
)  # fmt: skip
"""What the engine may see of our environment; everything else, keys and foreign Pythons above all, it must not."""


class PythonEngine:
    """A platform driver for such an engine: it is not fetched; a subclass names it and says which systems fit."""

    distribution: ClassVar[str]
    """What pip calls it; its module has underscores instead of dashes."""

    def release(self, host: Host, version: str) -> Release:
        """Return the version that is installed beside us.

        :raises NotFound: another one is asked for.
        """
        del host
        installed = metadata.version(self.distribution)
        if version not in ("", installed):
            raise NotFound(
                f"{self.distribution} is here in version {installed} only; "
                f"for another one run `pip install {self.distribution}=={version}`."
            )
        return Release(installed)

    async def requirements(self, installation: Installation) -> list[Requirement]:
        """Return nothing: what the engine needs came with it."""
        del installation
        return []

    def launch(self, installation: Installation, ports: Ports) -> LaunchPlan:
        """Return how to start it."""
        del installation, ports
        module = self.distribution.replace("-", "_")
        # -I shuts out foreign Pythons and the user's own site; UTF-8 as services may run in locale C.
        return LaunchPlan((sys.executable, "-I", "-X", "utf8", "-m", module), inherited(INHERITED))
