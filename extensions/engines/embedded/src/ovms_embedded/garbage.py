"""How often a process of the engine looks for garbage."""

from __future__ import annotations

import gc

RARELY = 5000
"""Objects made and not yet freed at which the collector looks at the young ones; Python's own number is 700."""


def collect_rarely() -> None:
    """Have the collector leave alone what is there already, and look at the rest less often.

    Called once, when a process has loaded what it needs: nearly all objects of a request are gone without it.
    """
    gc.freeze()
    gc.set_threshold(RARELY)
