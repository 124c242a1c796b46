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
    check_python,
    fit_on_linux,
    lacks_on_linux,
    lacks_on_windows,
    launch_on_linux,
    launch_on_windows,
    ovms_release,
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
    "DERIVED",
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
    "NotFound",
    "NotSupported",
    "OvmsError",
    "Platform",
    "Ports",
    "PreconditionFailed",
    "Refused",
    "Release",
    "Requirement",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
    "check_python",
    "fit_on_linux",
    "hookimpl",
    "lacks_on_linux",
    "lacks_on_windows",
    "launch_on_linux",
    "launch_on_windows",
    "ovms_release",
]
