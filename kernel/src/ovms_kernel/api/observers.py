"""What the author of an observer imports: the hooks' marker and the values that events carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_kernel.errors import *
from ovms_kernel.on_demand import on_demand

if TYPE_CHECKING:
    from ovms_kernel.drivers import GraphPatch as GraphPatch
    from ovms_kernel.hookspecs import hookimpl as hookimpl
    from ovms_kernel.values import Call as Call
    from ovms_kernel.values import EngineExit as EngineExit
    from ovms_kernel.values import EngineInfo as EngineInfo
    from ovms_kernel.values import Finding as Finding
    from ovms_kernel.values import Host as Host
    from ovms_kernel.values import Installation as Installation
    from ovms_kernel.values import LaunchPatch as LaunchPatch
    from ovms_kernel.values import LoadedModel as LoadedModel
    from ovms_kernel.values import LocalModel as LocalModel
    from ovms_kernel.values import ModelRef as ModelRef
    from ovms_kernel.values import Outcome as Outcome
    from ovms_kernel.values import Progress as Progress
    from ovms_kernel.values import PullPlan as PullPlan
    from ovms_kernel.values import Release as Release
else:
    __getattr__ = on_demand(
        __name__,
        {
            "drivers": "GraphPatch",
            "hookspecs": "hookimpl",
            "values": (
                "Call EngineExit EngineInfo Finding Host Installation LaunchPatch LoadedModel LocalModel "
                "ModelRef Outcome Progress PullPlan Release"
            ),
        },
    )
