"""Running the command as a person does: the installed executable, in an environment of the test's own."""

import contextvars
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

import pytest

from ovms_cli.app import run as run_command

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def executable() -> str:
    return str(Path(sys.executable).with_name("ovms-plugin" + (".exe" if os.name == "nt" else "")))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Ours, without what AOG or a user of this machine may have set, and with a data folder of the test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVMS_PLUGIN_", "AOG_"))}
    return kept | {
        "OVMS_PLUGIN_DATA_DIR": str(tmp_path / "data"),
        "OVMS_PLUGIN_PLATFORM": "portable",
        "OVMS_PLUGIN_FACES__HTTP__PORT": "0",
    }


@pytest.fixture
def acme(tmp_path: Path) -> Callable[..., str]:
    """Make a distribution of somebody else's, as pip leaves it in a folder, and return the folder."""

    def install(entry_points: str, module: str = "") -> str:
        info = tmp_path / "acme-1.0.dist-info"
        info.mkdir()
        (tmp_path / "acme.py").write_text(module)
        sys.modules.pop("acme", None)  # another test's
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        return str(tmp_path)

    return install


@pytest.fixture
def here(environment: dict[str, str], capfd: pytest.CaptureFixture[str]) -> Run:
    """Run one command in this process: the same way through, without the second that a new process takes."""

    def call(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        ended = run_here(words, environment)
        out, err = capfd.readouterr()
        assert ended == code, f"{words} ended with {ended}:\n{out}\n{err}"
        return subprocess.CompletedProcess(words, ended, out, err)

    return call


def run_here(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run one command in this process, as if it were one with this environment; return its exit code."""
    before = signal.getsignal(signal.SIGINT)
    with patch.dict(os.environ, environment, clear=True):
        try:
            # Nothing around it, as at a terminal: a fixture of the whole session may have its event loop here.
            return contextvars.Context().run(run_command, list(words))
        finally:
            signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(executable: str, environment: dict[str, str]) -> Run:
    """Run one command to its end."""

    def call(*words: str, code: int = 0, text: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [executable, *words],
            check=False,
            capture_output=True,
            input=text,
            env=environment | variables,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    return call
