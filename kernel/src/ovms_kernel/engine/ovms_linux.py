"""OVMS on Linux: one row of data for each system, and one platform driver that reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from ovms_kernel.engine.ovms import (
    DERIVED,
    EXACT,
    FOLDER,
    Build,
    inherited,
    lacks_for_devices,
    ovms_release,
)
from ovms_kernel.errors import BadRequest
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.values import Finding, LaunchPlan, Requirement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ovms_kernel.values import Host, Installation, Ports, Release

INHERITED = ("HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER", "XDG_CACHE_HOME")
"""What an engine may see of our environment. Everything else it must not: keys, proxies, foreign Pythons above all."""
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHON_WHEELS = ("Jinja2==3.1.6", "MarkupSafe==3.0.2")
"""What chat templates need beside libpython, in the versions that OVMS's own images install."""
EMBEDDED_INSTEAD = "use the embedded engine: `ovms-plugin engine install --platform portable`"
WITHOUT_PYTHON = "it cannot call tools and drops system messages"
"""What OVMS lacks in its variant without Python."""


class System(msgspec.Struct, frozen=True):
    """A range of versions of one distribution, and how well a build fits it."""

    id: str
    """``ID`` of os-release."""
    first: str
    last: str = ""
    """Compared by as many numbers as it has, so that ``9`` includes 9.6; empty = no end."""
    fit: int = EXACT
    derived: int = 0
    """How well it fits what names that distribution in ``ID_LIKE`` and has such a version."""

    def fits(self, host: Host) -> int:
        """Return how well the build fits a host."""
        if self.id not in (host.distribution, *host.like):
            return 0
        try:
            first, last, version = (_numbers(each) for each in (self.first, self.last, host.version))
        except ValueError:
            return 0
        if version < first or (last and version[: len(last)] > last):
            return 0
        return self.fit if host.distribution == self.id else self.derived


class Packages(msgspec.Struct, frozen=True):
    """How a distribution's users install what OVMS needs of the system."""

    command: str
    """Such as ``sudo apt install``."""
    python: str
    """Package of a shared libpython, with ``{}`` for its version."""
    by_library: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Package by the beginning of a library's name."""


APT = Packages("sudo apt install", "libpython{}", {"libxml2": "libxml2", "libcurl": "curl"})
DNF = Packages(
    "sudo dnf install",
    "python{}-libs",
    {
        "libxml2": "libxml2",
        "libcurl": "libcurl",
        "libssl.so.1.1": "compat-openssl11",
        "libcrypto.so.1.1": "compat-openssl11",
    },
)


