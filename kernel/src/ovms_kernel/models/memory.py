"""How much memory models may take, and how much one needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_kernel.models.plan import Budget, State, Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ovms_kernel.models.library import Library
    from ovms_kernel.models.plan import Resident
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import LocalModel

WEIGHT_OVERHEAD = 1.1
"""A loaded model's memory as a multiple of its weights, at least."""
GRACE = 1.0
"""Seconds that a model counts as in use after a request, at most."""


def available_memory() -> int:
    """Return the bytes of memory that can be had without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


class Memory:
    """Measures what models may take, and knows what each one needs.

    :param available: returns the bytes that are free now.
    """

    def __init__(self, settings: Settings, library: Library, available: Callable[[], int] = available_memory) -> None:
        self._settings = settings
        self._library = library
        self.available = available

    def budget(self, table: Mapping[str, Resident]) -> Budget:
        """Return what all models may take now: what is free, and what those that are loaded take already."""
        loaded = sum(each.bytes for each in table.values() if each.state is State.LOADED and each.device == "CPU")
        return Budget({"CPU": self.available() + loaded}, grace=GRACE)

    def wanted(self, model: LocalModel) -> Wanted:
        """Return what a model needs."""
        needed = int(self._library.memory_needed(model) * WEIGHT_OVERHEAD)
        force = str(self._settings.section("models", model.id).get("force", "")).lower()
        return Wanted(model.id, needed, forced=force in ("true", "1", "yes", "on"))
