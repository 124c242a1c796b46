"""Runs tests in a Windows Python under Wine: `python3 dev.py windows`.

`dev.py windows` runs the folders of TESTS, `dev.py windows -- tests/kernel -k store` what you name: words after `--`
go to pytest. `--folder DIR` says where the Windows Python lies, `.windows` in the clone if you do not; it takes 4 GB
and is made once. Needs Linux on x86_64, root, debootstrap, and the registries of apt and pip.
"""

from __future__ import annotations

import argparse
import codecs
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from windows_python import ROOT, Unusable, WindowsPython, check_requirements

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS: tuple[str, ...] = ("kernel", "platforms", "models", "hubs", "graphs", "engine", "engine_client", "services")
TESTS += ("engines", "cli", "faces", "dialects", "observers", "attack", "aog")
LEFT_OUT = {
    "authoring, compatibility, test_packaging.py": "they make environments, for which this Python has no venv",
    "soak, test_dev.py, test_bench.py": "they are programs for a clone on the developer's own system",
    "test_architecture.py, test_docs.py, test_kubernetes.py": "they read the sources, which are the same everywhere",
}
"""Tests that are not run here, and why."""
PORTS = "Wine does not tell which process listens on a port"
WINE_LACKS = {
    "tests/aog/test_traps_for_real.py::test_d2_14_the_engine_listens_on_this_machine_only": PORTS,
    "tests/cli/test_demo.py::test_traces_sees_processes_ports_and_ends_them": PORTS,
}
"""Tests that fail under Wine by Wine's own fault, and by which."""
MINUTES = 12
"""An estimate for two cores; building the Python before takes ten more."""
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
    if not options.words:
        print(
            f"Running {len(TESTS)} folders of tests, which takes about {MINUTES} minutes …", file=sys.stderr, flush=True
        )
    words = options.words or [f"tests/{each}" for each in TESTS]
    report = python.tree / "report.xml"
    report.unlink(missing_ok=True)
    # A test that hangs ends its process, which -n replaces.
    spread = [] if "no:xdist" in words else ["-n", "2", "--dist", "load"]
    # Other tracebacks look for the sources of every module, which takes minutes here.
    pytest = ["-m", "pytest", "-p", "no:cacheprovider", "--tb=native", *spread, "--without", "inference"]
    pytest += [f"--deselect={each}" for each in WINE_LACKS]
    command = python.python(
        *pytest, f"--junitxml=Z:\\{report.name}", *words, env={"OVMS_TESTS_GO_HOST": host} if host else {}
    )
    code = show(command)
    if not report.exists():
        print(f"The tests ended with code {code} and wrote no report.", file=sys.stderr)
        return code or 1
    cases = list(read(report))
    print(summary(cases))
    print("\n".join(["Left out, as Wine cannot do it:", *(f"  {what}: {why}" for what, why in WINE_LACKS.items())]))
    if not options.words:
        print("\n".join(["Not part of it:", *(f"  tests/{what}: {why}" for what, why in LEFT_OUT.items())]))
    return code or int(any(each.outcome == "failed" for each in cases))


def show(command: list[str]) -> int:
    """Run a command that writes in the code page, show what it writes, and return its exit code."""
    decoder = codecs.getincrementaldecoder("gbk")("replace")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert isinstance(process.stdout, BufferedReader)  # noqa: S101 - it is a pipe
        while piece := process.stdout.read1():
            print(decoder.decode(piece).replace("\r", ""), end="", flush=True)
    return process.returncode


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


@dataclass(frozen=True)
class Case:
    """A test that was run or skipped."""

    folder: str
    outcome: str
    """``passed``, ``failed`` or ``skipped``."""
    reason: str
    """Why it was skipped."""


def read(report: Path) -> Iterator[Case]:
    """Yield what pytest's report says of each test."""
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest has just written it
        folder = ".".join(case.get("classname", "").split(".")[:2]).replace(".", "/")
        kinds = {each.tag: each.get("message", "") for each in case}
        if "failure" in kinds or "error" in kinds:
            yield Case(folder, "failed", "")
        elif "skipped" in kinds:
            yield Case(folder, "skipped", kinds["skipped"])
        else:
            yield Case(folder, "passed", "")


def summary(cases: list[Case]) -> str:
    """Return how many tests passed, failed and were skipped: in all, in each folder, and for each reason."""
    lines = [f"Under Wine: {_counts(cases)}"]
    folders = sorted({each.folder for each in cases})
    lines += [f"  {folder}: {_counts([each for each in cases if each.folder == folder])}" for folder in folders]
    reasons = Counter(each.reason for each in cases if each.outcome == "skipped")
    lines += ["Skipped:"] if reasons else []
    lines += [f"  {count:4} {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def _counts(cases: list[Case]) -> str:
    counts = Counter(each.outcome for each in cases)
    return ", ".join(f"{counts[each]} {each}" for each in ("passed", "failed", "skipped"))


if __name__ == "__main__":
    sys.exit(main())
