"""What the author of a hub imports."""

from __future__ import annotations

from ovms_kernel.drivers import (
    FoundModel,
    Hub,
    SearchableHub,
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
from ovms_kernel.fetch.http import (
    Body,
    FetchFailed,
    Web,
    check_reachable,
)
from ovms_kernel.fetch.hub_section import (
    HubSettings,
)
from ovms_kernel.fetch.proxies import (
    proxy_for,
)
from ovms_kernel.fetch.transfer import (
    Pace,
)
from ovms_kernel.hookspecs import (
    hookimpl,
)
from ovms_kernel.values import ModelRef, RemoteFile

__all__ = [
    "BadRequest",
    "Body",
    "Cancelled",
    "EngineFailed",
    "FetchFailed",
    "FoundModel",
    "Hub",
    "HubSettings",
    "ModelRef",
    "NotFound",
    "NotSupported",
    "OvmsError",
    "Pace",
    "PreconditionFailed",
    "Refused",
    "RemoteFile",
    "SearchableHub",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
    "Web",
    "check_reachable",
    "hookimpl",
    "proxy_for",
]
