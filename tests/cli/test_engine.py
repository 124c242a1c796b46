"""Commands about the engine and requests to it, with the embedded engine and the tiny models."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.conftest import run_here
from tests.processes import at_console, end_by_force, interrupt

ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."
CHAT, EMBED = "tiny/chat", "tiny/embed"
SOUND = next((Path(__file__).parents[1] / "fixtures" / "speech_to_text_samples").glob("*.wav"))
REQUESTS: dict[str, dict[str, Any]] = {
    "embed": {"input": "x"},
    "generate": {"prompt": "x"},
    "rerank": {"query": "x", "documents": ["y"]},
    "text-to-image": {"prompt": "x"},
    "speech-to-text": {"audio": str(SOUND)},
    "text-to-speech": {"text": "x"},
}
"""A request of each service that answers once, but for the model."""


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    """A data folder with an engine and both tiny models."""
    folder = tmp_path_factory.mktemp("stocked") / "data"
    environment = os.environ | {"OVMS_PLUGIN_DATA_DIR": str(folder), "OVMS_PLUGIN_PLATFORM": "portable"}
    for words in (
        ("engine", "install"),
        ("import", str(fixtures / "text_generation"), CHAT),
        ("import", str(fixtures / "embeddings"), EMBED),
    ):
        assert run_here(words, environment) == 0
    return folder


@pytest.fixture
def installed(here: Any, stocked: Path, environment: dict[str, str]) -> Any:
    """The command, with an engine and both tiny models installed in a folder of the test's own; ports of its own."""
    shutil.copytree(stocked, environment["OVMS_PLUGIN_DATA_DIR"], symlinks=True)
    # Far from the usual ones, which other engines on this machine take one after another.
    with socket.socket() as rest, socket.socket() as grpc:
        for name, probe in (("REST", rest), ("GRPC", grpc)):
            probe.bind(("127.0.0.1", 0))
            environment[f"OVMS_PLUGIN_{name}_PORT"] = str(probe.getsockname()[1])
    return here


class Serve:
    """``ovms-plugin serve`` in a process of its own; its lines on stderr are read as they come."""

    def __init__(self, executable: str, environment: dict[str, str]) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            at_console([executable, "serve"]),
            env=environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read_until(self, part: str) -> str:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line)
            if part in line:
                return line
        raise AssertionError(f"it ended without saying {part!r}: {self.lines}")

    def interrupt(self) -> tuple[int, str]:
        """Type Ctrl-C and return the exit code and the lines that are left."""
        interrupt(self.process)
        return self.rest()

    def rest(self) -> tuple[int, str]:
        """Wait for its end, with its stdin open, and return the exit code and the lines that are left."""
        assert self.process.stderr
        rest = self.process.stderr.read()
        code = self.process.wait(20)
        self._close()
        return code, rest

    def kill(self) -> None:
        with suppress(psutil.NoSuchProcess):
            for each in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        for each in (self.process.stdin, self.process.stderr):
            if each:
                each.close()


@pytest.fixture
def server(installed: Any, executable: str, environment: dict[str, str]) -> Iterator[Serve]:
    process = Serve(executable, environment)
    try:
        process.read_until("is ready at")
        yield process
    finally:
        process.kill()


def test_engines_are_installed_listed_chosen_and_removed(here: Any) -> None:
    assert "engine install" in here("engine", "ls").stderr
    version = json.loads(here("engine", "install", "--json").stdout)["version"]
    assert here("engine", "install").stdout == f"Engine {version} (portable) is installed and active.\n"
    assert here("engine", "ls").stdout.splitlines()[1].split() == [version, "portable", "active"]
    assert json.loads(here("engine", "ls", "--json").stdout)[0]["active"] is True
    assert version in here("engine", "use", version).stdout
    assert version in here("engine", "upgrade").stdout
    assert "in use" in here("engine", "remove", version, code=2).stderr
    assert "9.9" in here("engine", "use", "9.9", code=3).stderr


