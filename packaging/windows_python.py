"""Builds a Python for Windows that runs under Wine, in a folder of its own, and runs programs there.

What it is made of: Wine in a Debian tree of its own (older releases of Wine lack functions that the packages call), the
interpreter's libraries from a wheel that ships them, the standard library of the Python that runs this, a small
``python.exe`` that is compiled in the tree, and the project's packages for Windows, the project itself editable.

Each step writes a mark when it is whole and is repeated until then. Everything is mounted in a mount namespace of the
process that needs it, so nothing is ever mounted in this system, and nothing is left when a run is killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from importlib.metadata import EntryPoint

ROOT = Path(__file__).resolve().parents[1]
RELEASE = "trixie"
PYTHON = (3, 11)
LIBRARIES = "panda3d>=1.10.15,<1.11"
"""A distribution whose wheel for Windows holds python311.dll and the standard library's extension modules."""
OVERRIDES = "numpy<2\n"
"""Newer ones call functions that Wine lacks."""
DEBIAN_PACKAGES = ("wine", "wine64", "gcc-mingw-w64-x86-64-win32", "mingw-w64-tools", "locales")
LOCALES = ("en_US", "zh_CN")
"""What Wine takes the code page from: 1252 and 936."""
HOME = "opt/python"
CLONE = "/用户/我的 clone"
"""Where the project lies in the tree: in a folder with characters of code page 936, and a blank."""
WINDOWS_HOME = "Z:\\用户\\我的 clone\\.venv"
"""Where Windows' Python lies in the clone, in the place of Linux' environment."""

ENTER = """
tree=$1; project=$2; clone=$tree$3; home=$4; folder=$5; shift 5
mount -t proc proc "$tree/proc"
mount --rbind /dev "$tree/dev"
mount --rbind /sys "$tree/sys"
mkdir -p "$clone"
mount --bind "$project" "$clone"
if [ -d "$tree/$home" ]; then mount --bind "$tree/$home" "$clone/.venv"; fi
chroot "$tree" sh -c 'cd "$1" && shift && exec "$@"' sh "$folder" "$@"
"""
"""Runs in namespaces of its own; the shell stays, so that it collects the processes that Wine leaves behind."""

PYTHON_EXE = r"""
#include <windows.h>
typedef int (*Main)(int, wchar_t **);
int wmain(int count, wchar_t **words)
{
    HMODULE python = LoadLibraryW(L"python311.dll");
    Main run = python ? (Main)(void *)GetProcAddress(python, "Py_Main") : NULL;
    return run ? run(count, words) : 126;
}
"""

MANIFEST = """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<assembly xmlns="urn:schemas-microsoft-com:asm.v1" manifestVersion="1.0">
  <compatibility xmlns="urn:schemas-microsoft-com:compatibility.v1">
    <application><supportedOS Id="{8e0f7a12-bfb3-4fe8-b9a5-48fd50a15a9a}"/></application>
  </compatibility>
  <application xmlns="urn:schemas-microsoft-com:asm.v3"><windowsSettings>
    <longPathAware xmlns="http://schemas.microsoft.com/SMI/2016/WindowsSettings">true</longPathAware>
  </windowsSettings></application>
</assembly>
"""
"""As that of Windows' own ``python.exe``: it knows Windows 10 and paths of more than 260 characters."""


class Unusable(Exception):
    """Something that this needs is not there; the text says what, and how to get it."""


def check_requirements() -> None:
    """Refuse with one sentence if this system cannot build or run it.

    :raises Unusable: it cannot.
    """
    missing = [name for name in ("debootstrap", "setpriv", "unshare", "chroot") if shutil.which(name) is None]
    if not sys.platform.startswith("linux"):
        reason = "`dev.py windows` runs on Linux only; on Windows run `python dev.py test`."
    elif missing:
        reason = f"`dev.py windows` needs {missing[0]}: run `apt install {PACKAGES_OF.get(missing[0], missing[0])}`."
    elif os.geteuid() != 0:
        reason = "`dev.py windows` needs root, for debootstrap and chroot: run it with sudo or in a container."
    elif sys.version_info[:2] != PYTHON:
        found = "{}.{}".format(*sys.version_info)
        reason = f"`dev.py windows` needs Python 3.11 in .venv and found {found}: remove .venv and use python3.11."
    else:
        return
    raise Unusable(reason)


PACKAGES_OF = {"setpriv": "util-linux", "unshare": "util-linux", "chroot": "coreutils"}


