"""What a program that runs a kernel of its own imports, as the process that a go-plugin host starts does.

Each name is imported when it is used: such a program says that it is there before it loads the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ovms_kernel.companions import serve_companions
    from ovms_kernel.compose import compose_kernel
    from ovms_kernel.kernel import Kernel
    from ovms_kernel.log import Log, set_level
    from ovms_kernel.settings import read_settings

__all__ = ["Kernel", "Log", "compose_kernel", "read_settings", "serve_companions", "set_level"]

_MODULES = {
    "Kernel": "kernel",
    "Log": "log",
    "compose_kernel": "compose",
    "read_settings": "settings",
    "serve_companions": "companions",
    "set_level": "log",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _MODULES:
        return getattr(import_module(f"ovms_kernel.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
