"""The properties of OpenVINO that a graph may set in its ``plugin_config``.

A graph comes with a model, and a model is data. So ``properties.txt`` has what sets speed, precision and memory; it
leaves out what names a library to load (``extensions``) or a file or folder to read or write (``CACHE_DIR``,
``CONFIG_FILE``, ``WEIGHTS_PATH``, ``BLOB_PATH``, ``EXPORT_BLOB``, ``NPUW_DUMP_*``, …).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROPERTIES = frozenset(Path(__file__).with_name("properties.txt").read_text("ascii").split())
BY_DEVICE = "DEVICE_PROPERTIES"
"""The property that holds, by device, properties of that device."""


def read_properties(text: str) -> dict[str, Any]:
    """Return the properties in the text of a ``plugin_config``.

    :raises ValueError: it is no JSON object, or names a property that a model may not set.
    """
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"plugin_config is not valid JSON: {error}"
        raise ValueError(message) from error
    if not isinstance(found, dict):
        message = "plugin_config is not a JSON object"
        raise ValueError(message)
    _check(found)
    for device, inner in found.get(BY_DEVICE, {}).items():
        if not isinstance(inner, dict) or BY_DEVICE in inner:
            message = f"{BY_DEVICE} of {device} in plugin_config is not a JSON object of its properties"
            raise ValueError(message)
        _check(inner)
    return found


def _check(properties: dict[str, Any]) -> None:
    for name, value in properties.items():
        if name not in PROPERTIES:
            hint = "use --cache_dir" if name == "CACHE_DIR" else "remove it"
            message = f"plugin_config sets {name!r}, which a model may not set; {hint}"
            raise ValueError(message)
        if isinstance(value, dict) != (name == BY_DEVICE) or isinstance(value, list) or value is None:
            kind = "a JSON object by device" if name == BY_DEVICE else "text, a number, true or false"
            message = f"{name} in plugin_config must be {kind}"
            raise ValueError(message)
