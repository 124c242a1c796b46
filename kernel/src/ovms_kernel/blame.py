"""Whose code an error that nobody foresaw came out of."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from ovms_kernel.drivers import DRIVER_PROTOCOLS

if TYPE_CHECKING:
    from importlib import metadata


def blame(error: BaseException) -> str:
    """Return the beginning of a sentence about an error that nobody foresaw: the extension whose code it came out of.

    Its traceback tells, so that it is the same for every kind of driver and whatever called it.
    """
    from importlib import metadata

    offered = metadata.entry_points()
    ours = [each for kind in DRIVER_PROTOCOLS for each in offered.select(group=f"ovms.{kind}")]
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    for module in reversed(modules):
        if found := [each for each in ours if f"{module}.".startswith(f"{each.module}.")]:
            keys = " or ".join(f"{each.group.removeprefix('ovms.')}.{each.name}" for each in found)
            return f"The extension {keys} of {' '.join(origin(found[0]))} failed"
    return "Internal error"


def origin(entry_point: metadata.EntryPoint) -> tuple[str, str]:
    """Return name and version of the distribution of an extension."""
    if entry_point.dist is None:
        return "unknown", ""
    told = entry_point.dist.metadata  # parsed for each look at it
    return told["Name"], told["Version"]
