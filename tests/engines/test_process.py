"""The command line, the start and the stop."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from ovms_embedded.worker import common
from ovms_kernel.engine.ovms import NEWEST

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engines.conftest import Engine

LINE = re.compile(
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\]\[\d+\]\[\w+\]\[(trace|debug|info|warning|error)\]\[\w+\.py:\d+\] .+"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ovms_embedded", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_version_is_printed_as_ovms_prints_it() -> None:
    done = run("--version")
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert [line.rpartition(" ")[0] for line in lines[:3]] == [
        "OpenVINO Model Server",
        "OpenVINO backend",
        "OpenVINO GenAI backend",
    ]
    assert lines[0] == f"OpenVINO Model Server {NEWEST}", "it restates the OVMS that the plugin installs elsewhere"
    assert lines[1].rpartition(" ")[2].startswith(NEWEST.rpartition(".")[0]), "on the library of that OVMS"
    assert lines[3].startswith("Bazel build flags: ")


def test_the_front_process_imports_no_openvino() -> None:
    code = "import sys; from ovms_embedded import grpc_service, modules, server; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"openvino", "openvino_genai", "numpy", "PIL", "soundfile"} & set(modules)


def test_a_signal_before_the_start_is_over_is_no_failure(make_engine: Callable[[], Engine]) -> None:
    engine = make_engine()
    engine.list()
    engine.start()
    engine.wait_for_line("OpenVINO Model Server")
    assert engine.stop() == 0


def test_without_arguments_there_is_help() -> None:
    done = run()
    assert done.returncode == 0
    assert "--rest_port" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no_such_flag"],
        ["--rest_port", "8000"],
        ["--rest_port", "70000", "--config_path", "x"],
        ["--rest_port", "eight", "--config_path", "x"],
        ["--config_path", "x"],
        ["--rest_port", "8000", "--port", "8000", "--config_path", "x"],
        ["--rest_port", "8000", "--config_path", "x", "--model_name", "y"],
        ["--rest_port", "8000", "--config_path", "x", "--log_level", "LOUD"],
        ["--rest_port", "8000", "--config_path", "x", "--metrics_list", "ovms_streams"],
        ["--rest_port", "8000", "--config_path", "x", "--rest_workers", "1"],
        ["--rest_port", "8000", "--config_path", "x", "--api_key_file", "/does/not/exist"],
        ["--rest_port", "8000", "--config_path", "x", "--rest_bind_address", "a, ,b"],
        ["--rest_port", "8000", "--config_path", "x", "--cpu_extension", "x.so"],
        ["--pull", "--rest_port", "8000", "--config_path", "x"],
    ],
)
def test_wrong_usage_exits_as_ovms_does_with_a_sentence_on_stderr(arguments: list[str], usage: int) -> None:
    from ovms_embedded.cli import WrongUsage, parse

    with pytest.raises(WrongUsage, match=r".{10}"):
        parse(arguments)
    if arguments == ["--no_such_flag"]:  # one through the process, as each costs its start
        done = run(*arguments)
        assert done.returncode == usage
        assert "--no_such_flag" in done.stderr


def test_a_repository_names_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    from ovms_embedded.cli import Settings, parse

    def config(*arguments: str) -> str:
        found = parse(["--rest_port", "8000", *arguments])
        assert isinstance(found, Settings)
        assert found.config_path
        return found.config_path.as_posix()

    assert config("--model_repository_path", "/models") == "/models/config.json"
    monkeypatch.setenv("OVMS_MODEL_REPOSITORY_PATH", "/other")
    assert config() == "/other/config.json"
    assert config("--config_path", "mine.json") == "mine.json"


@pytest.mark.parametrize("which", ["port", "grpc_port"])
def test_a_busy_port_exits_1(make_engine: Callable[[], Engine], which: str) -> None:
    engine = make_engine()
    engine.list()
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        setattr(engine, which, squatter.getsockname()[1])
        engine.start()
        assert engine.process
        assert engine.process.wait(30) == 1
    engine.wait_for_line("port is busy")


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"model_config_list":[],"more":1}', '{"mediapipe_config_list":[]}']
)
def test_an_unusable_configuration_exits_1(make_engine: Callable[[], Engine], content: str | None) -> None:
    from ovms_embedded.config import ConfigError, read_config

    engine = make_engine()
    if content is not None:
        engine.config.write_text(content)
    with pytest.raises(ConfigError):
        read_config(engine.config)
    if content in (None, "{"):
        engine.start()
        assert engine.process
        assert engine.process.wait(30) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_within_bounds(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path, number: signal.Signals
) -> None:

    engine = make_engine().entry("llm", graph("text_generation", fixtures / "text_generation"))
    engine.list("llm")
    engine.start().ready()
    assert engine.process
    workers = psutil.Process(engine.process.pid).children(recursive=True)
    assert len(workers) == 2  # the pipeline and the chat template
    # An endless answer is on its way: it gets its time and is cut then.
    ask = {
        "model": "llm", "messages": [{"role": "user", "content": "Count to fifty"}], "ignore_eos": True,
        "stream": True, "max_tokens": 2000,
    }  # fmt: skip
    with engine.http.stream("POST", "/v3/chat/completions", json=ask) as answer:
        next(answer.iter_lines())
        began = time.monotonic()
        assert engine.stop(number) == 0
        assert time.monotonic() - began < 10
    psutil.wait_procs(workers, timeout=5)
    assert not [each for each in workers if each.is_running()]
    assert all(LINE.fullmatch(line) for line in engine.log), [line for line in engine.log if not LINE.fullmatch(line)]
    for part in (
        f"OpenVINO Model Server {NEWEST}",
        f"Started gRPC server on port {engine.grpc_port}",
        f"Binding REST server to address: 127.0.0.1:{engine.port}",
        f"REST server listening on port {engine.port} with",
        f"Started REST server at 127.0.0.1:{engine.port}",
        "Mediapipe: llm state changed to: AVAILABLE after handling: ValidationPassedEvent",
        "HTTPServerModule shutdown",
    ):
        assert any(part in line for line in engine.log), part


def test_workers_die_with_a_server_that_is_killed(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:

    engine = make_engine().entry("embed", graph("embeddings", fixtures / "embeddings"))
    engine.list("embed")
    engine.start().ready()
    assert engine.process
    workers = psutil.Process(engine.process.pid).children(recursive=True)
    engine.process.kill()
    psutil.wait_procs(workers, timeout=10)
    assert not [each for each in workers if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_a_single_model_that_does_not_load_is_fatal(make_engine: Callable[[], Engine]) -> None:
    engine = make_engine()
    done = run("--rest_port", str(engine.port), "--model_name", "x", "--model_path", str(engine.folder))
    assert done.returncode == 1


def test_a_single_model_is_served_without_a_configuration(make_engine: Callable[[], Engine], fixtures: Path) -> None:
    engine = make_engine()
    command = [
        sys.executable, "-m", "ovms_embedded", "--rest_port", str(engine.port), "--model_name", "words",
        "--model_path", str(fixtures / "embeddings"),
    ]  # fmt: skip
    engine.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    engine.listen()
    engine.ready()
    assert engine.states() == {"words": ("AVAILABLE", "OK")}
    assert engine.post("/v3/embeddings", model="words", input="a").status_code == 200
    assert not (fixtures / "embeddings" / "graph.pbtxt").exists()
    assert engine.stop() == 0


def test_threads_of_a_model_are_bound_to_cores_only_if_its_graph_says_so() -> None:
    """Bound ones of several models wait for the same cores while others are free."""

    def properties(device: str, **given: Any) -> dict[str, Any]:
        return common.properties({"options": {"properties": given}, "cache_dir": "cache"}, device)

    assert properties("CPU") == {"ENABLE_CPU_PINNING": False}
    assert properties("CPU", ENABLE_CPU_PINNING=True) == {"ENABLE_CPU_PINNING": True}
    assert properties("GPU.0") == {"CACHE_DIR": "cache"}
