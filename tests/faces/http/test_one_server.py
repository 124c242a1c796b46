"""A data folder has one server: a second one says so and leaves the first alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.processes import end_by_force

EXECUTABLE = str(Path(sys.executable).with_name("ovms-plugin" + (".exe" if os.name == "nt" else "")))
LIMIT = 60.0


@pytest.mark.parametrize("words", [[], ["--port", "0"], ["--detach"]])
def test_a_second_server_is_refused_and_the_first_goes_on(server: Any, client: httpx.Client, words: list[str]) -> None:
    done = subprocess.run(
        [EXECUTABLE, "serve", *words],
        env=server.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert done.returncode == 4
    assert done.stderr == (
        f"A server runs here already, at {server.url} (process {server.process.pid}); `ovms-plugin stop` ends it, "
        "`ovms-plugin restart` starts it anew, and --data-dir names another data folder.\n"
    )
    assert client.get("/health").status_code == 200
    assert json.loads((server.data_dir / "run" / "http.json").read_text())["url"] == server.url


def test_of_two_that_start_at_once_one_serves(other_data_dir: Path, environment: Any) -> None:
    given = environment() | {"OVMS_PLUGIN_DATA_DIR": str(other_data_dir)}
    with started(given) as first, started(given) as second:
        end = time.monotonic() + LIMIT
        while first.poll() is None and second.poll() is None:
            assert time.monotonic() < end, "both go on"
            time.sleep(0.05)
        refused, serving = (first, second) if first.poll() is not None else (second, first)
        told = refused.stderr.read() if refused.stderr else ""
        assert refused.returncode == 4, told
        assert told.startswith("A server runs here already, at http://127.0.0.1:")
        assert f"(process {serving.pid})" in told
        found = json.loads((other_data_dir / "run" / "http.json").read_text())
        assert found["pid"] == serving.pid
        assert httpx.get(f"{found['url']}/health", trust_env=False).status_code == 200


def test_after_a_server_was_killed_another_one_starts(
    start: Callable[..., AbstractContextManager[Any]], other_data_dir: Path
) -> None:
    with start() as first:
        end = time.monotonic() + LIMIT
        while not (other_data_dir / "run" / "engine.json").exists():
            assert time.monotonic() < end, "no engine starts"
            time.sleep(0.05)
        engine = json.loads((other_data_dir / "run" / "engine.json").read_text())["pid"]
        end_by_force(first.process.pid)
        first.process.wait()
        with start() as second, second.client() as client:
            asked = {"model": "tiny/embeddings", "input": "x"}
            assert client.post("/v1/embeddings", json=asked).status_code == 200
            assert not psutil.pid_exists(engine) or psutil.Process(engine).status() == psutil.STATUS_ZOMBIE


def test_what_is_typed_about_models_is_done_by_the_server(server: Any, client: httpx.Client) -> None:
    """It alone knows which models are in use, and how long one is to stay."""

    def typed(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [EXECUTABLE, *words], env=server.environment, capture_output=True, text=True, check=False, timeout=LIMIT
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def stays() -> dict[str, float]:
        models = client.get("/api/ps").json()["models"]
        return {each["name"]: datetime.fromisoformat(each["expires_at"]).timestamp() - time.time() for each in models}

    assert typed("load", "tiny/rerank", "--keep", "2h") == "tiny/rerank is loaded.\n"
    assert 7000 < stays()["tiny/rerank"] <= 7200
    assert typed("unload", "tiny/rerank") == "tiny/rerank is unloaded.\n"
    assert "tiny/rerank" not in stays()
    for verb in ("load", "unload"):
        assert typed(verb, "no/such", code=3).startswith("Model no/such is not installed; installed: tiny/")


def test_kserves_model_repository_loads_and_unloads(client: httpx.Client) -> None:
    def states() -> dict[str, str]:
        return {each["name"]: each["state"] for each in client.post("/v2/repository/index").json()}

    assert client.post("/v2/repository/models/tiny%2Frerank/load").status_code == 200
    assert states()["tiny/rerank"] == "READY"
    assert client.post("/v2/repository/models/tiny/rerank/unload").status_code == 200
    assert states()["tiny/rerank"] == "UNAVAILABLE"
    refused = client.post("/v2/repository/models/tiny/rerank/load", json={"parameters": {"keep_alive": "soon"}})
    assert (refused.status_code, "'soon' is not a duration" in refused.text) == (400, True)
    assert client.post("/v2/repository/models/tiny/rerank/load", json=[1]).status_code == 400
    assert client.post("/v2/repository/models/no/such/load").status_code == 404
    assert client.post("/v2/repository/models/tiny/rerank/delete").status_code == 400


@contextmanager
def started(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([EXECUTABLE, "serve"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=LIMIT)
