"""Models that nobody uses are unloaded, stay available, and are loaded by the next request."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def loaded(engine: Any) -> dict[str, str]:
    """Return the gauge ovms_graph_loaded by name."""
    lines = engine.http.get("/metrics").text.splitlines()
    found = (line.split('"') for line in lines if line.startswith("ovms_graph_loaded{"))
    return {parts[1]: parts[2].split()[-1] for parts in found}


def wait_until(condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 60
        time.sleep(0.1)


def test_an_idle_model_is_unloaded_and_the_next_request_loads_it(
    make_engine: Callable[[], Any], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine()
    engine.entry("e", graph("embeddings", fixtures / "embeddings"))
    engine.entry("kept", graph("rerank", fixtures / "rerank"))
    groups = {"e": "texts", "kept": "permanent"}
    entries = [{"config": {"name": name, "base_path": name, "group_name": group}} for name, group in groups.items()]
    engine.config.write_text(json.dumps({"model_config_list": entries}))
    engine.start("--idle_unload_timeout_seconds", "1", "--metrics_enable").ready()
    assert engine.post("/v3/embeddings", model="e", input="a").status_code == 200

    wait_until(lambda: loaded(engine) == {"e": "0", "kept": "1"})
    assert engine.states() == {"e": ("AVAILABLE", "OK"), "kept": ("AVAILABLE", "OK")}
    assert [each["id"] for each in engine.http.get("/v3/models").json()["data"]] == ["e", "kept"]
    assert engine.http.get("/v2/models/e").json()["name"] == "e"
    wait_until(lambda: len(psutil.Process(engine.process.pid).children()) == 1)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: engine.post("/v3/embeddings", model="e", input="a"), range(4)))
    assert [each.status_code for each in answers] == [200] * 4
    assert len(psutil.Process(engine.process.pid).children()) == 2, "four requests load it once"
    assert engine.post("/v3/rerank", model="kept", query="a", documents=["b"]).status_code == 200


def test_a_model_that_is_gone_when_it_is_needed_again_says_so(
    make_engine: Callable[[], Any], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine().entry("e", graph("embeddings", fixtures / "embeddings"))
    engine.list("e")
    engine.start("--idle_unload_timeout_seconds", "1", "--metrics_enable").ready()
    wait_until(lambda: loaded(engine) == {"e": "0"})
    (engine.folder / "e" / "graph.pbtxt").unlink()
    assert engine.post("/v3/embeddings", model="e", input="a").status_code == 500
    assert engine.states() == {"e": ("LOADING", "FAILED_PRECONDITION")}
