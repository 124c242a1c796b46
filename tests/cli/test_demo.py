"""The demo: the whole way through as a person sees it, and nothing left behind, however it ends."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ovms_face_aog.demo import find_models
from ovms_face_aog.demo.story import cosine
from ovms_kernel.errors import NotFound

STEPS = [
    "import tiny-chat",
    "import tiny-embeddings",
    "start the plugin",
    "CheckEngine",
    "InstallEngine",
    "InitEnv",
    "StartEngine",
    "UpgradeEngine",
    "PullModel",
    "PullModel",
    "LoadModel",
    "LoadModel",
    "InvokeServiceStream",
    "InvokeService",
    "HealthCheck",
    "GetRunningModels",
    "UnloadModel",
    "Shutdown",
    "nothing is left",
]
ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."


class Place:
    """A folder for temporary files that only one demo uses, and what may be left in it or run because of it."""

    def __init__(self, folder: Path, executable: str, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment | dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(folder))
        self.executable = executable

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Begin a demo in a process group of its own, as a shell does."""
        return subprocess.Popen(
            [self.executable, "demo", *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )

    def left(self) -> list[str]:
        """Return what is there of a demo that has ended."""
        found = [str(each) for each in self.folder.iterdir()]
        for process in psutil.process_iter():
            try:
                words, variables = process.cmdline(), process.environ()
            except psutil.Error:
                continue
            if any(str(self.folder) in word for word in words) or variables.get("TMPDIR", "").startswith(
                str(self.folder)
            ):
                found.append(f"{process.pid} {words}")
        return found


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory, executable: str, environment: dict[str, str]) -> Place:
    # A short name: the plugin's socket lies below it.
    return Place(tmp_path_factory.mktemp("d"), executable, environment)


@pytest.mark.needs_inference
def test_the_demo_shows_every_step_and_leaves_nothing(place: Place) -> None:
    running = place.start()
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert err == ""
    assert re.findall(r"^  ✓ (.+?) +\d+\.\d\d s", out, re.MULTILINE) == STEPS
    assert f"      What is OpenVINO?\n      {ANSWER}\n" in out
    near, far = (float(each) for each in re.findall(r"^ +(-?\d\.\d\d)   I love my kitten", out, re.MULTILINE))
    assert near > 0.8
    assert far < 0.3
    assert "no process, no port, no temporary file" in out
    assert re.search(r"^Done in \d+\.\d s\.$", out, re.MULTILINE)
    assert place.left() == []


def test_the_page_for_users_shows_what_the_demo_prints() -> None:
    shown = (Path(__file__).parents[2] / "docs" / "users.md").read_text("utf-8")
    assert re.findall(r"^  ✓ (.+?) +\d+\.\d\d s", shown, re.MULTILINE) == STEPS
    assert f"      What is OpenVINO?\n      {ANSWER}\n" in shown


@pytest.mark.needs_inference
def test_a_data_folder_that_is_named_is_used_and_kept(place: Place, tmp_path: Path, here: Any) -> None:
    kept = tmp_path / "kept"
    here("engine", "install", "--data-dir", str(kept))
    running = place.start("--data-dir", str(kept))
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert err == f"Models and engine are kept in {kept}.\n"
    assert re.search(r"CheckEngine +\S+ s   installed\n", out)
    assert [each["id"] for each in json.loads(here("ls", "--json", "--data-dir", str(kept)).stdout)] == [
        "demo/tiny-chat",
        "demo/tiny-embeddings",
    ]
    assert place.left() == []


@pytest.mark.needs_inference
@pytest.mark.parametrize("part", range(5))
def test_ctrl_c_at_any_moment_leaves_nothing(place: Place, part: int) -> None:
    moment = round(0.4 * part + random.uniform(0, 0.4), 2)  # another one within this part on each run
    running = place.start()
    assert running.stdout
    assert running.stdout.readline().startswith("What AOG does")
    # Not an event that could be awaited: the point is that any moment will do.
    time.sleep(moment)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=30)
    if running.returncode == 0:
        assert "Done in" in out
    else:
        assert running.returncode == 130, f"after {moment} s: {running.returncode}\n{out}\n{err}"
        assert err == "Interrupted; all that was started is stopped, and the temporary folder is gone.\n"
    assert place.left() == []


@pytest.mark.needs_inference
def test_more_signals_do_not_disturb_the_clearing_away(place: Place) -> None:
    running = place.start()
    assert running.stdout
    for line in running.stdout:
        if "StartEngine" in line:
            break
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
        os.killpg(running.pid, number)
        time.sleep(0.05)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 143, err
    assert place.left() == []


def test_a_demo_that_is_killed_leaves_no_process(place: Place) -> None:
    running = place.start()
    assert running.stdout
    for line in running.stdout:
        if "StartEngine" in line:
            break
    running.kill()
    running.communicate(timeout=30)
    deadline = time.monotonic() + 5
    while any(" [" in each for each in place.left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [each for each in place.left() if " [" in each]


@pytest.mark.needs_inference
def test_what_fails_is_said_with_the_end_of_the_log(place: Place, tmp_path: Path, fixtures: Path) -> None:
    models = tmp_path / "models"
    (models / "embeddings").mkdir(parents=True)
    for source in (fixtures / "embeddings").iterdir():
        (models / "embeddings" / source.name).write_bytes(source.read_bytes())
    (models / "text_generation").mkdir()
    for source in (fixtures / "text_generation").iterdir():
        broken = source.name == "openvino_model.xml"
        (models / "text_generation" / source.name).write_bytes(b"<broken" if broken else source.read_bytes())
    running = place.start("--models", str(models))
    out, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert re.search(r"^  ✗ ", out, re.MULTILINE)
    assert "The end of " in err
    assert "tiny-chat" in err.splitlines()[-1]
    assert place.left() == []


def test_without_the_tiny_models_it_says_where_they_are(place: Place, tmp_path: Path) -> None:
    running = place.start("--models", str(tmp_path))
    out, err = running.communicate(timeout=30)
    assert running.returncode == 3
    assert out == ""
    assert "--models DIR" in err
    assert place.left() == []


def test_installed_from_a_wheel_it_asks_for_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ovms_face_aog.demo.__file__", str(tmp_path / "a/b/c/d/e/f/site-packages/ovms_face_aog/demo/__init__.py")
    )
    with pytest.raises(NotFound, match="tests/fixtures of the source"):
        find_models(None)


def test_traces_sees_processes_ports_and_ends_them(tmp_path: Path) -> None:
    code = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(flush=True); time.sleep(60)"
    # In a process of its own, as this one may have other children.
    program = f"""
import subprocess, sys
from ovms_face_aog.demo.traces import Traces
from pathlib import Path
traces = Traces(Path({str(tmp_path)!r}))
child = subprocess.Popen([sys.executable, "-c", {code!r}, {str(tmp_path)!r}], stdout=subprocess.PIPE)
child.stdout.readline()
traces.look()
print(*(each.split()[0] for each in traces.left()))
traces.end()
print(list(traces.left()), child.poll() is not None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "process port\n[] True\n", done.stderr


def test_cosine() -> None:
    assert cosine([1, 0], [2, 0]) == 1
    assert cosine([1, 0], [0, 3]) == 0
