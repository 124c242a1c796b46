"""OVMS on Ubuntu 24.04, on what derives from it, and, as a guess, on Debian 13 and Ubuntu 24.10 to 25.10."""

from __future__ import annotations

from ovms_kernel.api.platforms import DERIVED, GUESS, Build, LinuxRow, OvmsOnLinux, System


class Ubuntu2404(OvmsOnLinux):
    """The vendor's archives for this system."""

    row = LinuxRow(
        Build("ubuntu24", python="3.12"),
        (System("ubuntu", "24.04", "24.04"),),
        {"noble": DERIVED, **dict.fromkeys(("oracular", "plucky", "questing", "trixie"), GUESS)},
    )