@pytest.mark.needs_posix  # plays a relative of Ubuntu
def test_an_engine_that_is_not_the_first_choice_is_no_secret(environment: dict[str, str]) -> None:
    """On a relative of Ubuntu whose build cannot be downloaded, another engine is installed; a warning says why."""
    code = (
        "import ovms_kernel.kernel as kernel; from ovms_kernel.values import Host;"
        "kernel.read_host = lambda: Host(os='linux', machine='x86_64', memory=8 << 30, distribution='debian',"
        " version='12', codename='bookworm');"
        "from ovms_cli.app import run; run(['engine', 'install'])"
    )
    del environment["OVMS_PLUGIN_PLATFORM"]
    environment |= {"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert "(portable) is installed" in done.stdout
    assert re.search(
        r"^Platform ubuntu2204 is skipped: .*ovms_ubuntu22.* Next is portable\.$", done.stderr, re.MULTILINE
    )


@pytest.mark.needs_inference
def test_an_engine_is_installed_for_the_first_request(here: Any, fixtures: Path) -> None:
    assert "No model for text is installed" in here("chat", "hello", code=3).stderr
    assert "begins when the engine" in here("logs", code=3).stderr
    here("import", str(fixtures / "text_generation"), CHAT)
    done = here("chat", "What is OpenVINO?")
    assert done.stdout == ANSWER + "\n"
    assert done.stderr.splitlines()[0] == "No engine is installed; installing it first."
    assert json.loads(here("status", "--json").stdout)["engine"] == "stopped"
    assert "No model is loaded" in here("ps").stderr


@pytest.mark.needs_inference
def test_an_engine_is_started_for_one_request(installed: Any, tmp_path: Path) -> None:
    done = installed("chat", "What is OpenVINO?")
    assert done.stdout == ANSWER + "\n"
    assert "`ovms-plugin serve`" in done.stderr
    assert json.loads(installed("status", "--json").stdout)["engine"] == "stopped"
    assert "rest_port" in installed("logs").stdout.lower() or installed("logs", "-n", "3").stdout
    assert not left(tmp_path)


def test_what_is_wrong_with_a_request_is_said_before_an_engine_starts(installed: Any, tmp_path: Path) -> None:
    for words, code in (
        (["call", "no-such-service"], 3),
        (["call", "embed", "{"], 2),
        (["call", "embed", "[]"], 2),
        (["call", "embed", "@/no/such/file"], 2),
        (["call", "embed", "{}", "--stream"], 7),
        (["call", "embed", "{}"], 2),
        (["chat", " \n"], 2),
        (["chat", "hello", "--model", "tiny/chta"], 3),
        (["call", "embed", '{"model": "tiny/chat", "input": "x"}'], 2),
        *((["call", service, json.dumps(fields | {"model": "no/such"})], 3) for service, fields in REQUESTS.items()),
    ):
        done = installed(*words, code=code)
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "data" / "logs").exists()


def shown_by_ps(installed: Any, text: str) -> None:
    """Wait until ``ps`` shows it: the process that runs the engine tells others what it knows every two seconds."""
    deadline = time.monotonic() + 30
    while text not in (shown := installed("ps").stdout):
        assert time.monotonic() < deadline, shown
        time.sleep(0.5)


@pytest.mark.needs_inference
def test_others_use_the_engine_that_serve_runs(
    server: Serve, installed: Any, run: Any, fixtures: Path, tmp_path: Path
) -> None:
    status = json.loads(installed("status", "--json").stdout)
    assert status["engine"] == "ready"
    assert psutil.pid_exists(status["pid"])
    assert status["rest"].startswith("http://127.0.0.1:")
    assert installed("status").stdout.splitlines()[0].split() == ["engine", "ready"]

    assert installed("load", CHAT, EMBED).stdout == f"{CHAT} is loaded.\n{EMBED} is loaded.\n"
    assert {each["id"] for each in json.loads(installed("ps", "--json").stdout)} == {CHAT, EMBED}
    installed("import", str(fixtures / "text_generation"), CHAT)
    assert [each["id"] for each in json.loads(installed("ps", "--json").stdout)] == [EMBED], "the old files are let go"
    installed("load", CHAT)
    assert installed("unload", EMBED).stdout == f"{EMBED} is unloaded.\n"
    assert [line.split()[0] for line in installed("ps").stdout.splitlines()] == ["MODEL", CHAT]
    installed("load", "--keep", "2h", CHAT)
    shown_by_ps(installed, " in ")
    assert installed("pin", CHAT).stdout == f"{CHAT} is pinned.\n"
    shown_by_ps(installed, "never: pinned")
    assert installed("unpin", CHAT).stdout == f"{CHAT} is not pinned.\n"
    shown_by_ps(installed, " in ")
    assert "not a duration" in installed("load", "--keep", "soon", CHAT, code=2).stderr
    assert "not installed" in installed("load", "no/such", code=3).stderr

    done = installed("chat", "What is OpenVINO?", "--model", CHAT)
    assert (done.stdout, done.stderr) == (ANSWER + "\n", "")
    assert run("chat", "-", text="What is OpenVINO?").stdout == ANSWER + "\n"
    vectors = json.loads(installed("call", "embed", '{"input": ["one", "two"]}').stdout)["data"]
    written = tmp_path / "vectors.json"
    assert installed("call", "embed", '{"input": ["one", "two"]}', "-o", str(written)).stdout == ""
    assert json.loads(written.read_text("utf-8"))["data"] == vectors
    nowhere = installed("call", "embed", '{"input": "x"}', "-o", str(tmp_path / "none" / "x"), code=2)
    assert "name another file with --output" in nowhere.stderr
    assert len(vectors) == 2
    request = tmp_path / "request.json"
    request.write_text('{"messages": [{"role": "user", "content": "你好"}], "stream": true}', "utf-8")
    events = installed("call", "chat", f"@{request}", "--stream").stdout.split("\n\n")
    assert events[-2] == "data: [DONE]"
    assert "很高兴" in "".join(events)
    assert EMBED in installed("call", "embed", '{"model": "tiny/chat", "input": "x"}', code=2).stderr

    assert json.loads(installed("status", "--json").stdout)["pid"] == status["pid"], "the same engine served all"
    code, told = server.interrupt()
    assert code == 130
    assert told.splitlines()[-1] == "The server is stopped; models and settings are kept."
    assert not psutil.pid_exists(status["pid"])
    assert not left(tmp_path)


