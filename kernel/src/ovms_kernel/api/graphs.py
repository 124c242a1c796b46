"""What the author of a model type imports.

The messages of graphs are imported when they are first asked for, as they bring protobuf with them: import those within
the function that builds a graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_kernel.drivers import (
    GraphOptions,
    GraphPatch,
    GraphTemplate,
    ModelFiles,
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
from ovms_kernel.models.graph import (
    default_device,
    fill,
    graph_of,
)
from ovms_kernel.models.model_card import (
    architectures_of,
    module_types_of,
)
from ovms_kernel.values import Host

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
    "BadRequest",
    "CalculatorGraphConfig",
    "Cancelled",
    "EmbeddingsCalculatorOVOptions",
    "EngineFailed",
    "GraphOptions",
    "GraphPatch",
    "GraphTemplate",
    "Host",
    "ImageGenCalculatorOptions",
    "LLMCalculatorOptions",
    "ModelFiles",
    "NotFound",
    "NotSupported",
    "OvmsError",
    "PreconditionFailed",
    "Refused",
    "RerankCalculatorOVOptions",
    "S2tCalculatorOptions",
    "T2sCalculatorOptions",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
    "architectures_of",
    "default_device",
    "fill",
    "graph_of",
    "hookimpl",
    "module_types_of",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in __all__:
        return getattr(import_module("ovms_kernel.models.protos.ovms_graph_pb2"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
