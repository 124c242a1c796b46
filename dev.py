#!/usr/bin/env python3
"""The commands of a clone. They need Python 3.11 or newer with pip and venv; everything else they install.

python3 dev.py run      make an environment, install the workspace, run the demo   (half a minute the first time)
python3 dev.py test     run the tests; further words go to pytest, such as `-n 2`  (half an hour; 15 minutes with -n 2)
python3 dev.py check    ruff, mypy --strict, import-linter, bandit and pip-audit   (1 minute)
python3 dev.py bench    run every benchmark; further words name some of them       (20 minutes; most take 1 or 2)
python3 dev.py windows  run tests in a Windows Python under Wine, as root on Linux (12 minutes; more the first time)
                        words after `--` go to pytest, such as `-- tests/models -q`
python3 dev.py soak     use every service while processes are killed and the disk fills; --minutes N says how long
python3 dev.py release  build wheels and sdists into dist/ and check them; needs a commit    (3 minutes)
python3 dev.py make     write the generated files again: protobuf code, plugin.yaml, the manual page, parts of docs
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
READY = VENV / "ready"
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


def call_quietly(*command: str) -> None:
    """Run a command that has nothing to say to Ctrl-C: it gets none, and is ended instead."""
    alone = {"creationflags": 0x200} if os.name == "nt" else {"start_new_session": True}
    process = subprocess.Popen(command, cwd=ROOT, **alone)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        if os.name == "nt":
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if code:
        sys.exit(code)


def install(*options: str) -> None:
    """Make the environment and bring it up to date; a second time this takes a second or so.

    An environment without its mark ``ready`` is half made, and is made again. After a sync that broke off, which leaves
    its mark ``syncing``, every package is installed again.
    """
    _trust_the_system()
    if not READY.exists():
        _make_environment()
    say("Installing the workspace …")
    os.environ["VIRTUAL_ENV"] = str(VENV)
    syncing = VENV / "syncing"
    again = ["--reinstall"] if syncing.exists() else []
    syncing.touch()
    call_quietly(tool("uv"), "sync", "--quiet", "--all-packages", "--python", tool("python"), *again, *options)
    _make_paths_relative()
    syncing.unlink(missing_ok=True)  # another command may have been faster


def _make_environment() -> None:
    if find_spec("ensurepip") is None:
        package = "python{}.{}-venv".format(*sys.version_info)
        sys.exit(f"This Python has no ensurepip; on Debian and Ubuntu run `sudo apt install {package}`.")
    say("Making an environment in .venv …")
    call_quietly(sys.executable, "-m", "venv", "--clear", str(VENV))
    say("Installing uv …")
    call_quietly(tool("python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv>=0.9")
    READY.touch()


def _trust_the_system() -> None:
    """Have pip and uv accept the certificates that the system accepts, such as those of a company's proxy."""
    os.environ.setdefault("UV_SYSTEM_CERTS", "1")
    bundle = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    if bundle and "PIP_CERT" not in os.environ:
        os.environ["PIP_CERT"] = bundle


def _make_paths_relative() -> None:
    """Write the paths of editable installs relative to where they stand.

    uv writes them as UTF-8, and before 3.13 Python reads them in the locale's encoding, so that a clone in a folder
    such as ``~/项目`` would not start in another locale.
    """
    for listing in VENV.glob("**/site-packages/_editable_impl_*.pth"):
        folder = Path(listing.read_text("utf-8").strip())
        if folder.is_absolute():
            listing.write_text(Path(os.path.relpath(folder, listing.parent)).as_posix() + "\n", "utf-8")


def run(words: list[str]) -> None:
    install()
    call(tool("ovms-plugin"), "demo", *words)


def test(words: list[str]) -> None:
    # Thousands of processes start, which PYTHONDONTWRITEBYTECODE would have compile everything anew.
    install("--compile-bytecode")
    call(tool("python"), "-m", "compileall", "-q", "kernel", "extensions", "tests")
    call(tool("python"), "-m", "pytest", *words)


