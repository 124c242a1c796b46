"""Prints what extensions may use of the kernel, as JSON; see CONTRIBUTING.md for when.

It is kept for each release: docs/compatibility.md promises what of it stays, and a test holds the next version to that.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from dataclasses import fields, is_dataclass
from typing import Any

from ovms_kernel import api, hookspecs
from ovms_kernel.testing import contract


def found() -> dict[str, list[str]]:
    """Return the members of every public name: a class's fields and methods, a function's or hook's parameters."""
    names: dict[str, list[str]] = {}
    for module in pkgutil.iter_modules(api.__path__, "ovms_kernel.api."):
        loaded = importlib.import_module(module.name)
        for name in loaded.__all__:
            names[f"{module.name.removeprefix('ovms_kernel.')}.{name}"] = members(getattr(loaded, name))
    for name, value in vars(hookspecs).items():
        if name.startswith("ovms_"):
            names[f"hooks.{name}"] = members(value)
    for name, value in vars(contract).items():
        if getattr(value, "__module__", "") == contract.__name__ and not name.startswith("_"):
            names[f"testing.contract.{name}"] = members(value)
    return dict(sorted(names.items()))


def members(value: Any) -> list[str]:  # noqa: ANN401 - any public name
    """Return what a caller may write of a name, sorted."""
    if inspect.isfunction(value):
        return sorted(f"({each})" for each in _parameters(value))
    if not inspect.isclass(value) or value.__module__.endswith("_pb2"):
        return []
    listed = (
        {each.name for each in fields(value)} if is_dataclass(value) else set(getattr(value, "__struct_fields__", ()))
    )
    for owner in value.__mro__:
        if owner.__module__.startswith("ovms_kernel"):
            listed |= {each for each in inspect.get_annotations(owner) if not each.startswith("_")}
            for name, method in vars(owner).items():
                if not name.startswith("_") and (inspect.isroutine(method) or isinstance(method, property)):
                    listed.add(name)
                    if inspect.isfunction(method):
                        listed |= {f"{name}({each})" for each in _parameters(method)}
    return sorted(listed)


def _parameters(function: Any) -> list[str]:  # noqa: ANN401 - any function
    return [each for each in inspect.signature(function).parameters if each != "self"]


if __name__ == "__main__":
    print(json.dumps(found(), indent=1))
