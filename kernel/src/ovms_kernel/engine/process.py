"""The engine as a process, on this system."""

import sys

if sys.platform == "win32":
    from ovms_kernel.engine.process_windows import EngineProcess, end_stale, spawn
else:
    from ovms_kernel.engine.process_posix import EngineProcess, end_stale, spawn

__all__ = ["EngineProcess", "end_stale", "spawn"]
