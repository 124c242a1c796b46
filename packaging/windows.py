"""Runs tests in a Windows Python under Wine: `python3 dev.py windows`.

`dev.py windows` runs the folders of TESTS, `dev.py windows -- tests/kernel -k store` what you name: words after `--`
go to pytest. `--folder DIR` says where the Windows Python lies, `.windows` in the clone if you do not; it takes 4 GB
and is made once. Needs Linux on x86_64, root, debootstrap, and the registries of apt and pip.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

from windows_python import ROOT, Unusable, WindowsPython, check_requirements

TESTS: tuple[str, ...] = ("kernel", "platforms", "models", "hubs", "graphs", "engine", "engine_client", "services")
TESTS += ("engines", "cli", "faces", "dialects", "aog")
HOST_SOURCE = ROOT / "tests" / "hosts" / "go"


def main() -> int:
    """Build what is missing, run the tests, print how many passed, failed and were skipped for which need."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser("dev.py windows", description=__doc__, formatter_class=raw)
    parser.add_argument("--folder", type=Path, default=ROOT / ".windows", help="where the Windows Python lies")
    parser.add_argument("words", nargs="*", help="words for pytest, after `--`")
    options = parser.parse_args()
    python = WindowsPython(options.folder.resolve())
    try:
        check_requirements()
        python.build()
        host = build_go_host(python)
    except Unusable as error:
        print(error, file=sys.stderr)
        return 2
    words = options.words or [f"tests/{each}" for each in TESTS]
    report = python.tree / "report.xml"
    report.unlink(missing_ok=True)
    # A test that hangs ends its process, which -n replaces.
    spread = [] if "no:xdist" in words else ["-n", "1", "--dist", "load"]
    pytest = ["-m", "pytest", "-p", "no:cacheprovider", *spread, "--without", "inference"]
    command = python.python(
        *pytest, f"--junitxml=Z:\\{report.name}", *words, env={"OVMS_TESTS_GO_HOST": host} if host else {}
    )
    code = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
    if report.exists():
        print(summary(report))
    return code


def build_go_host(python: WindowsPython) -> str:
    """Build the go-plugin host for Windows and return its path there; empty where there is no Go."""
    if shutil.which("go") is None:
        print("There is no Go here, so the go-plugin host does not play its scenarios.", file=sys.stderr)
        return ""
    target = python.tree / "opt" / "host.exe"
    environment = os.environ | {"GOOS": "windows", "GOARCH": "amd64", "CGO_ENABLED": "0"}
    words = ["go", "build", "-o", str(target), "."]
    done = subprocess.run(words, cwd=HOST_SOURCE, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unusable(f"The go-plugin host cannot be built for Windows: {done.stderr.strip()[-300:]}")
    return "Z:\\opt\\host.exe"


def summary(report: Path) -> str:
    """Return one line with how many tests passed, failed, and were skipped for each need."""
    counts: Counter[str] = Counter()
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest has just written it
        kinds = {each.tag: each.get("message", "") for each in case}
        skipped = kinds.get("skipped")
        if "failure" in kinds or "error" in kinds:
            counts["failed"] += 1
        elif skipped is not None:
            need = re.match(r"needs_\w+", skipped)
            counts[f"skipped ({need[0]})" if need else "skipped (other reasons)"] += 1
        else:
            counts["passed"] += 1
    return "Under Wine: " + (", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "no test ran")


if __name__ == "__main__":
    sys.exit(main())
