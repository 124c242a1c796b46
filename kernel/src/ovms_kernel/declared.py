"""Declared settings: a typed struct says what can be set, and is read from what people write.

A struct is a ``msgspec.Struct`` whose fields have a type, a default and a docstring below; the documentation is made
from these. A number's bounds are ``Annotated[int, msgspec.Meta(ge=1)]``.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import math
import textwrap
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from ovms_kernel.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Limit = Annotated[float, msgspec.Meta(ge=0.01)]
"""Seconds that something may take; in none at all nothing could be done."""

MEANT = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list",
    Path: "a path",
    dict: "a table",
    Mapping: "a table",
}
"""What a setting of that type must be, in words."""
WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

T = TypeVar("T", bound=msgspec.Struct)


class NoSettings(msgspec.Struct, frozen=True):
    """What a driver that declares nothing can be set to."""


def read_struct(of: type[T], values: Mapping[str, Any], place: Callable[[str], str], prefix: str = "") -> T:
    """Return a struct of what somebody wrote. A value that is null counts as absent.

    :param place: returns where a name was set, such as ``the environment``.
    :param prefix: what stands before the names in errors, such as ``services.chat.``.
    :raises BadRequest: a name is unknown or a value is wrong; the sentence names the place, and what was meant.
    """
    hints = _types_in(of)
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise BadRequest(f"In {place(name)}, {prefix}{name} is not a setting; {meant(name, hints, prefix)}")
        if value is not None:
            checked[name] = read_value(value, hints[name], f"{prefix}{name}", place(name))
    return of(**checked)


@cache
def _types_in(of: type[msgspec.Struct]) -> dict[str, Any]:
    return get_type_hints(of, include_extras=True)


def meant(name: object, known: Iterable[str], prefix: str = "") -> str:
    """Return the end of a sentence about an unknown name: the one that was meant, or those that there are."""
    known = sorted(known)
    if near := difflib.get_close_matches(str(name), known, 1):
        return f"did you mean {prefix}{near[0]}?"
    if not known:
        return "there are no settings here, so remove it."
    return f"there are {', '.join(known)}." if len(known) < 20 else "see docs/settings.md for those there are."


def read_value(value: Any, wanted: Any, name: str, where: str) -> Any:  # noqa: ANN401 - any value to any type
    """Return a value as the type of its setting; numbers, lists and booleans may be written as text.

    :raises BadRequest: it cannot be that.
    """
    least, most = -math.inf, math.inf
    if get_origin(wanted) in (Union, types.UnionType):
        wanted = next(each for each in get_args(wanted) if each is not types.NoneType)
    if get_origin(wanted) is Annotated:
        wanted, *metas = get_args(wanted)
        for meta in metas:
            least, most = _or(meta.ge, least), _or(meta.le, most)
    kind = get_origin(wanted) or wanted
    try:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, Mapping):
            return read_struct(kind, value, lambda _: where, f"{name}.")
        if kind is tuple and isinstance(value, (str, list, tuple)):
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(str(part).strip() for part in parts if str(part).strip())
        if kind is bool:
            return read_bool(value)
        if kind is Literal:
            return {str(each).lower(): each for each in get_args(wanted)}[str(value).lower()]
        if kind in (dict, Mapping) and isinstance(value, Mapping):
            inner = (*get_args(wanted), Any, Any)[1]
            return {
                str(key): each if inner is Any else read_value(each, inner, f"{name}.{key}", where)
                for key, each in value.items()
            }
        if kind in (int, float, str, Path) and not isinstance(value, (bool, Mapping, list)):
            converted = kind(value)
            if kind in (str, Path) or (least <= converted <= most and converted == float(value)):
                return converted.expanduser() if isinstance(converted, Path) else converted
    except (KeyError, OverflowError, TypeError, ValueError):
        pass
    what = " or ".join(map(str, get_args(wanted))) if kind is Literal else MEANT.get(kind, "a table")
    if least > -math.inf:
        what += f" from {least:g}" + (f" to {most:g}" if most < math.inf else "")
    raise BadRequest(f"In {where}, {name} must be {what}, not {value!r}.")


def _or(bound: float | None, default: float) -> float:
    return default if bound is None else bound


def read_bool(value: object) -> bool:
    """Return a boolean in any of the ways people write it.

    :raises KeyError: it is none.
    """
    return WORDS[str(value).strip().lower()]


class Setting(msgspec.Struct, frozen=True):
    """One declared setting, for the documentation."""

    name: str
    default: str
    """As people write it; empty where that is nothing."""
    help: str


def settings_in(of: type[msgspec.Struct]) -> list[Setting]:
    """Return what a struct declares, with the docstrings below its fields."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(of))).body[0]
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    told = {
        field.target.id: " ".join(str(doc.value.value).split())
        for field, doc in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
    }
    return [
        Setting(each.name, _shown(each.default), told.get(each.name, ""))
        for each in msgspec.structs.fields(of)
        if not each.name.startswith("_")
    ]


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    if isinstance(default, (tuple, list)):
        return ", ".join(map(str, default))
    return "" if default in ("", None, msgspec.NODEFAULT) else str(default)
