"""The soak runs: a few seconds of it, which must leave nothing behind either."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.needs_posix  # the soak sends signals that Windows does not have
@pytest.mark.timeout(300)  # its own limits are shorter; a busy machine takes its time
def test_a_few_seconds_of_faults_leave_nothing_behind() -> None:
    command = [sys.executable, "-m", "tests.soak.soak", "--minutes", "0.05", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("0 orphans", "0 lost models", "0 half-written files", "0 unforeseen"):
        assert line in done.stdout.splitlines()
