"""A worker that takes too much memory, or works on for nobody, is ended, and the system would end it first of all."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from ovms_embedded import guard as guards
from ovms_embedded.workers import CallFailed, LoadFailed, Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.engines.conftest import Engine

MODULE = """
import time
from ovms_embedded import wire
from ovms_embedded.worker.pipe import serve

class Greedy:
    info = {}
    def __init__(self, pipe):
        self.pipe = pipe
    def run(self):
        serve(self.pipe, {"grow": self.grow, "hang": self.hang, "sleep": self.sleep}, listen=True)
    def grow(self, number, payload):
        kept = []
        while True:
            kept.append(bytearray(b"x" * (16 << 20)))
            time.sleep(0.005)
    def hang(self, number, payload):
        self.pipe.send([wire.ITEMS, [[number, "begun"]]])
        time.sleep(1000)
    def sleep(self, number, payload):
        time.sleep(payload["seconds"])
        return "slept"

def load(spec, pipe):
    return Greedy(pipe)
"""
MEGABYTE = 1 << 20


def watching(name: str, worker: Worker, *, loading: bool = False) -> Any:
    """Return a manager with one servable of that worker."""
    servable = SimpleNamespace(name=name, loading=worker if loading else None, processes=lambda: [worker])
    return SimpleNamespace(servables={name: servable})


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    (tmp_path / "greedy.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(guards, "PATIENCE", 0.5)
    started = await Worker.spawn()
    await started.load("me/greedy", {"worker": "greedy"})
    manager = watching("me/greedy", started)
    task = asyncio.create_task(guards.guard(manager))
    try:
        yield started
    finally:
        task.cancel()
        await started.close()


@pytest.mark.anyio
async def test_a_worker_that_takes_too_much_memory_is_ended(worker: Worker) -> None:
    loaded = guards.memory_of(worker.pid)
    worker.memory_limit = loaded + 200 * MEGABYTE
    causes: list[str] = []
    worker.on_exit = causes.append
    with pytest.raises(CallFailed, match=r"me/greedy was ended: it took \d+ MB of memory; \d+ are allowed"):
        await worker.call("grow", {}).result()
    assert len(causes) == 1
    assert not psutil.pid_exists(worker.pid)


@pytest.mark.anyio
async def test_a_worker_that_takes_too_much_while_it_loads_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hungry.py").write_text(MODULE + "\n\ndef load(spec, pipe):\n    Greedy(pipe).grow(0, {})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started = await Worker.spawn()
    started.memory_limit = guards.memory_of(started.pid) + 200 * MEGABYTE
    manager = watching("me/m", started, loading=True)
    task = asyncio.create_task(guards.guard(manager))
    try:
        with pytest.raises(LoadFailed, match=r"me/m was ended: it took \d+ MB of memory; \d+ are allowed"):
            await started.load("me/m", {"worker": "hungry"})
    finally:
        task.cancel()
        await started.close()


def test_the_limit_of_a_load_follows_from_the_files(fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 << 30))
    size = sum(each.stat().st_size for each in (fixtures / "embeddings").rglob("*") if each.is_file())
    assert guards.weights_of(str(fixtures / "embeddings"), {"models_path": "./"}) == size
    both = {"models_path": str(fixtures / "embeddings"), "draft_models_path": str(fixtures / "embeddings")}
    assert guards.weights_of("/nowhere", both) == 2 * size
    assert guards.loading_limit(10 << 30, {}, 0) == 40 << 30
    assert guards.loading_limit(10 << 30, {}, 300) == 300 * MEGABYTE


@pytest.mark.anyio
async def test_a_worker_whose_call_everybody_left_is_ended(worker: Worker) -> None:
    gone = asyncio.Event()
    causes: list[str] = []

    def note(cause: str) -> None:
        causes.append(cause)
        gone.set()

    worker.on_exit = note
    call = worker.call("hang", {})
    assert await anext(call.batches()) == ["begun"]
    call.close()
    await asyncio.wait_for(gone.wait(), 20)
    assert "a request that everybody left" in causes[0]


@pytest.mark.anyio
async def test_a_worker_is_not_ended_while_somebody_waits_for_its_work(worker: Worker) -> None:
    """The call that was left stands behind one that takes longer than the watchdog's patience."""
    long = worker.call("sleep", {"seconds": 2})
    worker.call("sleep", {"seconds": 0}).close()
    assert await long.result() == "slept"
    assert await worker.call("sleep", {"seconds": 0}).result() == "slept"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be told whom to end first")
@pytest.mark.anyio
async def test_the_system_would_end_a_worker_before_anything_else(worker: Worker) -> None:
    assert int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text()) == guards.OOM_SCORE


def test_the_limit_follows_from_what_is_loaded_and_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 << 30))
    gigabyte = 1 << 30
    assert guards.memory_limit(gigabyte, {}, 0) == 5 * gigabyte
    assert guards.memory_limit(10 * gigabyte, {"cache_size": 2}, 0) == 22 * gigabyte
    assert guards.memory_limit(gigabyte, {"cache_size": 0}, 0) == 21 * gigabyte
    assert guards.memory_limit(60 * gigabyte, {"cache_size": 2}, 0) == 61 * gigabyte, "a model that is here may stay"
    assert guards.memory_limit(gigabyte, {}, 300) == 300 * MEGABYTE


def test_the_limit_can_be_set_and_no_code_is_cached_for_a_cpu(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path, tmp_path: Path
) -> None:
    engine = make_engine()
    for kind in ("text_generation", "embeddings"):
        engine.entry(kind, graph(kind, fixtures / kind, 'device: "CPU"' if kind == "text_generation" else None))
    engine.list("text_generation", "embeddings")
    engine.start("--worker_memory_limit", "1", "--cache_dir", str(tmp_path / "cache")).ready()
    engine.wait_for_line("Ending the worker of text_generation: it took")
    engine.wait_for_line("Ending the worker of embeddings: it took")
    kept = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert all(name.startswith("bytes-") for name in kept), "nothing but what spares questions to the tokenizer"
    assert engine.http.get("/v2/health/live").status_code == 200
    assert engine.stop() == 0
