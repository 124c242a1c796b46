"""``ovms-plugin extension``: what it writes can be installed, keeps its contract, has types, and is served at once."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from ovms_kernel.compose import compose_kernel
from ovms_kernel.settings import read_settings
from tests.cli.conftest import run_here
from tests.conftest import LEAN_PYTEST
from tests.faces.http.conftest import serving
from tests.installing import BUILT_HERE, UV, install

KINDS = ("service", "platform", "graph", "hub", "face", "dialect", "observer", "command")
PROGRAM = str(Path(sys.executable).with_name("ovms-plugin"))
Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Here:
    """Run ``ovms-plugin extension`` in this process, which saves the start of one."""

    def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        env = os.environ | {"NO_COLOR": "1"} | BUILT_HERE | LEAN_PYTEST | environment
        return subprocess.CompletedProcess(words, run_here(["extension", *words], env), *capfd.readouterr())

    return call


def run(*words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"NO_COLOR": "1"} | BUILT_HERE | LEAN_PYTEST | environment
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a new extension of each kind."""
    folder = tmp_path_factory.mktemp("written")
    for kind in KINDS:
        with redirect_stdout(StringIO()) as made:
            assert run_here(["extension", "new", kind, "word-count", "--into", str(folder)], os.environ) == 0
        assert made.getvalue() == f"{folder / f'ovms-{kind}-word-count'}\n"
    return folder


