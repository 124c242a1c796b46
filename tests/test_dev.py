"""dev.py, as somebody meets it who has just cloned the repository."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEV = Path(__file__).parents[1] / "dev.py"
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "small"
version = "1"
[tool.uv.workspace]
[tool.hatch.build.targets.wheel]
packages = ["src/small"]
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A small workspace with dev.py in it, in a folder that is not ASCII."""
    folder = tmp_path / "我 的 clone"
    (folder / "src" / "small").mkdir(parents=True)
    (folder / "src" / "small" / "__init__.py").write_text("")
    (folder / "pyproject.toml").write_text(PROJECT)
    shutil.copy(DEV, folder)
    return folder


def install(clone: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import dev; dev.install()"], cwd=clone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def imported(clone: Path, **environment: str) -> str:
    python = clone / ".venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    code = "import small; print(len(small.__file__) > 0)"
    return subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout


def test_an_environment_that_was_left_half_made_is_made_again(clone: Path) -> None:
    # What a Ctrl-C, or a Debian without python3-venv, leaves behind: a Python and no pip.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    install(clone)
    assert imported(clone) == "True\n"
    # And what a Ctrl-C in the middle of a sync leaves behind.
    (clone / ".venv" / "syncing").touch()
    [package] = clone.glob(".venv/**/site-packages/_editable_impl_small.pth")
    package.unlink()
    install(clone)
    # Before 3.13, Python reads the paths of editable installs in the locale's encoding.
    assert imported(clone, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0") == "True\n"


@pytest.mark.skipif(not (DEV.parent / ".git").exists(), reason="this is no clone")
def test_git_turns_no_line_ends_into_those_of_windows() -> None:
    words = ["git", "ls-files", "--eol"]
    done = subprocess.run(words, cwd=DEV.parent, capture_output=True, text=True, check=True)
    assert [each for each in done.stdout.splitlines() if "attr/-text" not in each] == []


TAKES_SIGNALS = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner may ignore it, which its children inherit
sys.argv = ["dev.py", "check"]
runpy.run_path("dev.py", run_name="__main__")
"""


@pytest.mark.needs_posix  # signals of Unix
def test_ctrl_c_in_the_first_run_is_one_sentence(clone: Path) -> None:
    words = [sys.executable, "-c", TAKES_SIGNALS]
    process = subprocess.Popen(words, cwd=clone, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr
    assert process.stderr.readline() == "Making an environment in .venv …\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all that run in it
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "Interrupted; the same command begins again where it has to.\n")
    assert not (clone / ".venv" / "ready").exists(), "the next run makes it anew"


def test_a_python_without_venv_is_told_what_to_install(clone: Path) -> None:
    code = "import sys; sys.modules['ensurepip'] = None; import dev; dev.install()"
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "sudo apt install python{}.{}-venv".format(*sys.version_info) in done.stderr
    assert not (clone / ".venv").exists()


def test_a_benchmark_that_does_not_exist_is_named() -> None:
    done = subprocess.run([sys.executable, DEV, "bench", "nosuch"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "There is no benchmark nosuch; there are " in done.stderr
