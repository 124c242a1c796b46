#!/usr/bin/env python3
"""What a developer types, on a machine that has nothing but Python 3.11 and pip.

python3 dev.py run      make an environment, install the workspace, run the demo
python3 dev.py test     run the tests (further words go to pytest)
python3 dev.py check    ruff, mypy --strict and import-linter
python3 dev.py bench    run every benchmark (further words name some of them)
python3 dev.py make     write the generated files again: protobuf code and plugin.yaml
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")


def say(text: str) -> None:
    print(f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def tool(name: str) -> str:
    return str(BIN / (name + (".exe" if os.name == "nt" else "")))


def call(*command: str) -> None:
    """Run a command; its failure is ours, with its own exit code and without a traceback."""
    process = subprocess.Popen(command, cwd=ROOT)
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            # The child got the same Ctrl-C; it decides how to end.
            continue
    if code:
        sys.exit(code)


def install() -> None:
    """Make the environment and bring it up to date; a second time this takes a second or so."""
    if not Path(tool("python")).exists():
        say("Making an environment in .venv …")
        venv.create(VENV, with_pip=True, clear=VENV.exists())
    if not Path(tool("uv")).exists():
        say("Installing uv …")
        call(tool("python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv>=0.9")
    say("Installing the workspace …")
    os.environ["VIRTUAL_ENV"] = str(VENV)
    call(tool("uv"), "sync", "--quiet", "--all-packages", "--python", tool("python"))


def run(words: list[str]) -> None:
    install()
    call(tool("ovms-plugin"), "demo", *words)


def test(words: list[str]) -> None:
    install()
    call(tool("python"), "-m", "pytest", *words)


def check(words: list[str]) -> None:
    install()
    call(tool("ruff"), "check", ".")
    call(tool("ruff"), "format", "--check", ".")
    call(tool("mypy"), "--strict", *sources())
    call(tool("lint-imports"), "--no-cache")


def bench(words: list[str]) -> None:
    install()
    scripts = sorted((ROOT / "bench").glob("*.py"))
    for script in scripts:
        if not script.stem.startswith("_") and (not words or script.stem in words):
            say(f"— {script.name}")
            call(tool("python"), str(script))


def make(words: list[str]) -> None:
    install()
    for folder in sorted(ROOT.glob("[ke]*/**/protos")):
        protos = [str(each.relative_to(folder)) for each in sorted(folder.glob("*.proto"))]
        options = ["-I", str(folder), f"--python_out={folder}", f"--pyi_out={folder}"]
        call(tool("python"), "-m", "grpc_tools.protoc", *options, *protos)
    text = subprocess.run([tool("ovms-plugin"), "manifest"], cwd=ROOT, check=True, capture_output=True).stdout
    (ROOT / "plugin.yaml").write_bytes(text)


def sources() -> list[str]:
    """Every source of ours, as mypy wants them: packages as folders, single modules as files."""
    found = [ROOT / "dev.py", ROOT / "kernel" / "src"]
    for project in sorted(ROOT.glob("extensions/**/pyproject.toml")):
        inner = project.parent / "src"
        found += [inner] if inner.exists() else sorted(project.parent.glob("*.py"))
    return [str(each.relative_to(ROOT)) for each in found]


COMMANDS = {each.__name__: each for each in (run, test, check, bench, make)}


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit(f"ovms-plugin needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    words = sys.argv[1:]
    if not words or words[0] not in COMMANDS:
        print(__doc__)
        sys.exit(0 if words in ([], ["-h"], ["--help"]) else 64)
    COMMANDS[words[0]](words[1:])


if __name__ == "__main__":
    main()
