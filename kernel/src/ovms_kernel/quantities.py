"""Sizes and times as people write them."""

from __future__ import annotations

import math
import re

from ovms_kernel.errors import BadRequest

SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
BUDGETS = ("CPU", "GPU")
"""Devices with memory of their own; the first is meant where none is named."""
TIMES = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``8GB``, ``500M``, ``6.5GiB`` or a plain number.

    :raises BadRequest: it is not a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    if not found or (found[2] or "") not in SIZES:
        raise BadRequest(f"{text!r} is not a size; write one such as 8GB, 500MB or 6.5GiB.")
    return int(float(found[1]) * SIZES[found[2] or ""])


def parse_budget(text: str) -> dict[str, int]:
    """Return the bytes by device of a setting such as ``12GB`` or ``CPU=12GB, GPU=6GB``.

    :raises BadRequest: it is something else.
    """
    budget: dict[str, int] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        device, found, size = part.rpartition("=")
        if found and device.strip().upper() not in BUDGETS:
            raise BadRequest(f"memory_budget names the device {device!r}; name CPU or GPU.")
        budget[device.strip().upper() or BUDGETS[0]] = parse_size(size)
    return budget


def parse_duration(value: str | float) -> float:
    """Return the seconds of a duration: a number of seconds, or ``90s``, ``5m``, ``1h30m``; negative = for ever.

    These are the values of Ollama's ``keep_alive``.

    :raises BadRequest: it is not a duration.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value):
        return float(value)
    text = str(value).strip().lower()
    sign = -1.0 if text.startswith("-") else 1.0
    text = text.lstrip("+-")
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return sign * float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise BadRequest(f"{value!r} is not a duration; write one such as 90s, 5m or 2h, or -1 for ever.")
    return sign * sum(float(number) * TIMES[unit] for number, unit in parts)
