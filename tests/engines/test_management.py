"""The verbs of the command line that end without serving, and the flags that make a graph."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def run(*words: str | Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "ovms_embedded", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_models_are_added_listed_and_removed(tmp_path: Path, fixtures: Path, usage: int) -> None:
    config = tmp_path / "config.json"
    model = shutil.copytree(fixtures / "embeddings", tmp_path / "models" / "me" / "words")
    assert run("--configure", "--model_path", model)[0] == 0
    assert "EmbeddingsCalculatorOV" in (model / "graph.pbtxt").read_text()
    code, said, _ = run("--list_models", "--model_repository_path", tmp_path / "models")
    assert (code, said.splitlines()[1:]) == (0, ["me/words"])

    add = ("--add_to_config", "--config_path", config, "--model_name", "words", "--model_path", model)
    assert run(*add)[0] == 0
    config.write_text(json.dumps(json.loads(config.read_text()) | {"monitoring": {"metrics": {"enable": True}}}))
    assert run(*add, "--group_name", "permanent")[0] == 0
    written = json.loads(config.read_text())
    assert written["model_config_list"] == [
        {"config": {"name": "words", "base_path": str(model), "group_name": "permanent"}}
    ]
    assert written["monitoring"] == {"metrics": {"enable": True}}, "what it does not know stays"

    assert run("--remove_from_config", config, "--model_name", "words")[0] == 0
    assert json.loads(config.read_text())["model_config_list"] == []
    code, _, error = run("--remove_from_config", config, "--model_name", "words")
    assert (code, error) == (usage, f"error parsing options - {config} lists no model words\n")


def test_a_broken_configuration_stays_as_it_is(tmp_path: Path, usage: int) -> None:
    config = tmp_path / "config.json"
    config.write_text("{")
    code, _, error = run("--add_to_config", "--config_path", config, "--model_name", "a", "--model_path", "b")
    assert (code, "cannot be read as JSON" in error, config.read_text()) == (usage, True, "{")


def test_flags_make_the_graph(make_engine: Callable[[], Any], fixtures: Path) -> None:
    engine = make_engine()
    flags = ("--task", "embeddings", "--target_device", "CPU", "--disable_input_count_validation")
    engine.start_single("words", fixtures / "embeddings", *flags).ready()
    assert engine.post("/v3/embeddings", model="words", input="a").status_code == 200


def test_a_wrong_task_names_the_right_ones(fixtures: Path, usage: int) -> None:
    words = ("--rest_port", "1", "--model_name", "x", "--model_path", fixtures / "embeddings")
    code, said, _ = run(*words[:1], "18999", *words[2:], "--task", "poetry")
    assert code == 1
    assert "There is no task poetry; use one of embeddings, image_generation" in said
    code, _, error = run(*words, "--config_path", "c.json", "--task", "embeddings")
    assert (code, "for a start with model_path" in error) == (usage, True)


class Hub:
    """A hub of one model, over real HTTP."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None]] = []
        """Paths and the ranges that were wanted."""
        self.stops_after: int | None = None
        """Bytes of a file after which the connection breaks."""
        self.listing: list[dict[str, Any]] = []
        for path in sorted(folder.iterdir()):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            size = path.stat().st_size
            entry = {"type": "file", "path": path.name, "size": size}
            self.listing.append(entry | ({"lfs": {"oid": digest, "size": size}} if path.suffix == ".bin" else {}))
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                hub.answer(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        self.asked.append((path, request.headers.get("Range")))
        more = ""
        if path == "/api/models/acme/words/tree/main":
            half = len(self.listing) // 2
            part = self.listing[half:] if "cursor" in query else self.listing[:half]
            body, status = json.dumps(part).encode(), 200
            more = "" if "cursor" in query else f'<{self.url}{path}?cursor=2>; rel="next"'
        elif path.startswith("/acme/words/resolve/main/"):
            start = int((request.headers.get("Range") or "bytes=0-")[6:-1])
            body, status = (self.folder / path.rsplit("/", 1)[1]).read_bytes()[start:], 206 if start else 200
        else:
            body, status = b"", 404
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        if more:
            request.send_header("Link", more)
        request.end_headers()
        request.wfile.write(body if self.stops_after is None or b"[" in body[:1] else body[: self.stops_after])
        if self.stops_after is not None and len(body) > self.stops_after:
            request.close_connection = True


@pytest.fixture
def hub(fixtures: Path) -> Iterator[Hub]:
    made = Hub(fixtures / "embeddings")
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_model_is_pulled_with_its_graph(hub: Hub, tmp_path: Path, make_engine: Callable[[], Any]) -> None:
    words = ("--pull", "--source_model", "acme/words", "--model_repository_path", tmp_path, "--hub", hub.url)
    code, said, error = run(*words)
    assert (code, error) == (0, "")
    target = tmp_path / "acme" / "words"
    assert f"Graph: graph.pbtxt created in: {target}" in said
    for path in hub.folder.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes()
    asked = len(hub.asked)
    code, said, _ = run(*words)
    assert (code, "there already" in said, len(hub.asked)) == (0, True, asked)
    engine = make_engine()
    engine.start_single("words", target).ready()
    assert engine.post("/v3/embeddings", model="words", input="a").status_code == 200


def test_an_interrupted_pull_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    words = ("--pull", "--source_model", "acme/words", "--model_repository_path", tmp_path, "--hub", hub.url)
    hub.stops_after = 1000
    while (failed := run(*words))[0] == 1 and len(hub.asked) < 8:
        assert "acme/words was not pulled from" in failed[2]
        assert not (tmp_path / "acme" / "words").exists()
    hub.stops_after = None
    code, _, error = run(*words)
    assert code == 0, error
    assert any(wanted for _, wanted in hub.asked)
    for path in hub.folder.iterdir():
        assert (tmp_path / "acme" / "words" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"path": "../evil"}, "leads out of the model's folder"),
        ({"path": "/etc/evil"}, "leads out of the model's folder"),
        ({"size": None}, "does not say how large"),
        ({"lfs": {"oid": "0" * 64, "size": 1}}, "arrived damaged"),
    ],
)
def test_what_a_hub_says_is_not_believed(hub: Hub, tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    hub.listing[0] |= change
    code, _, error = run(
        "--pull", "--source_model", "acme/words", "--model_repository_path", tmp_path, "--hub", hub.url
    )
    assert (code, sentence in error, "Traceback" in error) == (1, True, False), error
    assert not (tmp_path / "acme" / "words").exists()


def test_a_pull_that_cannot_begin_says_what_it_needs(hub: Hub, tmp_path: Path, usage: int) -> None:
    where = ("--model_repository_path", tmp_path, "--hub", hub.url)
    assert "needs --source_model" in run("--pull", *where)[2]
    assert "needs --source_model" in run("--pull", "--source_model", "../x", *where)[2]
    code, _, error = run("--pull", "--source_model", "acme/none", *where)
    assert (code, "no such model" in error) == (1, True)
    code, _, error = run("--pull", "--source_model", "acme/words", *where[:2], "--hub", "ftp://x")
    assert (code, "not an address" in error) == (usage, True)
