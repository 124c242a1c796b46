"""A smoke mode for every benchmark: ``BENCH_SMOKE=1`` shows in seconds that it runs; its numbers mean nothing."""

from __future__ import annotations

import os
from typing import TypeVar

Value = TypeVar("Value")
SMOKE = os.environ.get("BENCH_SMOKE") == "1"


def sized(full: Value, smoke: Value) -> Value:
    """Return a measurement's size, or the least that runs the same code."""
    return smoke if SMOKE else full
