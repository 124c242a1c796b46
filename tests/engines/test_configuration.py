"""config.json, reloads and the states of what is served."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
import pytest

from ovms_embedded.calculators.discovery import find_calculators
from ovms_embedded.graphs import GraphInvalid, marks_of, parse_graph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engines.conftest import Engine

GOOD = ("AVAILABLE", "OK")
FAILED = ("LOADING", "FAILED_PRECONDITION")


EXTENSION = '{"extensions": ["/tmp/any.so"]}'


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"extensions": []}, "extensions"),
        ({"CACHE_DIR": "../elsewhere"}, "--cache_dir"),
        ({"WEIGHTS_PATH": "/etc/passwd"}, "WEIGHTS_PATH"),
        ({"NPUW_DUMP_SUBS_DIR": "/tmp"}, "NPUW_DUMP_SUBS_DIR"),
        ({"num_streams": 1}, "num_streams"),
        ({"NUM_STREAMS": ["1"]}, "text, a number"),
        ({"DEVICE_PROPERTIES": {"GPU": {"CONFIG_FILE": "/tmp/x.xml"}}}, "CONFIG_FILE"),
        ({"DEVICE_PROPERTIES": {"GPU": {"DEVICE_PROPERTIES": {"CPU": {}}}}}, "of GPU"),
        ({"DEVICE_PROPERTIES": "{GPU:{CONFIG_FILE:x}}"}, "a JSON object by device"),
        ([], "not a JSON object"),
    ],
)
def test_a_model_sets_no_property_that_runs_code_or_names_files(
    graph: Callable[..., str], properties: object, words: str
) -> None:
    with pytest.raises(GraphInvalid, match=words):
        parse_graph(
            graph("embeddings", "./", f"plugin_config: '{json.dumps(properties)}'").encode(), find_calculators()
        )


def test_a_model_sets_properties_of_speed_and_precision(graph: Callable[..., str]) -> None:
    wanted = {"NUM_STREAMS": "2", "DEVICE_PROPERTIES": {"NPU": {"NPUW_LLM_ENABLE_PREFIX_CACHING": True}}}
    found = parse_graph(
        graph("text_generation", "./", f"plugin_config: '{json.dumps(wanted)}'").encode(), find_calculators()
    )
    assert found.options["properties"] == wanted


def test_broken_entries_of_every_kind_hide_nothing(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine()
    words = fixtures / "embeddings"
    broken = {
        "no_graph": None,
        "no_text": "\x00\xff node {",
        "unknown_field": graph("embeddings", words, "no_such_option: 1"),
        "unknown_calculator": graph("embeddings", words).replace("EmbeddingsCalculatorOV", "EmbeddingsCalculator"),
        "no_models_path": graph("embeddings", words).replace("models_path", "target_device"),
        "missing_model": graph("embeddings", "nowhere"),
        "missing_reranker": graph("rerank", "nowhere"),
        "wrong_model": graph("speech_to_text", words),
        "bad_plugin_config": graph("embeddings", words, "plugin_config: '{'"),
        "foreign_code": graph("text_generation", fixtures / "text_generation", f"plugin_config: '{EXTENSION}'"),
        "bad_device": graph("embeddings", words, 'target_device: "TOASTER"'),
        "bad_parser": graph("text_generation", fixtures / "text_generation", 'tool_parser: "nonsense"'),
        "bad_pipeline": graph("text_generation", fixtures / "text_generation", "pipeline_type: VLM_CB"),
        "lone_draft": graph("text_generation", fixtures / "text_generation", 'draft_device: "CPU"'),
        "bad_resolution": graph("image_generation", fixtures / "image_generation", 'default_resolution: "auto"'),
        "two_devices": graph("image_generation", fixtures / "image_generation", 'device: "CPU CPU"'),
        "missing_voice": graph("text_to_speech", fixtures / "text_to_speech", 'voices { name: "a" path: "a.bin" }'),
    }
    for name, text in broken.items():
        if text is not None:
            engine.entry(name, text)
    engine.entry("first/good", graph("embeddings", words)).entry("last", graph("rerank", fixtures / "rerank"))
    engine.list("first/good", *broken, "last")
    engine.start().ready()
    assert engine.states() == dict.fromkeys(broken, FAILED) | {"first/good": GOOD, "last": GOOD}
    statuses = engine.http.get("/v1/config").json()
    for name in broken:
        cause = statuses[name]["model_version_status"][0]["status"]["error_message"]
        assert len(cause) > 10, name
        assert name != "foreign_code" or "'extensions', which a model may not set" in cause
        assert any(name in line and "[error]" in line for line in engine.log), name
    assert engine.http.get("/v2/health/ready").status_code == 200
    for path, code in (("first%2Fgood/ready", 200), ("no_graph/ready", 404), ("nobody/ready", 404)):
        assert engine.http.get(f"/v2/models/{path}").status_code == code
    assert engine.http.get("/v2/models/missing_model").status_code == 500
    assert engine.http.get("/v3/models/first/good").json()["id"] == "first/good"
    assert engine.http.get("/v3/models/missing_model").status_code == 500
    assert engine.post("/v3/embeddings", model="first/good", input="a").status_code == 200
    assert engine.post("/v3/embeddings", model="missing_model", input="a").status_code == 500
    assert engine.post("/v3/embeddings", model="nobody", input="a").status_code == 404


def test_reloads_follow_the_bytes_of_the_files(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine()
    text = graph("embeddings", fixtures / "embeddings")
    engine.entry("a", text).entry("b", text)
    engine.list("a")
    engine.start().ready()

    def reload() -> int:
        return engine.http.post("/v1/config/reload").status_code

    def loads(name: str, expected: int) -> int:
        """Return how often it was loaded; the lines of a load arrive through a pipe, a moment after the answer."""
        engine.wait_for_line(line := f"{name} state changed to: AVAILABLE", expected)
        return sum(line in each for each in engine.log)

    assert reload() == 200
    engine.list("a", "b")
    assert reload() == 200
    assert engine.states() == {"a": GOOD, "b": GOOD}
    assert (loads("a", 1), loads("b", 1)) == (1, 1)
    # A graph alone changes nothing, not even with a reload; with other bytes in config.json it does.
    engine.entry("a", text + "# changed\n")
    assert reload() == 200
    assert loads("a", 1) == 1
    engine.list("a", "b", also=" ")
    assert reload() == 200
    assert (loads("a", 2), loads("b", 1)) == (2, 1)
    # What is not listed any more is retired, and stays in the list.
    engine.list("b")
    assert reload() == 200
    assert engine.states() == {"a": ("END", "OK"), "b": GOOD}
    assert engine.post("/v3/embeddings", model="a", input="a").status_code == 404
    engine.list("a", "b")
    assert reload() == 200
    assert engine.states()["a"] == GOOD
    # A failure is an error once; then it is known, until its graph changes.
    engine.entry("c", graph("embeddings", "nowhere"))
    engine.list("a", "c", "b")
    assert (reload(), reload()) == (500, 200)
    assert engine.states() == {"a": GOOD, "b": GOOD, "c": FAILED}
    engine.entry("c", text)
    engine.list("a", "c", "b", also="\n")
    assert reload() == 200
    assert engine.states()["c"] == GOOD
    # A file that cannot be used changes nothing.
    engine.config.write_text("{")
    answer = engine.http.post("/v1/config/reload")
    assert answer.status_code == 412
    assert answer.json() == {"error": "Reloading config file failed. Check server logs for more info."}
    engine.config.unlink()
    answer = engine.http.post("/v1/config/reload")
    assert (answer.status_code, answer.json()) == (500, {"error": "Config file not found or cannot open."})
    assert engine.states() == {"a": GOOD, "b": GOOD, "c": GOOD}
    assert engine.http.post(f"http://127.0.0.1:{engine.port}//v1/config/reload").status_code == 500


def test_the_watcher_sees_changes(make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path) -> None:
    engine = make_engine().entry("a", graph("embeddings", fixtures / "embeddings"))
    engine.list()
    engine.start("--file_system_poll_wait_seconds", "1")
    engine.wait_for_line("Started model manager thread")
    assert engine.states() == {}
    engine.config.write_text('{"model_config_list":[],"mediapipe_config_list":[{"name":"a"}]}')
    engine.wait_for_line("a state changed to: AVAILABLE")
    assert engine.states() == {"a": GOOD}


def test_health_answers_while_models_load(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine()
    for kind in ("text_generation", "image_generation", "text_to_speech"):
        engine.entry(kind, graph(kind, fixtures / kind))
    engine.list("text_generation", "image_generation", "text_to_speech")
    engine.start()
    engine.wait_for_line("Started REST server")
    codes = set()
    for _ in range(10000):
        began = engine.http.get("/v2/health/live")
        assert began.status_code == 200
        assert began.elapsed.total_seconds() < 0.5
        code = engine.http.get("/v2/health/ready").status_code
        codes.add(code)
        if code == 200:
            break
    assert codes == {503, 200}


def test_a_reload_waits_for_running_requests(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    text = graph("text_generation", fixtures / "text_generation")
    engine = make_engine().entry("llm", text)
    engine.list("llm")
    engine.start().ready()
    ask = {"model": "llm", "prompt": "1, 2, 3,", "ignore_eos": True, "max_tokens": 1000, "temperature": 0}
    with (
        ThreadPoolExecutor() as pool,
        engine.http.stream("POST", "/v3/completions", json=ask | {"stream": True}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        engine.entry("llm", text + "# changed\n")
        engine.list("llm", also=" ")
        reloaded = pool.submit(engine.http.post, "/v1/config/reload")
        rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        assert '"length"' in rest[-4]
        assert reloaded.result().status_code == 200
    assert engine.post("/v3/completions", **ask | {"max_tokens": 3}).status_code == 200


def test_a_worker_that_dies_takes_only_its_own_requests_and_comes_back(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine()
    engine.entry("a", graph("embeddings", fixtures / "embeddings")).entry("b", graph("rerank", fixtures / "rerank"))
    engine.list("b")
    engine.start().ready()
    assert engine.process
    process = psutil.Process(engine.process.pid)
    others = process.children()
    engine.list("a", "b")
    assert engine.http.post("/v1/config/reload").status_code == 200
    for deaths in (1, 2):  # the second comes too soon for a start at once
        (worker,) = (each for each in process.children() if each not in others)
        worker.kill()
        engine.wait_for_line("a crashed", deaths)
        if deaths == 2:
            assert engine.states() == {"a": FAILED, "b": GOOD}
            assert engine.post("/v3/embeddings", model="a", input="x").status_code == 500
        assert engine.post("/v3/rerank", model="b", query="x", documents=["y"]).status_code == 200
        engine.wait_for_line("a state changed to: AVAILABLE", deaths + 1)
        assert engine.post("/v3/embeddings", model="a", input="x").status_code == 200


@pytest.mark.needs_posix  # Windows keeps no time of change beside that of writing
def test_a_file_that_is_written_again_has_other_marks_even_at_the_same_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert marks_of(path) is None
    path.write_text("one")
    assert marks_of(path) is None, "it may be written again within the same tick of the clock"
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    marks = marks_of(path)
    assert marks is not None
    assert marks_of(path) == marks
    path.write_text("two")
    os.utime(path, (hour_ago, hour_ago))
    assert marks_of(path) not in (None, marks)
