"""The real OVMS as its vendor packs it: archives, their layout, the environment, and what it needs of the system.

For platform drivers, through ``ovms_kernel.api``: a driver says which build is for its system, the rest is the same
everywhere (spec/ovms.md A).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ovms_kernel.errors import BadRequest, NotFound
from ovms_kernel.values import Finding, LaunchPlan, Release, Requirement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ovms_kernel.values import Host, Installation

VENDOR = "https://github.com/openvinotoolkit/model_server/releases/download"
VENDOR_API = "https://api.github.com/repos/openvinotoolkit/model_server/releases/tags"
STORAGE = "https://storage.openvinotoolkit.org/repositories/openvino_model_server/packages"
NEWEST = "2026.3.0"
"""The version that this plugin was written against."""
FOLDER = "ovms"
"""The one folder at the top of every archive."""
LINUX_INHERITED = ("HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER", "XDG_CACHE_HOME")
WINDOWS_INHERITED = (
    "APPDATA", "COMPUTERNAME", "COMSPEC", "HOMEDRIVE", "HOMEPATH", "LOCALAPPDATA", "NUMBER_OF_PROCESSORS", "OS",
    "PROCESSOR_ARCHITECTURE", "PROCESSOR_IDENTIFIER", "PROGRAMDATA", "SYSTEMDRIVE", "SYSTEMROOT", "TEMP", "TMP",
    "USERNAME", "USERPROFILE", "WINDIR",
)  # fmt: skip
"""What an engine may see of our environment. Everything else it must not: keys, proxies, foreign Pythons above all."""
LINUX_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHON_WHEELS = ("Jinja2==3.1.6", "MarkupSafe==3.0.2")
"""What chat templates need beside libpython (spec/ovms.md A.5)."""
VC_RUNTIME = ("msvcp140.dll", "vcruntime140.dll", "vcruntime140_1.dll")
GPU_DRIVER = "sudo apt install intel-opencl-icd"
NPU_DRIVER = "install the packages from https://github.com/intel/linux-npu-driver/releases"
LINUX_PACKAGES = {
    "libxml2": "sudo apt install libxml2",
    "libcurl": "sudo apt install curl",
    "libpython3.10": "sudo apt install libpython3.10",
    "libpython3.12": "sudo apt install libpython3.12",
    "GLIBC": "use the embedded engine: set `platform: portable`",
    "GLIBCXX": "use the embedded engine: set `platform: portable`",
}
"""The command that installs a library, by the beginning of its name (spec/ovms.md A.5)."""
EXACT, DERIVED, GUESS = 20, 15, 5
"""How well a build fits a host: made for it, made for what it derives from, or worth a try."""


@dataclass(frozen=True, slots=True)
class Build:
    """One line of the vendor's archives."""

    system: str
    """As in the archives' names, such as ``ubuntu24``."""
    suffix: str = ".tar.gz"
    python: str = ""
    """The libpython that its variant with Python needs of the system; empty if it brings its own."""
    last: str = ""
    """The last version that is published for this system; empty while there is no end."""
    known: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by archive name, where we have verified one."""


def ovms_release(build: Build, host: Host, version: str) -> Release:
    """Return the archive for a host: with Python if the host has the libpython for it, else without.

    :raises NotFound: there can be no such version.
    """
    version = version or NEWEST
    if not re.fullmatch(r"20\d\d\.\d+(\.\d+)?", version):
        raise NotFound(f"OpenVINO Model Server has no version {version}; name one such as {NEWEST}.")
    if version.count(".") == 1:
        version += ".0"
    if build.last and _key(version) > _key(build.last):
        raise NotFound(
            f"OpenVINO Model Server is published for {build.system} up to version {build.last} only; "
            "choose that one, or a newer system."
        )
    with_python = not build.python or build.python in host.libpython
    archive = f"ovms_{build.system}_{version}_python_{'on' if with_python else 'off'}{build.suffix}"
    # The tag of the first release of a line has two numbers or three: v2026.3, but v2026.4.0.
    tags = [f"v{version}", f"v{version.removesuffix('.0')}"] if version.endswith(".0") else [f"v{version}"]
    if _key(version) <= _key(NEWEST):
        tags.reverse()
    mirrors = (*(f"{VENDOR}/{tag}/" for tag in tags), f"{STORAGE}/{version}/")
    return Release(version, archive, mirrors, sha256=build.known.get(archive), asset_list=f"{VENDOR_API}/{tags[0]}")


def fit_on_linux(host: Host, distribution: str, version: str, codenames: Mapping[str, int]) -> int:
    """Return how well a build fits a host: exactly, by the codename of what it derives from, or not."""
    if (host.os, host.machine) != ("linux", "x86_64"):
        return 0
    if (host.distribution, host.version) == (distribution, version):
        return EXACT
    return codenames.get(host.codename, 0)


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


# -- how to start it -----------------------------------------------------------------------------------------------


def launch_on_linux(installation: Installation) -> LaunchPlan:
    """Return the plan for an archive of Linux (spec/ovms.md A.2, A.4)."""
    root = installation.directory / FOLDER
    lib = root / "lib"
    if ":" in str(root):
        raise BadRequest(f"The data folder {root} must not have a colon in its path; choose another one.")
    env = _inherited(LINUX_INHERITED)
    env["LD_LIBRARY_PATH"] = str(lib)
    env["PATH"] = f"{LINUX_PATH}:{root / 'bin'}"
    if (lib / "python").is_dir():
        env["PYTHONPATH"] = f"{lib / 'python'}:{wheels_folder(installation)}"
        env["PYTHONNOUSERSITE"] = "1"
    if (voices := root / "share" / "espeak-ng-data").is_dir():
        env["ESPEAK_DATA_PATH"] = str(voices)
    # A folder that nobody removes: neither the host's, which may be a plugin's, nor that of this version.
    return LaunchPlan((str(root / "bin" / "ovms"),), env, installation.directory.parent)


def launch_on_windows(installation: Installation) -> LaunchPlan:
    r"""Return the plan for an archive of Windows (spec/ovms.md A.3, A.4)."""
    root = installation.directory / FOLDER
    if ";" in str(root):
        raise BadRequest(f"The data folder {root} must not have a semicolon in its path; choose another one.")
    env = _inherited(WINDOWS_INHERITED)
    system = env.setdefault("SYSTEMROOT", r"C:\Windows")
    path = [str(root), rf"{system}\System32", system, rf"{system}\System32\Wbem"]
    if (python := root / "python").is_dir():
        path[1:1] = [str(python), str(python / "Scripts")]
        env["PYTHONHOME"] = str(python)
        env["PYTHONNOUSERSITE"] = "1"
    env["PATH"] = ";".join(path)
    env["OVMS_DIR"] = str(root)
    if (voices := root / "espeak-ng-data").is_dir():
        env["ESPEAK_DATA_PATH"] = str(voices)
    # Windows refuses to remove a folder that is some process's working directory.
    return LaunchPlan((str(root / "ovms.exe"),), env, installation.directory.parent)


def _inherited(names: Iterable[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def wheels_folder(installation: Installation) -> Path:
    """Return where the Python packages that OVMS takes from the system may lie instead, ours alone."""
    return installation.directory / "python_deps"


def check_python(build: Build, host: Host, fit: int) -> list[Finding]:
    """Return what doctor is to say of a host that can only run the build without Python.

    :param fit: of the build; where it is a guess, the system has no package of that version.
    """
    if fit < DERIVED or not build.python or build.python in host.libpython:
        return []
    text = f"libpython{build.python} is not here, so OVMS without Python is used, which cannot call tools"
    return [Finding("warning", "python", text, f"sudo apt install libpython{build.python}")]


# -- what it needs of the system -----------------------------------------------------------------------------------


async def lacks_on_linux(installation: Installation, build: Build) -> list[Requirement]:
    """Return what a Linux system lacks for an installation, found out without starting it."""
    import anyio.to_thread

    plan = launch_on_linux(installation)
    root = installation.directory / FOLDER
    programs = [Path(plan.argv[0]), *sorted((root / "lib" / "python").glob("pyovms*.so"))]
    missing = await missing_libraries([each for each in programs if each.is_file()], plan.env)
    lacks = [Requirement(f"the library {name}", _remedy(name)) for name in missing]
    if (root / "lib" / "python").is_dir() and not await anyio.to_thread.run_sync(
        _has_jinja, installation, build.python
    ):
        command = (
            f"python3 -m pip install --target '{wheels_folder(installation)}' --python-version {build.python} "
            f"--only-binary=:all: {' '.join(PYTHON_WHEELS)}"
        )
        lacks.append(Requirement("Jinja2, which chat templates and tool calling need", command, fatal=False))
    return lacks + lacks_for_devices()


def _remedy(library: str) -> str:
    for beginning, command in LINUX_PACKAGES.items():
        if library.startswith(beginning):
            return command
    return f"install the package that has {library}"


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
    ]
    return any((place / "jinja2").is_dir() for place in places)


def lacks_for_devices(system: Path = Path("/")) -> list[Requirement]:
    """Return what is missing for a GPU or NPU of Intel that is there; without it, the CPU is used."""
    lacks = []
    renderers = [
        each.parent.parent.name
        for each in system.glob("sys/class/drm/renderD*/device/vendor")
        if each.read_text().strip() == "0x8086"
    ]
    join = "sudo usermod -aG render,video $USER (then log in again)"
    if renderers and not any(os.access(system / "dev" / "dri" / name, os.R_OK | os.W_OK) for name in renderers):
        lacks.append(Requirement("access to the GPU", join, fatal=False))
    if renderers and not any(system.glob("etc/OpenCL/vendors/*intel*.icd")):
        lacks.append(Requirement("the OpenCL driver of the GPU", GPU_DRIVER, fatal=False))
    accelerators = list(system.glob("dev/accel/accel*"))
    if accelerators and not any(os.access(each, os.R_OK | os.W_OK) for each in accelerators):
        lacks.append(Requirement("access to the NPU", join, fatal=False))
    if accelerators and not any(system.glob("usr/lib/*/libze_intel_[nv]pu.so*")):
        lacks.append(Requirement("the driver of the NPU", NPU_DRIVER, fatal=False))
    return lacks


def lacks_on_windows() -> list[Requirement]:
    """Return what a Windows system lacks."""
    folder = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32"
    missing = [name for name in VC_RUNTIME if not (folder / name).exists()]
    if not missing:
        return []
    return [Requirement("the Visual C++ redistributable (x64)", "winget install --id Microsoft.VCRedist.2015+.x64 -e")]
