"""What the author of a platform imports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_kernel.errors import *
from ovms_kernel.on_demand import on_demand

if TYPE_CHECKING:
    from ovms_kernel.drivers import Platform as Platform
    from ovms_kernel.engine.ovms import DERIVED as DERIVED
    from ovms_kernel.engine.ovms import EXACT as EXACT
    from ovms_kernel.engine.ovms import GUESS as GUESS
    from ovms_kernel.engine.ovms import Build as Build
    from ovms_kernel.engine.ovms import lacks_on_windows as lacks_on_windows
    from ovms_kernel.engine.ovms import launch_on_windows as launch_on_windows
    from ovms_kernel.engine.ovms import ovms_release as ovms_release
    from ovms_kernel.engine.ovms_linux import APT as APT
    from ovms_kernel.engine.ovms_linux import DNF as DNF
    from ovms_kernel.engine.ovms_linux import LinuxRow as LinuxRow
    from ovms_kernel.engine.ovms_linux import OvmsOnLinux as OvmsOnLinux
    from ovms_kernel.engine.ovms_linux import Packages as Packages
    from ovms_kernel.engine.ovms_linux import System as System
    from ovms_kernel.engine.ovms_linux import launch_on_linux as launch_on_linux
    from ovms_kernel.engine.python_engine import PythonEngine as PythonEngine
    from ovms_kernel.hookspecs import hookimpl as hookimpl
    from ovms_kernel.values import Endpoint as Endpoint
    from ovms_kernel.values import Finding as Finding
    from ovms_kernel.values import Host as Host
    from ovms_kernel.values import Installation as Installation
    from ovms_kernel.values import LaunchPlan as LaunchPlan
    from ovms_kernel.values import Ports as Ports
    from ovms_kernel.values import Release as Release
    from ovms_kernel.values import Requirement as Requirement
else:
    __getattr__ = on_demand(
        __name__,
        {
            "drivers": "Platform",
            "engine.ovms": "Build DERIVED EXACT GUESS lacks_on_windows launch_on_windows ovms_release",
            "engine.ovms_linux": "APT DNF LinuxRow OvmsOnLinux Packages System launch_on_linux",
            "engine.python_engine": "PythonEngine",
            "hookspecs": "hookimpl",
            "values": "Endpoint Finding Host Installation LaunchPlan Ports Release Requirement",
        },
    )
