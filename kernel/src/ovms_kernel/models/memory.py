"""How much memory models may take, and how much one needs."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ovms_kernel.models.model_card import weight_bytes
from ovms_kernel.models.model_record import GRAPH, read_record
from ovms_kernel.models.plan import Budget, State, Wanted
from ovms_kernel.quantities import parse_budget

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ovms_kernel.models.plan import Resident
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import LocalModel

log = logging.getLogger(__name__)

WEIGHT_OVERHEAD = 1.1
"""A model's memory as a multiple of its weights, until a load was measured."""
GRACE = 1.0
"""Seconds that a model counts as in use after a request, at most."""
RESERVE = 1 << 30
RESERVED_SHARE = 0.05
"""What is left to the system: this many bytes, or this share of its memory where that is less."""
SYSTEM = "CPU"
"""The pool of every device that has no memory of its own."""


def available_memory() -> int:
    """Return the bytes of memory that are available without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def total_memory() -> int:
    """Return the bytes of memory of the machine."""
    import psutil

    return int(psutil.virtual_memory().total)


def gpu_memory(root: Path = Path("/sys/class/drm")) -> tuple[int, int] | None:
    """Return total and free bytes of the GPU's own memory; ``None`` where no driver tells them.

    An integrated GPU has none: its models take the system's.
    """
    if sys.platform != "linux":
        return None
    for card in sorted(root.glob("card[0-9]*")):
        try:
            total = int((card / "lmem_total_bytes").read_text())
            return total, int((card / "lmem_avail_bytes").read_text())
        except (OSError, ValueError):
            continue
    return None


class Memory:
    """Measures what models may take, and knows what each one needs.

    :param usual: the device of graphs that name none.
    :param live: returns the settings that hold now; ``None`` = those given.
    :param available: returns the bytes of the system's memory that are free now.
    :param gpu: returns total and free bytes of the GPU's own memory.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        usual: str = SYSTEM,
        available: Callable[[], int] = available_memory,
        gpu: Callable[[], tuple[int, int] | None] = gpu_memory,
        live: Callable[[], Settings] | None = None,
    ) -> None:
        self._live = live or (lambda: settings)
        self._usual = usual
        self.available = available
        self._gpu = gpu

    def budget(self, table: Mapping[str, Resident]) -> Budget:
        """Return what all models together may take now: as set, else what is free and what they take already."""
        settings = self._live()
        memory = parse_budget(settings.memory_budget)
        total = total_memory()
        reserve = min(RESERVE, int(total * RESERVED_SHARE))
        if SYSTEM not in memory:
            memory[SYSTEM] = max(0, min(self.available() - reserve + _taken(table, SYSTEM), total - reserve))
        if "GPU" not in memory and (gpu := self._gpu()):
            memory["GPU"] = min(gpu[1] + _taken(table, "GPU"), gpu[0])
        return Budget(memory, settings.max_loaded, GRACE)

    def wanted(self, model: LocalModel) -> Wanted:
        """Return what a model needs: what its last load took, else its weights; and its KV cache, as set."""
        named, cache = graph_memory(model.directory)
        device = named or self._usual
        record = read_record(model.directory)
        took = record.load_bytes if record else 0
        weights = weight_bytes({path: size for path, (size, _) in record.files.items()}) if record else 0
        needed = (took or int(weights * WEIGHT_OVERHEAD)) + cache
        forced = self._live().model(model.id).force
        return Wanted(model.id, needed, self.pool_of(device), forced, device, took > 0)

    def device_of(self, model: LocalModel) -> str:
        """Return the device that a model runs on, by its graph."""
        return graph_memory(model.directory)[0] or self._usual

    def pool_of(self, device: str) -> str:
        """Return whose memory a model on that device takes: the GPU's if it has its own, else the system's."""
        own = "GPU" in parse_budget(self._live().memory_budget) or self._gpu() is not None
        return "GPU" if own and device.upper().startswith("GPU") else SYSTEM


def graph_memory(folder: Path) -> tuple[str, int]:
    """Return the device that a model's graph names, empty if none, and the bytes of KV cache that it sets."""
    try:
        text = (folder / GRAPH).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return "", 0
    device = re.search(r'^\s*(?:target_)?device: "([^"]+)"', text, re.MULTILINE)
    cache = re.search(r"^\s*cache_size: (\d+)", text, re.MULTILINE)
    return device[1] if device else "", int(cache[1]) << 30 if cache else 0


def engine_memory(pid: int | None) -> int:
    """Return the bytes that an engine process and its children hold; 0 if that cannot be seen."""
    import psutil

    if pid is None:
        return 0
    try:
        process = psutil.Process(pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def _taken(table: Mapping[str, Resident], device: str) -> int:
    return sum(each.bytes for each in table.values() if each.state is State.LOADED and each.device == device)