@pytest.fixture(scope="module")
def site(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which all of them are installed, as ``PYTHONPATH`` has it."""
    folder = tmp_path_factory.mktemp("site")
    install(*sorted(written.glob("ovms-*")), target=folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_extension_passes_its_contract_and_its_own_tests(here: Here, written: Path, kind: str) -> None:
    done = here("check", str(written / f"ovms-{kind}-word-count"))
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert done.stderr == ""


def test_new_extensions_have_types(written: Path) -> None:
    modules = [str(each) for each in written.glob("*/ovms_*.py")]
    assert len(modules) == len(KINDS)
    run(sys.executable, "-m", "mypy", "--strict", *modules)  # with what mypy remembers of the kit


def test_new_extensions_are_loaded(site: Path, tmp_path: Path) -> None:
    done = run(PROGRAM, "extensions", "--json", PYTHONPATH=str(site), OVMS_PLUGIN_DATA_DIR=str(tmp_path))
    states = {each["kind"]: each["state"] for each in json.loads(done.stdout) if "word-count" in each["distribution"]}
    assert states == {f"{kind}s": "loaded" for kind in KINDS}


async def test_a_new_service_and_dialect_are_served_and_a_command_runs(
    site: Path, tmp_path: Path, fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    async with compose_kernel(read_settings({}, data_dir=data, platform="portable")) as kernel:
        await kernel.install_engine()
        await kernel.import_model(fixtures / "text_generation", "tiny/chat")
    monkeypatch.setenv("PYTHONPATH", str(site))

    def ask() -> tuple[Any, str, str]:
        with serving(data, "--debug") as served, served.client() as client:
            asked = {"text": "What is OpenVINO?", "temperature": 0}
            service = client.post("/v1/word-count", json=asked).raise_for_status().json()
            dialect = client.post("/word-count/say", json=asked).raise_for_status().text
            refused = client.post("/word-count/say", json=[])
            assert (refused.status_code, list(refused.json())) == (400, ["error"])
        return service, dialect, data.with_name("data.serve.log").read_text()

    service, dialect, log = await asyncio.to_thread(ask)
    assert "toolkit" in service["choices"][0]["message"]["content"]
    assert "toolkit" in dialect
    assert "word-count: 200 after" in log, "the observer heard of it"
    assert run(PROGRAM, "word-count", "--data-dir", str(data)).stdout == "1\n"


def test_a_new_face_is_served(site: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(site), "OVMS_PLUGIN_DATA_DIR": str(tmp_path), "OVMS_PLUGIN_FACES__WORD_COUNT__PORT": "0"
    }  # fmt: skip
    command = [sys.executable, "-m", "ovms_face_word_count"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        port = int(process.stderr.readline().rpartition(":")[2].rstrip(".\n"))
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client, client.makefile("rw") as lines:
            lines.write('{"service": "none-such", "request": {}}\n')
            lines.flush()
            assert "none-such" in json.loads(lines.readline())["error"]
        process.terminate()
        assert process.wait(20) == 143


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["new", "service", "Word_Count"], "'Word_Count' is not a valid extension name; use lower case"),
        (["new", "service", "word-count"], "exists; choose another name"),
        (["new", "service", "other", "--into", "{folder}/none"], "is not a folder; create it first."),
        (["check", "{folder}"], "has no pyproject.toml; name the folder of a distribution."),
        (["list", "--available", "--index", "{folder}/none"], "cannot be read: No such file or directory."),
        (["list", "--available", "--index", "{folder}/bad.json"], "is not an index of extensions"),
        (["list", "--available", "--index", "http://127.0.0.1:1/x"], "cannot be read"),
        (["remove", "ovms-kernel"], "ovms-kernel is what runs this command; remove it with pip or uv."),
        (["remove", "none-such"], "none-such offers no extension here"),
        (["install", "{folder}/bad.json"], "ended with code"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    here: Here, written: Path, tmp_path: Path, words: list[str], sentence: str
) -> None:
    (tmp_path / "bad.json").write_text("{}")
    folder = str(written) if "new" in words and "other" not in words else str(tmp_path)
    words = [each.format(folder=folder) for each in words]
    if words[0] == "new" and "--into" not in words:
        words += ["--into", folder]
    done = here(*words, OVMS_PLUGIN_DATA_DIR=str(tmp_path / "data"))
    assert done.returncode not in (0, 70), done.stderr
    assert sentence in done.stderr.splitlines()[-1]


def test_a_flaw_is_found(here: Here, written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "flawed"
    folder.mkdir()
    project = (written / "ovms-service-word-count" / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(project)
    module = (written / "ovms-service-word-count" / "ovms_service_word_count.py").read_text()
    (folder / "ovms_service_word_count.py").write_text(module.replace("(self, call: Call, engine: Engine)", "(self)"))
    done = here("check", str(folder))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "cannot be called as invoke(call, engine)" in done.stdout


def test_a_contract_that_needs_a_sample_is_asked_for(here: Here, written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "untested"
    folder.mkdir()
    for name in ("pyproject.toml", "ovms_hub_word_count.py"):
        (folder / name).write_text((written / "ovms-hub-word-count" / name).read_text())
    done = here("check", str(folder))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "No test here inherits HubContract; write one for hubs.word-count, it needs a model" in done.stderr


def test_the_index_has_what_is_and_is_not_installed(here: Here, tmp_path: Path) -> None:
    found = {each["name"]: each for each in json.loads(here("list", "--json").stdout)}
    assert "services.chat" in found["ovms-service-chat"]["extensions"]
    index = tmp_path / "index.json"
    index.write_text(json.dumps([{"name": "acme-hub-shelf", "description": "A shelf", "extensions": ["hubs.shelf"]}]))
    text = here("list", "--available", "--index", str(index)).stdout
    assert "acme-hub-shelf" in text
    assert "A shelf" in text


def test_an_extension_is_installed_and_removed_by_name(written: Path, tmp_path: Path) -> None:
    # An environment of its own, which sees the packages of this one and so needs no download.
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env"))
    python = tmp_path / "env" / "bin" / "python"
    [packages] = (tmp_path / "env").glob("lib/*/site-packages")
    here = next(each for each in sys.path if each.endswith("site-packages"))
    # As a site folder, so that editable installs in it count.
    (packages / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    (tmp_path / "env" / "bin" / "uv").symlink_to(UV)
    data = str(tmp_path / "data")
    command = [str(python), "-m", "ovms_cli", "extension"]
    copy = shutil.copytree(written / "ovms-service-word-count", tmp_path / "copy")
    project = (copy / "pyproject.toml").read_text()
    (copy / "pyproject.toml").write_text(re.sub(r"^dependencies = .*$", "", project, flags=re.MULTILINE))
    source = str(copy)  # without dependencies, which no index may have
    done = run(*command, "install", source, OVMS_PLUGIN_DATA_DIR=data)
    assert done.stdout.startswith("services.word-count  loaded  ovms-service-word-count 0.1.0")
    assert "Nothing changed" in run(*command, "install", source, OVMS_PLUGIN_DATA_DIR=data).stderr
    assert run(*command, "remove", "ovms-service-word-count", OVMS_PLUGIN_DATA_DIR=data).stderr.startswith("Removed")
    assert "word-count" not in run(*command, "list", OVMS_PLUGIN_DATA_DIR=data).stdout
