"""What extensions may import from the kernel; everything else in it may change without notice.

The messages of graphs are imported when they are first asked for, as they bring protobuf with them: import those within
the function that builds a graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_kernel.drivers import (
    ConversingService,
    Engine,
    GraphTemplate,
    Hub,
    Platform,
    Service,
    StreamingService,
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
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.models.files import architectures_of, module_types_of
from ovms_kernel.models.graph import default_device, fill, graph_of
from ovms_kernel.models.transfer import fetch_files
from ovms_kernel.services import Route, forward, forward_stream, with_id, with_model
from ovms_kernel.values import (
    Answer,
    Call,
    Endpoint,
    EngineExit,
    EngineInfo,
    Finding,
    GraphOptions,
    GraphPatch,
    Host,
    Installation,
    LaunchPatch,
    LaunchPlan,
    LoadedModel,
    LocalModel,
    Message,
    ModelFiles,
    ModelRef,
    Outcome,
    Ports,
    Progress,
    PullPlan,
    Release,
    RemoteFile,
    Requirement,
    ServiceDefinition,
    Upload,
)

if TYPE_CHECKING:
    from ovms_kernel.models.protos.ovms_graph_pb2 import (
        CalculatorGraphConfig,
        EmbeddingsCalculatorOVOptions,
        ImageGenCalculatorOptions,
        LLMCalculatorOptions,
        RerankCalculatorOVOptions,
        S2tCalculatorOptions,
        T2sCalculatorOptions,
    )

__all__ = [
    "Answer",
    "BadRequest",
    "CalculatorGraphConfig",
    "Call",
    "Cancelled",
    "ConversingService",
    "EmbeddingsCalculatorOVOptions",
    "Endpoint",
    "Engine",
    "EngineExit",
    "EngineFailed",
    "EngineInfo",
    "Finding",
    "GraphOptions",
    "GraphPatch",
    "GraphTemplate",
    "Host",
    "Hub",
    "ImageGenCalculatorOptions",
    "Installation",
    "LLMCalculatorOptions",
    "LaunchPatch",
    "LaunchPlan",
    "LoadedModel",
    "LocalModel",
    "Message",
    "ModelFiles",
    "ModelRef",
    "NotFound",
    "NotSupported",
    "Outcome",
    "OvmsError",
    "Platform",
    "Ports",
    "PreconditionFailed",
    "Progress",
    "PullPlan",
    "Refused",
    "Release",
    "RemoteFile",
    "Requirement",
    "RerankCalculatorOVOptions",
    "Route",
    "S2tCalculatorOptions",
    "Service",
    "ServiceDefinition",
    "StreamingService",
    "T2sCalculatorOptions",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
    "Upload",
    "architectures_of",
    "default_device",
    "fetch_files",
    "fill",
    "forward",
    "forward_stream",
    "graph_of",
    "hookimpl",
    "module_types_of",
    "with_id",
    "with_model",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in __all__:
        return getattr(import_module("ovms_kernel.models.protos.ovms_graph_pb2"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
