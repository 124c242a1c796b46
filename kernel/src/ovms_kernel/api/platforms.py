"""What the author of a platform imports."""

from __future__ import annotations

from ovms_kernel.drivers import (
    Platform,
)
from ovms_kernel.engine.ovms import (
    DERIVED,
    EXACT,
    GUESS,
    Build,
    lacks_on_windows,
    launch_on_windows,
    ovms_release,
)
from ovms_kernel.engine.ovms_linux import (
    APT,
    DNF,
    LinuxRow,
    OvmsOnLinux,
    Packages,
    System,
    launch_on_linux,
)
from ovms_kernel.errors import (
    BadRequest,
    Cancelled,
    EngineFailed,
    NotFound,
    NotSupported,
    OvmsError,
    PreconditionFailed,
    Refused,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from ovms_kernel.hookspecs import (
    hookimpl,
)
from ovms_kernel.values import (
    Endpoint,
    Finding,
    Host,
    Installation,
    LaunchPlan,
    Ports,
    Release,
    Requirement,
)

__all__ = [
    "APT",
    "DERIVED",
    "DNF",
    "EXACT",
    "GUESS",
    "BadRequest",
    "Build",
    "Cancelled",
    "Endpoint",
    "EngineFailed",
    "Finding",
    "Host",
    "Installation",
    "LaunchPlan",
    "LinuxRow",
    "NotFound",
    "NotSupported",
    "OvmsError",
    "OvmsOnLinux",
    "Packages",
    "Platform",
    "Ports",
    "PreconditionFailed",
    "Refused",
    "Release",
    "Requirement",
    "System",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
    "hookimpl",
    "lacks_on_windows",
    "launch_on_linux",
    "launch_on_windows",
    "ovms_release",
]
