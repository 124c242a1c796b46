"""Ends workers that run away: those that take too much memory, and those whose call nobody waits for any more.

The front process does it, because a thread in the worker does not run while a library keeps Python's global lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ovms_embedded import log

if TYPE_CHECKING:
    from ovms_embedded.manager import Manager

PERIOD = 0.2
"""Seconds between two looks at the workers."""
IDLE = 5
"""How much less often it looks at a worker that has nothing to do."""
PATIENCE = 30.0
"""Seconds that a call may go on after everybody who waited for it has left."""
MARGIN = 4 << 30
"""Bytes that a worker may take beyond what it has when its model is loaded, at least."""
GIGABYTE = 1 << 30
MEGABYTE = 1 << 20
LOADING = 2
"""Copies of a model's weights that a load may need at the same time."""
SHARE = 0.8
"""Of the machine's memory: no worker may take more, unless its model alone does."""
OOM_SCORE = 900


def volunteer(pid: int) -> None:
    """Let the system end that process first when its memory runs out, where the system can be told so."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE))


def memory_of(pid: int) -> int:
    """Return the bytes of memory that a process has, 0 when it is gone."""
    try:
        return int(_process(pid).memory_info().rss)
    except psutil.Error:
        return 0


@lru_cache(maxsize=64)
def _process(pid: int) -> psutil.Process:
    # Made once for each worker: that reads more of the system than its memory does.
    return psutil.Process(pid)


def processor_time(pid: int) -> float:
    """Return the seconds of processors that a process has taken, 0 when it is gone."""
    try:
        return sum(psutil.Process(pid).cpu_times()[:2])
    except psutil.Error:
        return 0.0


def memory_limit(loaded: int, options: dict[str, Any], wanted: int) -> int:
    """Return how many bytes a worker may have.

    :param loaded: what it has with its model loaded.
    :param options: the graph's; text generation fills a cache later, of ``cache_size`` GB or as large as it needs.
    :param wanted: the setting in MB, 0 for what follows from the rest.
    """
    if wanted:
        return wanted * MEGABYTE
    whole = psutil.virtual_memory().total
    cache = 0
    if (size := options.get("cache_size")) is not None:
        cache = size * GIGABYTE or whole // 4
    return int(max(min(loaded + max(MARGIN, loaded) + cache, SHARE * whole), loaded + GIGABYTE))


def weights_of(base: str, options: dict[str, Any]) -> int:
    """Return the bytes of the files that a graph loads: its model's and its draft model's."""
    found = 0
    for option in ("models_path", "draft_models_path"):
        if isinstance(named := options.get(option), str) and named:
            path = Path(base) / named
            files = path.rglob("*") if path.is_dir() else [path]
            found += sum(each.stat().st_size for each in files if each.is_file())
    return found


def loading_limit(weights: int, options: dict[str, Any], wanted: int) -> int:
    """Return how many bytes a worker may have while it loads its model, whose copies for a device are made then.

    :param weights: bytes of the model's files.
    """
    return memory_limit(LOADING * weights, options, wanted)


async def guard(manager: Manager) -> None:
    """Watch over the workers, for ever."""
    for tick in itertools.count():
        await asyncio.sleep(PERIOD)
        watched = [(servable, each) for servable in manager.servables.values() for each in servable.processes()]
        for servable, worker in watched:
            if not worker.pid or (tick % IDLE and worker is not servable.loading and not worker.busy):
                continue
            if worker.memory_limit and (taken := memory_of(worker.pid)) > worker.memory_limit:
                allowed = worker.memory_limit // MEGABYTE
                text = f"it took {taken // MEGABYTE} MB of memory; {allowed} are allowed (--worker_memory_limit)"
            elif worker.is_stuck(time.monotonic() - PATIENCE):
                text = f"it still works on a request that everybody left {PATIENCE:.0f} seconds ago"
            else:
                continue
            log.manager.error("Ending the worker of %s: %s", servable.name, text)
            worker.kill(text)
