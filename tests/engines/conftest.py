"""The embedded engine as a process, with the tiny models behind graphs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NODES = {
    "text_generation": ("HttpLLMCalculator", "LLMCalculatorOptions", ""),
    "vision_text_generation": ("HttpLLMCalculator", "LLMCalculatorOptions", "enable_prefix_caching: true"),
    "embeddings": ("EmbeddingsCalculatorOV", "EmbeddingsCalculatorOVOptions", "pooling: MEAN"),
    "rerank": ("RerankCalculatorOV", "RerankCalculatorOVOptions", "max_allowed_chunks: 50"),
    "image_generation": (
        "ImageGenCalculator",
        "ImageGenCalculatorOptions",
        'default_resolution: "64x64" max_resolution: "128x128" default_num_inference_steps: 2',
    ),
    "speech_to_text": ("S2tCalculator", "S2tCalculatorOptions", "enable_word_timestamps: true"),
    "text_to_speech": ("T2sCalculator", "T2sCalculatorOptions", ""),
}
LOOPBACK = """
    input_stream: "LOOPBACK:loopback"
    output_stream: "LOOPBACK:loopback"
    input_stream_info: { tag_index: 'LOOPBACK:0' back_edge: true }
    input_stream_handler { input_stream_handler: "SyncSetInputStreamHandler"
      options { [mediapipe.SyncSetInputStreamHandlerOptions.ext] { sync_set { tag_index: "LOOPBACK:0" } } } }
"""
PATIENCE = 60.0
STOPPED = 0 if os.name == "posix" else 1
"""What an engine exits with when it is asked to stop; Windows has no signal for that and ends it."""


def write_graph(kind: str, models_path: Path | str, extra: str | None = None, *, loopback: bool = True) -> str:
    """Return a graph.pbtxt as OVMS's own generator lays it out."""
    calculator, options, usual = NODES[kind]
    path = str(models_path).replace(os.sep, "/")  # a backslash escapes in this language
    return f"""# File created with: OpenVINO Model Server 2026.3.0
input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"
node: {{
    name: "Executor"
    calculator: "{calculator}"
    input_stream: "HTTP_REQUEST_PAYLOAD:input"
    output_stream: "HTTP_RESPONSE_PAYLOAD:output"
    input_side_packet: "RESOURCES:llm"
    {LOOPBACK if loopback else ""}
    node_options: {{ [type.googleapis.com / mediapipe.{options}]: {{
        models_path: "{path}" {usual if extra is None else extra}
    }} }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Engine:
    """A folder with a config.json, and the process that serves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.json"
        self.port = free_port()
        self.grpc_port = free_port()
        self.log: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        self._heard = threading.Condition()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE)

    def entry(self, name: str, pbtxt: str) -> Engine:
        """Write the graph of an entry."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "graph.pbtxt").write_text(pbtxt, "utf-8")
        return self

    def list(self, *names: str, also: str = "") -> None:
        """Write config.json; `also` changes its bytes."""
        entries = [{"config": {"name": name, "base_path": name}} for name in names]
        self.config.write_text(json.dumps({"model_config_list": entries}) + also)

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> Engine:
        """Start the process with config.json."""
        return self._start(
            "--config_path", str(self.config), "--file_system_poll_wait_seconds", "0", *arguments,
            environment=environment,
        )  # fmt: skip

    def start_single(
        self, name: str, folder: Path, *arguments: str, environment: dict[str, str] | None = None
    ) -> Engine:
        """Start the process with one model and no config.json."""
        return self._start("--model_name", name, "--model_path", str(folder), *arguments, environment=environment)

    def _start(self, *arguments: str, environment: dict[str, str] | None) -> Engine:
        command = [
            sys.executable, "-m", "ovms_embedded", "--rest_port", str(self.port), "--port", str(self.grpc_port),
            "--rest_bind_address", "127.0.0.1", "--grpc_bind_address", "127.0.0.1",
            "--spare_worker", "false", *arguments,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | (environment or {})
        )
        return self.listen()

    def listen(self) -> Engine:
        self._listener = threading.Thread(target=self._listen, args=(self.process,), daemon=True)
        self._listener.start()
        return self

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        with process.stdout:
            for line in process.stdout:
                with self._heard:
                    self.log.append(line.rstrip("\n"))
                    self._heard.notify_all()

    def wait_for_line(self, part: str, count: int = 1) -> None:
        with self._heard:
            found = self._heard.wait_for(lambda: sum(part in line for line in self.log) >= count, PATIENCE)
        assert found, "\n".join(self.log)

    def ready(self) -> Engine:
        self.wait_for_line("ServableManagerModule started")
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.http.close()
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process:
            self._listener.join(PATIENCE)

    def states(self) -> dict[str, tuple[str, str]]:
        """Return state and error code of every servable."""
        found = self.http.get("/v1/config").json()
        versions = {name: each["model_version_status"][0] for name, each in found.items()}
        return {name: (each["state"], each["status"]["error_code"]) for name, each in versions.items()}

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.http.post(path, json=fields)

    def running(self, name: str) -> int:
        """Return how many requests a graph works on, by the metrics."""
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(f'ovms_current_graphs{{name="{name}"}}'):
                return int(line.rsplit(" ", 1)[1])
        return 0

    def wait_until_idle(self, name: str) -> float:
        """Wait until no request runs; returns the seconds that took."""
        began = time.monotonic()
        while self.running(name):
            assert time.monotonic() - began < PATIENCE
        return time.monotonic() - began


@pytest.fixture(scope="session")
def graph() -> Callable[..., str]:
    return write_graph


@pytest.fixture(scope="session")
def usage() -> int:
    """Return what the engine exits with if its flags are wrong: OVMS's code, which is another one on Windows."""
    return 64 if os.name != "nt" else 3


@pytest.fixture(scope="session")
def engine_in() -> type[Engine]:
    return Engine


@pytest.fixture
def make_engine(tmp_path: Path, inference: None) -> Iterator[Callable[[], Engine]]:
    made: list[Engine] = []

    def make() -> Engine:
        folder = tmp_path / f"engine{len(made)}"
        folder.mkdir()
        made.append(Engine(folder))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, fixtures: Path, inference: None) -> Iterator[Engine]:
    """One engine with all the tiny models, shared by every test that only asks questions."""
    made = Engine(tmp_path_factory.mktemp("engine"))
    for kind in NODES:
        made.entry(kind, write_graph(kind, fixtures / kind))
    made.entry("tools", write_graph("text_generation", fixtures / "text_generation", 'tool_parser: "hermes3"'))
    made.list(*NODES, "tools")
    try:
        made.start("--metrics_enable").ready()
        yield made
        assert made.process
        assert made.process.poll() is None, "\n".join(made.log[-20:])
        assert made.stop() == STOPPED
        assert not [line for line in made.log if "crashed" in line or "Traceback" in line]
    finally:
        made.close()
