"""What a graph that comes with a model may say. A model is data: it names no library and no file outside its folder.

``ovms_embedded`` has the same ``properties.txt`` (a test compares), and checks each graph that it reads.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovms_kernel.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

BY_DEVICE = "DEVICE_PROPERTIES"
"""The property that holds, by device, properties of that device."""
PLUGIN_CONFIG = "plugin_config"


@functools.cache
def allowed() -> frozenset[str]:
    """Return the properties of OpenVINO that set speed, precision and memory.

    Those that name a library to load (``extensions``), or a file or folder to read or write (``CACHE_DIR``,
    ``CONFIG_FILE``, ``EXPORT_BLOB``, ``NPUW_DUMP_IO``, …), are left out.
    """
    return frozenset(Path(__file__).with_name("properties.txt").read_text("ascii").split())


def read_properties(value: object, what: str) -> dict[str, Any]:
    """Return the properties of a ``plugin_config``, which is JSON text or a table.

    :param what: whose it is, for the sentence.
    :raises BadRequest: it is neither, or names a property that a graph may not set.
    """
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise BadRequest(f"plugin_config of {what} must be a table or a JSON object.")
    _check(value, what)
    for device, inner in value.get(BY_DEVICE, {}).items():
        if not isinstance(inner, dict) or BY_DEVICE in inner:
            raise BadRequest(f"{BY_DEVICE} of {device} in plugin_config of {what} must be a table of its properties.")
        _check(inner, what)
    return value


def _check(properties: Mapping[str, Any], what: str) -> None:
    for name, value in properties.items():
        if name not in allowed():
            raise BadRequest(f"plugin_config of {what} sets {name!r}, which a graph may not set; remove it.")
        if isinstance(value, dict) != (name == BY_DEVICE) or isinstance(value, list) or value is None:
            kind = "a table by device" if name == BY_DEVICE else "text, a number, true or false"
            raise BadRequest(f"{name} in plugin_config of {what} must be {kind}.")
