"""Programs that others wrote, unmodified, against the real server."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from ovms_face_http.clients import TEXTS

CLIENTS = sorted((Path(__file__).parent / "clients").glob("*.py"))
NODE = ("openai@6", "ai@6", "@ai-sdk/openai-compatible@2")
INSTALL_LIMIT = 240
CACHE = platformdirs.user_cache_path("ovms-plugin-tests")


@pytest.fixture(scope="module")
def scripts() -> Path:
    """A folder with the scripts, the same for every clone: uv keeps an environment for each path of a script."""
    content = b"".join(each.read_bytes() for each in CLIENTS)
    folder = CACHE / hashlib.sha256(content).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    for each in CLIENTS:
        own = shutil.copy(each, folder / f"{each.stem}.{os.getpid()}")
        Path(own).replace(folder / each.name)
    return folder


@pytest.fixture
def asking(server: Any, fixtures: Path) -> dict[str, str]:
    """The environment of a client: where the server is, its key, and what `ovms-plugin connect` prints for it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVMS_PLUGIN_", "VIRTUAL_ENV"))}
    samples = str(fixtures / "speech_to_text_samples")
    snippets = {
        f"SNIPPET_{name.upper()}": TEXTS[name].format(url=server.url, key=server.key, chat="tiny/chat")
        for name in ("openai", "anthropic", "ollama", "llm")
    }
    return (
        kept
        | snippets
        | {
            "SERVED": server.url,
            "KEY": server.key,
            "SAMPLES": samples,
            "NO_PROXY": "127.0.0.1",
            "UV_PYTHON": sys.executable,
        }
    )


def run(
    words: list[str], environment: dict[str, str], limit: int = 110, **more: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=limit, **more)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("script", CLIENTS, ids=lambda each: each.stem)
def test_a_client_of_python_works_as_it_is(script: Path, scripts: Path, asking: dict[str, str]) -> None:
    """uv makes an environment for the script's own requirements and keeps it in the user's cache."""
    script = scripts / script.name
    uv = str(Path(sys.executable).with_name("uv"))
    try:
        # Only what is not there yet is asked of an index, which takes longer than some clients.
        made = run([uv, "sync", "--quiet", "--offline", "--script", str(script)], asking)
        if made.returncode:
            made = run([uv, "sync", "--quiet", "--script", str(script)], asking, INSTALL_LIMIT)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{script.stem}: not installed within {INSTALL_LIMIT} s")
    if made.returncode:
        pytest.skip(f"{script.stem} cannot be installed: {made.stderr.strip()[-300:]}")
    done = run([uv, "run", "--quiet", "--offline", "--script", str(script)], asking)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.timeout(400)
def test_clients_of_node_work_as_they_are(asking: dict[str, str]) -> None:
    npm = shutil.which("npm")
    if not npm:
        pytest.skip("npm is not installed")
    script = Path(__file__).parent / "clients" / "clients.mjs"
    folder = CACHE / hashlib.sha256(repr(NODE).encode()).hexdigest()[:12]
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(json.dumps({"name": "clients", "private": True}))
        try:
            made = run(
                [npm, "install", "--silent", "--no-audit", "--no-fund", *NODE], asking, INSTALL_LIMIT, cwd=folder
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"the clients of Node: not installed within {INSTALL_LIMIT} s")
        if made.returncode:
            pytest.skip(f"the clients of Node cannot be installed: {made.stderr.strip()[-300:]}")
        (folder / "complete").touch()
    shutil.copy(script, folder)  # Node looks for packages beside the script
    done = run(["node", str(folder / script.name)], asking)
    assert done.returncode == 0, done.stderr[-3000:]
