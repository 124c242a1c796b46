"""What the author of a model type imports.

The messages of graphs are imported when they are first asked for, as they bring protobuf with them: import those within
the function that builds a graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_kernel.errors import *
from ovms_kernel.on_demand import on_demand

if TYPE_CHECKING:
    from ovms_kernel.drivers import GraphOptions as GraphOptions
    from ovms_kernel.drivers import GraphPatch as GraphPatch
    from ovms_kernel.drivers import GraphTemplate as GraphTemplate
    from ovms_kernel.drivers import ModelFiles as ModelFiles
    from ovms_kernel.hookspecs import hookimpl as hookimpl
    from ovms_kernel.models.graph import default_device as default_device
    from ovms_kernel.models.graph import fill as fill
    from ovms_kernel.models.graph import graph_of as graph_of
    from ovms_kernel.models.model_card import architectures_of as architectures_of
    from ovms_kernel.models.model_card import module_types_of as module_types_of
    from ovms_kernel.models.protos.ovms_graph_pb2 import CalculatorGraphConfig as CalculatorGraphConfig
    from ovms_kernel.models.protos.ovms_graph_pb2 import EmbeddingsCalculatorOVOptions as EmbeddingsCalculatorOVOptions
    from ovms_kernel.models.protos.ovms_graph_pb2 import ImageGenCalculatorOptions as ImageGenCalculatorOptions
    from ovms_kernel.models.protos.ovms_graph_pb2 import LLMCalculatorOptions as LLMCalculatorOptions
    from ovms_kernel.models.protos.ovms_graph_pb2 import RerankCalculatorOVOptions as RerankCalculatorOVOptions
    from ovms_kernel.models.protos.ovms_graph_pb2 import S2tCalculatorOptions as S2tCalculatorOptions
    from ovms_kernel.models.protos.ovms_graph_pb2 import T2sCalculatorOptions as T2sCalculatorOptions
    from ovms_kernel.values import Host as Host
else:
    __getattr__ = on_demand(
        __name__,
        {
            "drivers": "GraphOptions GraphPatch GraphTemplate ModelFiles",
            "hookspecs": "hookimpl",
            "models.graph": "default_device fill graph_of",
            "models.model_card": "architectures_of module_types_of",
            "models.protos.ovms_graph_pb2": (
                "CalculatorGraphConfig EmbeddingsCalculatorOVOptions ImageGenCalculatorOptions "
                "LLMCalculatorOptions RerankCalculatorOVOptions S2tCalculatorOptions T2sCalculatorOptions"
            ),
            "values": "Host",
        },
    )