class WindowsPython:
    """The folder it lies in, and how programs run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = folder / "debian"
        self.home = self.tree / HOME
        self._log = folder / "build.log"

    def build(self) -> None:
        """Do what is not done yet, each step in turn; the output of what runs goes to ``build.log``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take()
        self._log.write_text("")
        self._step("debian", RELEASE, self._make_tree)
        self._step("wine", " ".join(DEBIAN_PACKAGES + LOCALES), self._install_wine)
        self._step("python", LIBRARIES + PYTHON_EXE + MANIFEST, self._make_python)
        self._step("prefix", "win10", self._make_prefix)
        projects = [ROOT, *sorted(each.parent for each in ROOT.glob("[ke]*/**/pyproject.toml"))]
        self._step("packages", f"{CLONE} {wants_of(projects)}", lambda: self._install(projects))

    def _take(self) -> None:
        """Keep the folder until this process ends: two runs in it would share Wine's server and end each other's."""
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unusable(f"Another run uses {self.folder}: wait for it, or name another --folder.") from None

    def _step(self, name: str, recipe: str, make: Callable[[], None]) -> None:
        """Make a step that is not done, or was done by another recipe; what was made after it is made again too."""
        done_file = self.folder / "done.json"
        done: dict[str, str] = json.loads(done_file.read_text()) if done_file.exists() else {}
        if done.get(name) == recipe:
            return
        kept = {each: done[each] for each in list(done)[: list(done).index(name)]} if name in done else done
        _replace(done_file, json.dumps(kept))
        print(f"Making {name} in {self.folder} …", file=sys.stderr, flush=True)
        make()
        _replace(done_file, json.dumps(kept | {name: recipe}))

    # -- steps ---------------------------------------------------------------------------------------------------

    def _make_tree(self) -> None:
        remove(self.tree)
        mirror = debian_mirror()
        self._call("debootstrap", "--variant=minbase", RELEASE, str(self.tree), *([mirror] if mirror else []))

    def _install_wine(self) -> None:
        settings = subprocess.run(
            ["apt-config", "dump", "--format", '%f "%v";%n', "Acquire"], capture_output=True, text=True, check=False
        ).stdout
        (self.tree / "etc/apt/apt.conf.d/90host").write_text(settings)
        shutil.copyfile("/etc/resolv.conf", self.tree / "etc/resolv.conf")
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        self._call(*self.command("dpkg", "--configure", "-a", env=quiet))
        self._call(*self.command("apt-get", "update", env=quiet))
        words = ["apt-get", "install", "--yes", "--no-install-recommends", *DEBIAN_PACKAGES]
        self._call(*self.command(*words, env=quiet))
        for each in LOCALES:
            self._call(*self.command("localedef", "-i", each, "-f", "UTF-8", f"{each}.UTF-8"))

    def _make_python(self) -> None:
        remove(self.home)
        wheels = self.folder / "wheels"
        remove(wheels)
        platform = ["--platform", "win_amd64", "--python-version", "3.11", "--only-binary", ":all:"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
        self._call(*pip, *platform, LIBRARIES)
        (self.home / "DLLs").mkdir(parents=True)
        with zipfile.ZipFile(next(wheels.iterdir())) as wheel:
            for name in wheel.namelist():
                folder, _, file = name.rpartition("/")
                if folder == "deploy_libs" and (target := _place(file)):
                    (self.home / target).write_bytes(wheel.read(name))
        library = Path(os.__file__).parent
        leave = shutil.ignore_patterns("site-packages", "lib-dynload", "__pycache__", "test", "idlelib", "config-*")
        shutil.copytree(library, self.home / "Lib", ignore=leave)
        (self.home / "Lib/site-packages").mkdir()
        _fit_library(self.home / "Lib")
        (self.home / "python.exe.manifest").write_text(MANIFEST)
        (self.home / "python.c").write_text(PYTHON_EXE)
        gcc = ["x86_64-w64-mingw32-gcc", "-O1", "-s"]
        self._call(*self.command(*gcc, "-municode", "-o", "python.exe", "python.c", folder=f"/{HOME}"))
        self._make_stable_library(gcc)

    def _make_stable_library(self, gcc: list[str]) -> None:
        """Make python3.dll, which wheels of the stable ABI link: each name leads on to python311.dll."""
        listing = subprocess.run(
            self.command("gendef", "-", "python311.dll", folder=f"/{HOME}"), capture_output=True, text=True, check=True
        ).stdout
        names = re.findall(r"^(\w+)(?: DATA)?\s*$", listing.partition("EXPORTS")[2], re.MULTILINE)
        (self.home / "python3.def").write_text(
            "LIBRARY python3.dll\nEXPORTS\n" + "".join(f"{name}=python311.{name}\n" for name in names)
        )
        (self.home / "python3.c").write_text("int unused;\n")
        words = [*gcc, "-shared", "-o", "python3.dll", "python3.c", "python3.def"]
        self._call(*self.command(*words, folder=f"/{HOME}"))

    def _make_prefix(self) -> None:
        remove(self.tree / "prefix")
        self._call(*self.command("wineboot", "--init"))
        self._call(*self.command("sh", "-c", "wine winecfg -v win10 && wineserver --wait"))

    def _install(self, projects: list[Path]) -> None:
        packages = self.home / "Lib/site-packages"
        remove(packages)
        overrides = self.folder / "overrides.txt"
        overrides.write_text(OVERRIDES)
        where = ["--python-platform", "x86_64-pc-windows-msvc", "--python-version", "3.11", "--target", str(packages)]
        named = [word for each in projects for word in ("--editable", str(each))]
        uv = str(Path(sys.executable).with_name("uv"))
        options = ["--quiet", "--override", str(overrides), "--group", "dev"]
        self._call(uv, "pip", "install", *where, *options, "msvc-runtime", *named)
        for listing in packages.glob("_editable_impl_*.pth"):
            # Relative, as dev.py makes them: Python reads them in the code page, and uv writes UTF-8.
            source = os.path.relpath(listing.read_text("utf-8").strip(), ROOT / ".venv/Lib/site-packages")
            listing.write_text(Path(source).as_posix() + "\n", "utf-8")
        for each in (*packages.glob("*140*.dll"), *packages.glob("bin/*.exe")):
            shutil.copy(each, self.home)
        self._make_launchers(packages)

    def _make_launchers(self, packages: Path) -> None:
        """Make ``NAME.exe`` as pip on Windows does: its launcher, the interpreter's path, and a zip to run."""
        import pip._vendor.distlib as distlib

        launcher = Path(distlib.__file__).with_name("t64.exe").read_bytes()
        for each in _scripts(packages):
            module, function = each.value.split(":")
            program = BytesIO()
            with zipfile.ZipFile(program, "w") as archive:
                lines = ("import sys", f"from {module} import {function}", f"sys.exit({function}())")
                archive.writestr("__main__.py", "\n".join(lines))
            line = f"#!{WINDOWS_HOME}\\python.exe\r\n".encode()
            (self.home / f"{each.name}.exe").write_bytes(launcher + line + program.getvalue())

    # -- running -------------------------------------------------------------------------------------------------

    def command(self, *words: str, folder: str = "/", env: Mapping[str, str] | None = None) -> list[str]:
        """Return the command that runs a program of the tree, in a folder as the tree sees it.

        When it ends, or its starter is killed, every process that it left ends too.
        """
        variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "zh_CN.UTF-8"}
        variables |= {"WINEPREFIX": "/prefix", "WINEDEBUG": "-all", "XDG_RUNTIME_DIR": "/tmp"}  # noqa: S108 - of the tree
        variables |= env or {}
        named = [f"{name}={value}" for name, value in variables.items()]
        unshare = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
        inner = [str(self.tree), str(ROOT), CLONE, HOME, folder, "env", "--ignore-environment", *named, *words]
        return [*unshare, "sh", "-ec", ENTER, "sh", *inner]

    def python(self, *words: str, env: Mapping[str, str] | None = None) -> list[str]:
        """Return the command that runs Windows' Python in the project's folder."""
        apart = {"PYTHONPYCACHEPREFIX": "C:\\pycache", **(env or {})}
        return self.command("wine", f"{CLONE}/.venv/python.exe", *words, folder=CLONE, env=apart)

    def _call(self, *words: str) -> None:
        with self._log.open("ab") as log:
            code = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False).returncode
        if code:
            last = self._log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
            program = Path(words[0]).name
            raise Unusable(f"{program} failed with code {code}: {last[0][:300]} (all of it is in {self._log})")