def check(words: list[str]) -> None:
    install()
    call(tool("ruff"), "check", ".")
    call(tool("ruff"), "format", "--check", ".")
    call(tool("mypy"), "--strict", *sources())
    roots = [str((ROOT / each).parent if each.endswith(".py") else ROOT / each) for each in sources()]
    os.environ["MYPYPATH"] = os.pathsep.join([*roots, str(ROOT / "bench")])
    call(tool("mypy"), "--explicit-package-bases", "tests", "bench")
    call(tool("lint-imports"), "--no-cache")
    call(tool("bandit"), "--quiet", "--configfile", "pyproject.toml", "--recursive", *sources())
    audit()


def audit() -> None:
    """Look for known vulnerabilities of the installed packages; where there are no advisories, a line says so."""
    command = [tool("pip-audit"), "--skip-editable", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, LookupError):
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        say(f"pip-audit found no advisories here, so nothing is known of the packages: {said[-1][:200]}")
        return
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    known = [each for each in packages if "skip_reason" not in each]
    say(f"pip-audit: {len(known)} packages looked up, {len(unknown)} without advisories here.")
    if found := [f"{each['name']} {each['version']}: {one['id']}" for each in known for one in each["vulns"]]:
        sys.exit("\n".join(["Known vulnerabilities:", *found]))


def bench(words: list[str]) -> None:
    scripts = {each.stem: each for each in sorted((ROOT / "bench").glob("[!_]*.py"))}
    if unknown := [word for word in words if word not in scripts]:
        sys.exit(f"There is no benchmark {unknown[0]}; there are {', '.join(scripts)}.")
    install()
    for name in words or scripts:
        say(f"— {name}")
        call(tool("python"), str(scripts[name]))


def soak(words: list[str]) -> None:
    install()
    call(tool("python"), "-m", "tests.soak.soak", *words)


def windows(words: list[str]) -> None:
    install()
    call(tool("python"), str(ROOT / "packaging" / "windows.py"), *words)


def make(words: list[str]) -> None:
    install()
    for folder in sorted(ROOT.glob("[ke]*/**/protos")):
        protos = [str(each.relative_to(folder)) for each in sorted(folder.glob("*.proto"))]
        options = ["-I", str(folder), f"--python_out={folder}", f"--pyi_out={folder}"]
        call(tool("python"), "-m", "grpc_tools.protoc", *options, *protos)
    text = subprocess.run([tool("ovms-plugin"), "manifest"], cwd=ROOT, check=True, capture_output=True).stdout
    (ROOT / "plugin.yaml").write_bytes(text)
    call(tool("python"), str(ROOT / "tests" / "test_docs.py"))
    page = subprocess.run([tool("python"), "-m", "ovms_cli.manual"], cwd=ROOT, check=True, capture_output=True).stdout
    (ROOT / "extensions" / "cli" / "ovms-plugin.1").write_bytes(page)
    call(tool("python"), str(ROOT / "packaging" / "metadata.py"))


def release(words: list[str]) -> None:
    install("--group", "release")
    call(tool("python"), str(ROOT / "packaging" / "release.py"))


def sources() -> list[str]:
    """Every source of the project, as mypy wants them: packages as folders, single modules as files."""
    found = [ROOT / "dev.py", *sorted((ROOT / "packaging").glob("*.py")), ROOT / "kernel" / "src"]
    for project in sorted(ROOT.glob("extensions/**/pyproject.toml")):
        inner = project.parent / "src"
        found += [inner] if inner.exists() else sorted(project.parent.glob("*.py"))
    return [str(each.relative_to(ROOT)) for each in found]


COMMANDS = {each.__name__: each for each in (run, test, check, bench, soak, windows, make, release)}


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit(f"ovms-plugin needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    words = sys.argv[1:]
    if not words or words[0] not in COMMANDS:
        print(__doc__)
        sys.exit(0 if words in ([], ["-h"], ["--help"]) else 64)
    try:
        COMMANDS[words[0]](words[1:])
    except KeyboardInterrupt:
        say("Interrupted; the same command begins again where it has to.")
        sys.exit(130)


if __name__ == "__main__":
    main()
