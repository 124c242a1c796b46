"""OVMS on Deepin, with the build for Ubuntu 22.04."""

from __future__ import annotations

from ovms_kernel.api.platforms import GUESS, Build, LinuxRow, OvmsOnLinux, System


class Deepin(OvmsOnLinux):
    """The vendor's archives for this system."""

    row = LinuxRow(
        # There is no build for Deepin. This one's libraries are old enough, and it ends with 2026.4.1.
        Build("ubuntu22", python="3.10", last="2026.4.1"),
        # Deepin 23 is the first whose C library (2.38) is newer than the build's (2.35); Deepin 20 has 2.28.
        (System("deepin", "23", derived=GUESS),),
    )
