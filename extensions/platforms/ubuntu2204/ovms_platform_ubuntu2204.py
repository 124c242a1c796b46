"""OVMS on Ubuntu 22.04, on what derives from it, and, as a guess, on systems with libraries as new."""

from __future__ import annotations

from ovms_kernel.api.platforms import DERIVED, GUESS, Build, LinuxRow, OvmsOnLinux, System


class Ubuntu2204(OvmsOnLinux):
    """The vendor's archives for this system."""

    row = LinuxRow(
        # The vendor ends this line with 2026.4.1.
        Build("ubuntu22", python="3.10", last="2026.4.1"),
        (System("ubuntu", "22.04", "22.04"),),
        {
            "jammy": DERIVED,
            # With libraries as new as the build's: Ubuntu 22.10 to 23.10, Debian 12.
            **dict.fromkeys(("kinetic", "lunar", "mantic", "bookworm"), GUESS),
        },
    )