class LinuxRow(msgspec.Struct, frozen=True):
    """What one platform knows: its archives, the systems they fit, and where their libraries come from."""

    build: Build
    systems: tuple[System, ...]
    codenames: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Fits by ``UBUNTU_CODENAME`` or ``VERSION_CODENAME``, which names what a system derives from."""
    packages: Packages = APT


class OvmsOnLinux:
    """A platform driver for the vendor's archives; a subclass names its ``row``."""

    row: ClassVar[LinuxRow]

    def matches(self, host: Host) -> int:
        """Return how well the build fits."""
        if (host.os, host.machine) != ("linux", "x86_64"):
            return 0
        by_name = [system.fits(host) for system in self.row.systems]
        return max(*by_name, self.row.codenames.get(host.codename, 0), 0)

    def release(self, host: Host, version: str) -> Release:
        """Return the archive."""
        return ovms_release(self.row.build, host, version)

    async def requirements(self, installation: Installation) -> list[Requirement]:
        """Return what the system lacks, found out without starting the engine."""
        import anyio.to_thread

        plan = launch_on_linux(installation)
        python = installation.directory / FOLDER / "lib" / "python"
        programs = [Path(plan.argv[0]), *sorted(python.glob("pyovms*.so"))]
        missing = await missing_libraries([each for each in programs if each.is_file()], plan.env)
        lacks = [Requirement(f"the library {name}", self._remedy(name)) for name in missing]
        version = self.row.build.python
        if python.is_dir() and not await anyio.to_thread.run_sync(_has_jinja, installation, version):
            command = (
                f"python3 -m pip install --target '{wheels_folder(installation)}' --python-version {version} "
                f"--only-binary=:all: {' '.join(PYTHON_WHEELS)}"
            )
            lacks.append(Requirement("Jinja2, which chat templates and tool calling need", command, fatal=False))
        return lacks + lacks_for_devices()

    def launch(self, installation: Installation, ports: Ports) -> LaunchPlan:
        """Return how to start it."""
        del ports
        return launch_on_linux(installation)

    @hookimpl
    def ovms_check_host(self, host: Host) -> list[Finding]:
        """Return what this host lacks for the variant with Python.

        Nothing is said where the build is a guess: such a system has no package of that libpython.
        """
        version = self.row.build.python
        if self.matches(host) < DERIVED or version in host.libpython:
            return []
        text = f"libpython{version} is not installed, so OVMS without Python is used: {WITHOUT_PYTHON}"
        return [Finding("warning", "python", text, self._python())]

    def _python(self) -> str:
        return f"{self.row.packages.command} {self.row.packages.python.format(self.row.build.python)}"

    def _remedy(self, library: str) -> str:
        if library.startswith("libpython"):
            return self._python()
        if library.startswith("GLIBC"):  # a symbol version: the system is older than the build
            return EMBEDDED_INSTEAD
        for beginning, package in self.row.packages.by_library.items():
            if library.startswith(beginning):
                return f"{self.row.packages.command} {package}"
        return f"install the package that has {library}"


def launch_on_linux(installation: Installation) -> LaunchPlan:
    """Return the plan for an archive of Linux: its own libraries, Python packages and voices."""
    root = installation.directory / FOLDER
    lib = root / "lib"
    if ":" in str(root):
        raise BadRequest(f"The data folder {root} must not have a colon in its path; choose another one.")
    env = inherited(INHERITED)
    env["LD_LIBRARY_PATH"] = str(lib)
    env["PATH"] = f"{SEARCH_PATH}:{root / 'bin'}"
    if (lib / "python").is_dir():
        env["PYTHONPATH"] = f"{lib / 'python'}:{wheels_folder(installation)}"
        env["PYTHONNOUSERSITE"] = "1"
    if (voices := root / "share" / "espeak-ng-data").is_dir():
        env["ESPEAK_DATA_PATH"] = str(voices)
    # A folder that nobody removes: neither the host's, which may be a plugin's, nor that of this version.
    return LaunchPlan((str(root / "bin" / "ovms"),), env, installation.directory.parent)


def wheels_folder(installation: Installation) -> Path:
    """Return where the Python packages that OVMS takes from the system may lie instead."""
    return installation.directory / "python_deps"


async def missing_libraries(programs: Iterable[Path], env: Mapping[str, str]) -> list[str]:
    """Return the shared libraries that the loader does not find; empty if it cannot be asked."""
    import anyio

    missing: list[str] = []
    for program in programs:
        try:
            done = await anyio.run_process(["ldd", str(program)], env=dict(env), check=False)
        except OSError:
            return []
        said = done.stdout.decode(errors="replace")
        missing += re.findall(r"^\s*(\S+) => not found", said, re.MULTILINE)
        # A symbol version that is missing is a system too old for this build.
        missing += re.findall(r"version `(\S+)' not found", done.stderr.decode(errors="replace"))
    return sorted(set(missing))


def _has_jinja(installation: Installation, python: str) -> bool:
    places = [
        wheels_folder(installation),
        Path("/usr/lib/python3/dist-packages"),
        *(Path(root) / f"python{python}" / "dist-packages" for root in ("/usr/lib", "/usr/local/lib")),
        *(Path(root) / f"python{python}" / "site-packages" for root in ("/usr/lib", "/usr/local/lib")),
    ]
    return any((place / "jinja2").is_dir() for place in places)


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers.

    :raises ValueError: it has something else in it.
    """
    return tuple(int(part) for part in version.split(".")) if version else ()
