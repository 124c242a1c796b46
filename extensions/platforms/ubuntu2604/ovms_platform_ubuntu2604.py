"""OVMS on Ubuntu 26.04 and newer, and on what derives from it."""

from __future__ import annotations

from ovms_kernel.api.platforms import GUESS, Build, LinuxRow, OvmsOnLinux, System


class Ubuntu2604(OvmsOnLinux):
    """The vendor's archives for this system."""

    row = LinuxRow(
        # The vendor plans archives for Ubuntu 26; until they exist, those for Ubuntu 24 are tried.
        Build("ubuntu24", python="3.12"),
        (System("ubuntu", "26.04", fit=GUESS),),
        {"resolute": GUESS},
    )
