"""Any system, through the embedded engine: nothing is fetched, as pip has installed it already."""

from __future__ import annotations

from ovms_kernel.api.platforms import Host, PythonEngine


class Portable(PythonEngine):
    """Starts ``python -m ovms_embedded`` with the Python that runs us."""

    distribution = "ovms-embedded"

    def matches(self, host: Host) -> int:
        """Return the lowest fit there is: any system, if no other platform fits better."""
        del host
        return 1
