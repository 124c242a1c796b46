"""A spare worker waits for the next model, with the library imported."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE = 60.0


def children(engine: Any) -> list[psutil.Process]:
    assert engine.process
    return psutil.Process(engine.process.pid).children()


def imported(process: psutil.Process) -> bool:
    return any("openvino_genai" in each.path for each in process.memory_maps())


def test_a_load_takes_the_spare_and_the_next_one_waits(
    make_engine: Callable[[], Any], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine().entry("e", graph("embeddings", fixtures / "embeddings"))
    engine.list()
    engine.start("--spare_worker", "true").ready()
    [spare] = children(engine)

    engine.list("e")
    assert engine.http.post("/v1/config/reload").status_code == 200
    assert engine.post("/v3/embeddings", model="e", input="a").status_code == 200
    assert spare.is_running(), "the model is served by the process that waited"
    while not (others := [each for each in children(engine) if each.pid != spare.pid]):
        assert engine.process.poll() is None
    [other] = others
    while not imported(other):
        assert other.is_running()
    other.kill()
    other.wait(PATIENCE)
    engine.list("e", also=" ")
    engine.entry("f", graph("rerank", fixtures / "rerank"))
    engine.list("e", "f")
    assert engine.http.post("/v1/config/reload").status_code == 200, "a spare that died costs only its head start"
    assert engine.states() == {"e": ("AVAILABLE", "OK"), "f": ("AVAILABLE", "OK")}
    workers = children(engine)
    assert engine.stop() == 0
    assert not [each for each in workers if each.is_running()]


def test_a_flag_turns_the_spare_off(make_engine: Callable[[], Any]) -> None:
    engine = make_engine()
    engine.list()
    engine.start("--spare_worker", "false").ready()
    assert children(engine) == []


def test_an_idle_engine_uses_no_processor(make_engine: Callable[[], Any]) -> None:
    engine = make_engine()
    engine.list()
    engine.start("--spare_worker", "true", "--file_system_poll_wait_seconds", "1").ready()
    processes = [psutil.Process(engine.process.pid), *children(engine)]
    while not imported(processes[1]) or processes[1].status() != psutil.STATUS_SLEEPING:
        assert processes[1].is_running()

    def used() -> float:
        return sum(each.cpu_times().user + each.cpu_times().system for each in processes)

    before = used()
    time.sleep(2)  # the time itself is what is measured
    assert used() - before <= 0.04
