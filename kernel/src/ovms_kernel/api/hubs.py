"""What the author of a hub imports."""

from __future__ import annotations

from ovms_kernel.drivers import (
    Hub,
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
from ovms_kernel.models.transfer import (
    FetchFailed,
    fetch_files,
)
from ovms_kernel.values import (
    ModelRef,
    Progress,
    RemoteFile,
)

__all__ = [
    "BadRequest",
    "Cancelled",
    "EngineFailed",
    "FetchFailed",
    "Hub",
    "ModelRef",
    "NotFound",
    "NotSupported",
    "OvmsError",
    "PreconditionFailed",
    "Progress",
    "Refused",
    "RemoteFile",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
    "fetch_files",
    "hookimpl",
]
