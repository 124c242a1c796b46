"""Errors are shown to people as they are."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ovms_kernel.api.commands import say
from ovms_kernel.errors import NotFound
from tests.faces.http.conftest import environment_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "shown"), [("a\x1b[31m", r"a\x1b[31m"), ("\x9b2J", r"\x9b2J"), ("\u202eevil", r"\u202eevil"), ("猫", "猫")]
)
def test_a_name_cannot_steer_the_terminal_that_shows_it(name: str, shown: str) -> None:
    assert NotFound(f"There is no {name}.").message == f"There is no {shown}."


def test_lines_of_a_longer_text_stay() -> None:
    assert NotFound("one\n\ttwo").message == "one\n\ttwo"


def test_nor_can_a_service_of_the_command_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ovms_cli", "call", "no\x1b[31m", "{}"],
        env=environment_of(tmp_path / "data"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode
    assert "\x1b" not in done.stderr
    assert "no" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")  # noqa: PTH110
def test_a_notice_that_cannot_be_written_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose stderr is a file on a full disk goes on."""
    full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    monkeypatch.setattr("sys.stderr", full)
    say("tiny/chat is loaded.")
    monkeypatch.undo()
    with contextlib.suppress(OSError):
        full.close()
