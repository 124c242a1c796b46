"""The real OVMS as its vendor packs it: archives, their layout, the environment, and what it needs of the system.

For platform drivers, through ``ovms_kernel.api``: a driver says which build is for its system, the rest is the same
everywhere.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ovms_kernel.errors import BadRequest, NotFound
from ovms_kernel.values import LaunchPlan, Release, Requirement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ovms_kernel.values import Host, Installation

VENDOR = "https://github.com/openvinotoolkit/model_server/releases/download"
VENDOR_API = "https://api.github.com/repos/openvinotoolkit/model_server/releases/tags"
STORAGE = "https://storage.openvinotoolkit.org/repositories/openvino_model_server/packages"
NEWEST = "2026.4.1"
"""The version that is installed unless another one is asked for."""
VERIFIED = "2026.4.0"
"""The newest version whose digests stand in ``KNOWN``."""
TWO_NUMBERS = (2026, 3, 0)
"""Up to this version, the tag of the first release of a line has two numbers: v2026.3, but v2026.4.0."""
KNOWN = {
    "ovms_ubuntu24_2026.4.0_python_on.tar.gz": (
        196991877, "4a142a7a7409d91299f115562c587b342c74f3b6749b588ac8e40c8f977dcbf8",
    ),
    "ovms_ubuntu24_2026.4.0_python_off.tar.gz": (
        180278899, "cc5caad0e859b249fac586847fa922c9f57e1c910abd2233a57b3cca0172fb91",
    ),
    "ovms_ubuntu22_2026.4.0_python_on.tar.gz": (
        192806746, "bb14ef8987bf4e3796905b89cba01ac92acd9599dc42e5d8a46fdbfafd660e12",
    ),
    "ovms_ubuntu22_2026.4.0_python_off.tar.gz": (
        176488078, "a5a9e4a4a48dbd30a5d18f9088d2a030758f788d13e9ff14d891e008083756ab",
    ),
    "ovms_windows_2026.4.0_python_on.zip": (
        138798816, "5a022e44e794e6a9cb0f1c6c40822167dac53a36daf9af123c9411974cef1914",
    ),
    "ovms_windows_2026.4.0_python_off.zip": (
        117195695, "46d03114c97abfe05f2c5a8fde772c655aeef541ee254c23f402f81a616474e3",
    ),
}  # fmt: skip
"""Bytes and SHA-256 of the vendor's archives, by name."""
FOLDER = "ovms"
"""The one folder at the top of every archive."""
WINDOWS_INHERITED = (
    "APPDATA", "COMPUTERNAME", "COMSPEC", "HOMEDRIVE", "HOMEPATH", "LOCALAPPDATA", "NUMBER_OF_PROCESSORS", "OS",
    "PROCESSOR_ARCHITECTURE", "PROCESSOR_IDENTIFIER", "PROGRAMDATA", "SYSTEMDRIVE", "SYSTEMROOT", "TEMP", "TMP",
    "USERNAME", "USERPROFILE", "WINDIR",
)  # fmt: skip
"""What an engine may see of our environment. Everything else it must not: keys, proxies, foreign Pythons above all."""
VC_RUNTIME = ("msvcp140.dll", "vcruntime140.dll", "vcruntime140_1.dll")
GPU_DRIVER = "sudo apt install intel-opencl-icd"
NPU_DRIVER = "install the packages from https://github.com/intel/linux-npu-driver/releases"
EXACT, DERIVED, GUESS = 20, 15, 5
"""How well a build fits a host: made for it, made for what it derives from, or worth a try."""


class Build(msgspec.Struct, frozen=True):
    """One line of the vendor's archives."""

    system: str
    """As in the archives' names, such as ``ubuntu24``."""
    suffix: str = ".tar.gz"
    python: str = ""
    """The libpython that its variant with Python needs of the system; empty if it brings its own."""
    last: str = ""
    """The last version that is published for this system; empty while there is no end."""


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
    tags = [f"v{version}"]
    if version.endswith(".0"):
        tags.insert(0 if _key(version) <= TWO_NUMBERS else 1, f"v{version.removesuffix('.0')}")
    size, sha256 = KNOWN.get(archive, (None, None))
    return Release(
        version,
        archive,
        mirrors=(*(f"{VENDOR}/{tag}/" for tag in tags), f"{STORAGE}/{version}/"),
        size=size,
        sha256=sha256,
        asset_list=f"{VENDOR_API}/{tags[0]}",
        verified=VERIFIED if archive.replace(version, VERIFIED) in KNOWN else "",
    )


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


# -- how to start it -----------------------------------------------------------------------------------------------


def launch_on_windows(installation: Installation) -> LaunchPlan:
    r"""Return the plan for an archive of Windows."""
    root = installation.directory / FOLDER
    if ";" in str(root):
        raise BadRequest(f"The data folder {root} must not have a semicolon in its path; choose another one.")
    env = inherited(WINDOWS_INHERITED)
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


def inherited(names: Iterable[str]) -> dict[str, str]:
    """Return those of the variables that are set here."""
    return {name: os.environ[name] for name in names if name in os.environ}


# -- what it needs of the system -----------------------------------------------------------------------------------


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
