"""What the author of an observer imports: the hooks' marker and the values that events carry."""

from __future__ import annotations

from ovms_kernel.drivers import GraphPatch
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
    Call,
    EngineExit,
    EngineInfo,
    Finding,
    Host,
    Installation,
    LaunchPatch,
    LoadedModel,
    LocalModel,
    ModelRef,
    Outcome,
    Progress,
    PullPlan,
    Release,
)

__all__ = [
    "BadRequest",
    "Call",
    "Cancelled",
    "EngineExit",
    "EngineFailed",
    "EngineInfo",
    "Finding",
    "GraphPatch",
    "Host",
    "Installation",
    "LaunchPatch",
    "LoadedModel",
    "LocalModel",
    "ModelRef",
    "NotFound",
    "NotSupported",
    "Outcome",
    "OvmsError",
    "PreconditionFailed",
    "Progress",
    "PullPlan",
    "Refused",
    "Release",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
    "hookimpl",
]
