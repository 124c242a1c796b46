"""Names that a module offers and that are imported when they are first used.

A command that says its version, or a plugin that a host waits for, must not import all that its author may use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from ovms_kernel import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def on_demand(module: str, names: Mapping[str, str], own: str = "") -> Callable[[str], object]:
    """Return what is to be the ``__getattr__`` of a module, and make its ``__all__``, in which all errors are as well.

    :param names: the module of the kernel that has them, and the names that are offered of it, with spaces between.
    :param own: names that the module defines itself.
    """
    homes = {name: home for home, offered in names.items() for name in offered.split()}
    vars(sys.modules[module])["__all__"] = sorted({*homes, *own.split(), *errors.__all__})

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(import_module(f"ovms_kernel.{homes[name]}"), name)
        setattr(sys.modules[module], name, value)
        return value

    return load