@pytest.mark.needs_inference
def test_call_uploads_the_files_that_a_request_names(
    installed: Any, here: Any, server: Serve, fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server reads no path of a client's, so the command sends the file, whether its path is absolute or not."""
    here("import", str(fixtures / "speech_to_text"), "tiny/ears")
    sound = fixtures / "speech_to_text_samples" / "en_turn_on_the_light.wav"
    monkeypatch.chdir(sound.parent)
    whole = {"model": "tiny/ears", "language": "en"}
    for path in (str(sound), sound.name, sound.as_uri()):
        assert "light" in json.loads(here("call", "speech-to-text", json.dumps(whole | {"audio": path})).stdout)["text"]
    timed = whole | {"audio": sound.name, "response_format": "verbose_json", "timestamp_granularities": ["segment"]}
    assert json.loads(here("call", "speech-to-text", json.dumps(timed)).stdout)["segments"]
    streamed = here("call", "speech-to-text", json.dumps(whole | {"audio": sound.name}), "--stream").stdout
    assert "transcript.text.done" in streamed
    missing = here("call", "speech-to-text", json.dumps(whole | {"audio": "/no/such.wav"}), code=2).stderr
    assert "/no/such.wav, named in audio, cannot be read (No such file or directory)" in missing
    folder = here("call", "speech-to-text", json.dumps(whole | {"audio": str(tmp_path)}), code=2).stderr
    assert "not a regular file" in folder


@pytest.mark.parametrize(
    ("how", "out", "part"),
    [
        ("cut", "0 1 2 3 4 5 \n", "broke off in the middle of its answer"),
        ("exit=3", "", "ended 2 times in a row and is given up: it exited with code 3: The disk is made of cheese."),
    ],
)
def test_an_engine_that_fails_is_said_in_a_line_of_its_own(
    run: Any, environment: dict[str, str], acme: Any, fixtures: Path, how: str, out: str, part: str
) -> None:
    misbehaving = "[ovms.platforms]\nmisbehaving = ovms_kernel.testing.platform:MisbehavingPlatform\n"
    environment |= {"PYTHONPATH": acme(misbehaving), "OVMS_PLUGIN_PLATFORM": "misbehaving"}
    environment |= {"OVMS_PLUGIN_PLATFORMS__MISBEHAVING__HOW": how, "OVMS_PLUGIN_RESTART_LIMIT": "1"}
    run("engine", "install")
    run("import", str(fixtures / "text_generation"), CHAT)
    done = run("chat", "hello", code=1 if out else 4)
    assert done.stdout == out
    starting, told = done.stderr.splitlines()
    assert starting.startswith("Starting the engine for this request")
    assert part in told


def test_a_model_that_does_not_load_is_said_once(run: Any, installed: Any, fixtures: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for source in (fixtures / "text_generation").iterdir():
        damaged = source.name == "openvino_model.xml"
        (broken / source.name).write_bytes(b"<broken" if damaged else source.read_bytes())
    installed("import", str(broken), "my/broken")
    done = run("chat", "hello", "--model", "my/broken", code=1)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert "openvino_model.xml" in done.stderr.splitlines()[1]


@pytest.mark.needs_posix  # SIGTERM
def test_serve_tells_of_a_crash_and_ends_with_sigterm(server: Serve, installed: Any, tmp_path: Path) -> None:
    first = json.loads(installed("status", "--json").stdout)["pid"]
    end_by_force(first)
    server.read_until("killed")
    server.read_until("is ready at")
    assert json.loads(installed("status", "--json").stdout)["pid"] != first
    server.process.terminate()
    assert server.rest()[0] == 143
    assert not left(tmp_path)


def test_serve_gives_up_with_the_engine(
    installed: Any, executable: str, environment: dict[str, str], tmp_path: Path
) -> None:
    process = Serve(executable, environment | {"OVMS_PLUGIN_RESTART_LIMIT": "0"})
    process.read_until("is ready at")
    end_by_force(json.loads(installed("status", "--json").stdout)["pid"])
    code, rest = process.rest()
    assert code == 4
    assert "given up" in rest.splitlines()[-1]
    assert not left(tmp_path)


def test_a_second_server_leaves_the_first_alone_and_one_can_follow_it(
    server: Serve, installed: Any, executable: str, environment: dict[str, str]
) -> None:
    engine = json.loads(installed("status", "--json").stdout)["pid"]
    second = Serve(executable, environment)
    code, told = second.rest()
    assert code == 4
    assert "A server runs here already" in told
    found = json.loads(installed("status", "--json").stdout)
    assert (found["pid"], found["engine"]) == (engine, "ready")
    server.interrupt()
    third = Serve(executable, environment)
    third.read_until("is ready at")
    code, told = third.interrupt()
    assert (code, told.splitlines()[-1]) == (130, "The server is stopped; models and settings are kept.")
    assert json.loads(installed("status", "--json").stdout)["engine"] == "stopped"


@pytest.mark.needs_posix  # Ctrl-C while a pipe is its stdin
def test_ctrl_c_ends_waiting_for_stdin(installed: Any, executable: str, environment: dict[str, str]) -> None:
    waiting = subprocess.Popen(
        [executable, "chat", "-"], env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # Reading has begun when the process sleeps; there is no other sign of it.
    process, deadline = psutil.Process(waiting.pid), time.monotonic() + 20
    while process.status() != psutil.STATUS_SLEEPING and time.monotonic() < deadline:
        time.sleep(0.1)
    waiting.send_signal(signal.SIGINT)
    assert waiting.communicate(timeout=10)[1] == "Interrupted; nothing was begun.\n"
    assert waiting.returncode == 130


@pytest.mark.needs_posix  # an open log is renamed and cut
def test_a_log_is_followed_until_ctrl_c(
    installed: Any, executable: str, environment: dict[str, str], tmp_path: Path
) -> None:
    environment.pop("PYTHONUNBUFFERED", None)
    log = tmp_path / "data" / "logs" / "engine.log"
    log.parent.mkdir()
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert installed("logs", "-n", "2").stdout == "line 98\nline 99\n"
    following = subprocess.Popen(
        [executable, "logs", "-f", "-n", "1"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert following.stdout
    assert following.stdout.readline() == "line 99\n"
    with log.open("a") as file:
        file.write("one more\n")
    assert following.stdout.readline() == "one more\n"
    log.rename(log.with_suffix(".1"))
    log.write_text("a new one\n")
    assert following.stdout.readline() == "a new one\n"
    os.truncate(log, 0)
    with log.open("a") as file:
        file.write("anew\n")
    assert following.stdout.readline() == "anew\n"
    following.send_signal(signal.SIGINT)
    assert following.communicate(timeout=10)[1] == "No longer following the log.\n"
    assert following.returncode == 130


def left(folder: Path) -> list[psutil.Process]:
    """Return the processes that are about that folder, those that just end given a moment."""
    deadline = time.monotonic() + 5
    while (found := [each for each in psutil.process_iter() if _names(each, str(folder))]) and (
        time.monotonic() < deadline
    ):
        psutil.wait_procs(found, timeout=0.1)
    return found


def _names(process: psutil.Process, folder: str) -> bool:
    try:
        return process.pid != os.getpid() and any(folder in word for word in process.cmdline())
    except (psutil.Error, OSError):
        return False


@pytest.mark.needs_inference
def test_sound_goes_to_a_file_whose_path_is_printed(installed: Any, fixtures: Path, tmp_path: Path) -> None:
    installed("import", str(fixtures / "text_to_speech"), "tiny/speaker")
    asked = '{"model": "tiny/speaker", "input": "hi", "response_format": "flac"}'
    made = json.loads(installed("call", "text-to-speech", asked).stdout)
    assert made["content_type"] == "audio/flac"
    assert made["url"].endswith(".flac")
    assert Path(made["url"]).read_bytes().startswith(b"fLaC")
    named = tmp_path / "hi.flac"
    assert installed("call", "text-to-speech", asked, "-o", str(named)).stdout == ""
    assert named.read_bytes().startswith(b"fLaC")
