"""Every benchmark runs: a smoke mode of a second or two, whose numbers mean nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
SCRIPTS = sorted(path.stem for path in BENCH.glob("*.py") if not path.stem.startswith("_"))
NEEDS = {"host_overhead": "go", "models_pull": "curl"}
"""Programs that a benchmark measures with or against."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_runs(name: str, tmp_path: Path) -> None:
    if (program := NEEDS.get(name)) and not (shutil.which(program) or shutil.which(program, path="/usr/local/go/bin")):
        pytest.skip(f"{name} needs {program}, which this machine does not have")
    done = subprocess.run(
        [sys.executable, str(BENCH / f"{name}.py")],
        env=os.environ | {"BENCH_SMOKE": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "a benchmark prints what it measured"
