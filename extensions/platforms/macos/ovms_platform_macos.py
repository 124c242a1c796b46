"""macOS, through the embedded engine: its vendor builds no OVMS for it."""

from __future__ import annotations

from ovms_kernel.api.platforms import EXACT, Host, PythonEngine


class MacOS(PythonEngine):
    """Starts ``python -m ovms_embedded`` with the Python that runs us."""

    distribution = "ovms-embedded"

    def matches(self, host: Host) -> int:
        """Return whether it is macOS; OpenVINO has wheels for Intel's and Apple's processors."""
        return EXACT if host.os == "darwin" and host.machine in ("arm64", "x86_64") else 0
