"""The microkernel of ovms-plugin; ``ovms_kernel.api`` is what extensions import."""

import sys

# Importing httpx imports its command line too, with click, rich and pygments where they are installed: two fifths of
# the time that httpx takes, and 6 MB. httpx does without it if it cannot be imported.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
