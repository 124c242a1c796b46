"""OVMS on Red Hat Enterprise Linux 9, on Alma, Rocky and Oracle Linux 9, and, as a guess, on newer ones and Fedora."""

from __future__ import annotations

from ovms_kernel.api.platforms import DERIVED, DNF, GUESS, Build, LinuxRow, OvmsOnLinux, System


class RedHat(OvmsOnLinux):
    """The vendor's archives for this system."""

    row = LinuxRow(
        Build("redhat", python="3.12"),
        (
            System("rhel", "9", "9", derived=DERIVED),
            System("ol", "9", "9", DERIVED),  # names Fedora alone as what it derives from
            System("rhel", "10", fit=GUESS, derived=GUESS),
            System("ol", "10", fit=GUESS),
            System("fedora", "39", fit=GUESS),
        ),
        packages=DNF,
    )
