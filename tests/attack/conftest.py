"""An engine with the tiny models, and the memory that its processes take while requests attack it."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import psutil
import pytest

from tests.engines.conftest import NODES, STOPPED, Engine, write_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MEGABYTE = 1 << 20


class Watch:
    """The most memory that each process of an engine had since the watch began, beyond what it had then."""

    def __init__(self, engine: Engine) -> None:
        assert engine.process
        front = psutil.Process(engine.process.pid)
        self._processes = [front, *front.children()]
        self._before = [each.memory_info().rss for each in self._processes]
        self._peaks = list(self._before)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.monotonic() - self._began
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            for at, process in enumerate(self._processes):
                self._peaks[at] = max(self._peaks[at], process.memory_info().rss)

    @property
    def grown(self) -> int:
        """Megabytes, of the process that grew most."""
        return max(peak - before for peak, before in zip(self._peaks, self._before, strict=True)) // MEGABYTE

    @property
    def front(self) -> int:
        """Megabytes by which the front process grew."""
        return (self._peaks[0] - self._before[0]) // MEGABYTE


@contextmanager
def attacked(made: Engine) -> Iterator[Engine]:
    """Start an engine; neither it nor one of its workers may have ended before the end of the block."""
    made.start("--metrics_enable").ready()
    yield made
    assert made.process
    assert made.process.poll() is None, "\n".join(made.log[-20:])
    assert made.stop() == STOPPED, "\n".join(made.log[-40:])
    assert not [line for line in made.log if "crashed" in line or "Traceback" in line or "Ending the worker" in line]
    made.close()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, fixtures: Path, inference: None) -> Iterator[Engine]:
    """An engine with all the tiny models."""
    made = Engine(tmp_path_factory.mktemp("target"))
    for kind in NODES:
        made.entry(kind, write_graph(kind, fixtures / kind))
    made.list(*NODES)
    with attacked(made):
        yield made


@pytest.fixture
def watch(target: Engine) -> Callable[[], Watch]:
    return lambda: Watch(target)