def wants_of(projects: list[Path]) -> str:
    """Return a digest of what projects install: their names, versions, dependencies and entry points."""
    tables = [tomllib.loads((each / "pyproject.toml").read_text("utf-8")) for each in projects]
    wants = [[each["project"], each.get("dependency-groups")] for each in tables]
    return hashlib.sha256(json.dumps(wants).encode()).hexdigest()


def debian_mirror() -> str:
    """Return where this machine's apt gets Debian from; empty where it names none, and debootstrap has its own."""
    words = ["apt-get", "indextargets", "--format", "$(LABEL) $(SITE)", "Created-By: Packages"]
    if shutil.which(words[0]) is None:
        return ""
    lines = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
    return next((line.split()[1] for line in lines if line.startswith("Debian ")), "")


def remove(folder: Path) -> None:
    """Delete a folder, unless something is mounted in it."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if inside := [each for each in mounts if Path(each) != folder and Path(each).is_relative_to(folder.resolve())]:
        raise Unusable(f"Something is mounted at {inside[0]}: unmount it, then run this again.")
    if folder.exists():
        shutil.rmtree(folder)


def _place(file: str) -> str | None:
    """Return where a file of the wheel belongs in Windows' Python; ``None`` if it is not part of it."""
    if file == "python311.dll" or file.lower().startswith("vcruntime"):
        return file
    needed = re.match(r"(libffi|libcrypto|libssl|sqlite3)", file)
    return f"DLLs/{file}" if needed or file.endswith(".pyd") else None


def _fit_library(library: Path) -> None:
    """Let a standard library before 3.11.9 work with an interpreter from then on, which calls this on the class."""
    module = library / "importlib/metadata/__init__.py"
    text = module.read_text("utf-8")
    module.write_text(
        re.sub(r"(?<!@classmethod\n)(?=    def invalidate_caches\(cls\))", "    @classmethod\n", text), "utf-8"
    )


def _scripts(packages: Path) -> list[EntryPoint]:
    found = [each for one in distributions(path=[str(packages)]) for each in one.entry_points]
    return [each for each in found if each.group == "console_scripts"]


def _replace(file: Path, text: str) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(file)
