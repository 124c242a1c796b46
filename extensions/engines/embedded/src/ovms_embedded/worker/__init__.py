"""Worker processes: each serves one graph, one module per calculator.

Importing ``openvino`` imports its model converter if it can, and the converter sends an event to an analytics host and
writes a client id to ``~/intel`` (``openvino/tools/ovc/__init__.py``). A server converts nothing, so this package makes
both unavailable before a module of it imports OpenVINO.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from types import ModuleType

for _name in ("openvino.tools.ovc", "openvino_telemetry"):
    # None in sys.modules makes an import fail with ModuleNotFoundError, which OpenVINO expects of both.
    sys.modules.setdefault(_name, cast("ModuleType", None))
