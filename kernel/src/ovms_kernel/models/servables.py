"""What the engine says of what it serves, and how much memory there is for more."""

from __future__ import annotations

from typing import Any, Protocol

AVAILABLE, LOADING, FAILED, GONE = "available", "loading", "failed", "gone"


class Servables(Protocol):
    """The engine as far as serving needs it; ``engine/client.py`` is one."""

    async def config(self) -> dict[str, Any]:
        """Return what ``GET /v1/config`` says."""
        ...

    async def reload(self) -> dict[str, Any]:
        """Do ``POST /v1/config/reload``, which returns when loading has ended."""
        ...

    async def model_ready(self, name: str) -> bool:
        """Tell whether it serves a model."""
        ...


def states_of(config: dict[str, Any]) -> dict[str, str]:
    """Return what ``/v1/config`` says of each name (spec/ovms.md C.8)."""
    states = {}
    for name, entry in config.items():
        versions = entry.get("model_version_status") if isinstance(entry, dict) else None
        last = versions[-1] if isinstance(versions, list) and versions else {}
        state, code = last.get("state"), (last.get("status") or {}).get("error_code", "OK")
        if state == "AVAILABLE":
            states[name] = AVAILABLE
        elif state in ("END", "UNLOADING", None):
            states[name] = GONE
        else:
            states[name] = LOADING if code == "OK" else FAILED
    return states


def available_memory() -> int:
    """Return the bytes of memory that can be had without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)
