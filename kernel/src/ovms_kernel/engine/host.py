"""Reads the machine as far as choosing and starting an engine depends on it."""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ovms_kernel.values import Host

if TYPE_CHECKING:
    from collections.abc import Mapping

MACHINES = {"amd64": "x86_64", "x86-64": "x86_64", "aarch64": "arm64"}
LIBRARY_FOLDERS = ("/lib", "/usr/lib", "/usr/local/lib", "/lib64", "/usr/lib64")


@functools.cache
def read_host() -> Host:
    """Return this machine; read once."""
    release = _os_release()
    systems: dict[str, Literal["windows", "darwin"]] = {"win32": "windows", "darwin": "darwin"}
    machine = platform.machine().lower()
    return Host(
        os=systems.get(sys.platform, "linux"),
        machine=MACHINES.get(machine, machine),
        distribution=release.get("ID", ""),
        version=release.get("VERSION_ID", ""),
        like=tuple(release.get("ID_LIKE", "").split()),
        codename=release.get("UBUNTU_CODENAME", "") or release.get("VERSION_CODENAME", ""),
        memory=_memory(),
        devices=_devices(),
        libpython=_libpython(),
    )


def _os_release() -> Mapping[str, str]:
    if sys.platform in ("win32", "darwin"):  # not even where such a file is found: under Wine it is Linux's
        return {"VERSION_ID": platform.release() if sys.platform == "win32" else platform.mac_ver()[0]}
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


DRIVERS = {"GPU": ("libze_intel_gpu.so.1", "libigdrcl.so"), "NPU": ("libze_intel_npu.so.1",)}
"""Libraries of the drivers of Intel's devices on Linux, whose files have the version in their names."""


@functools.cache
def driver_of(device: str) -> str:
    """Return the version of a device's driver, as far as the system tells; empty for the CPU."""
    kind = device.partition(".")[0].upper()
    if kind not in DRIVERS:
        return ""
    names = {
        path.resolve().name
        for folder in LIBRARY_FOLDERS
        for name in DRIVERS[kind]
        for pattern in (name, f"*/{name}", f"*/*/{name}")
        for path in Path(folder).glob(pattern)
    }
    return " ".join([*sorted(names), platform.release() if sys.platform == "linux" else platform.version()])


def _devices() -> tuple[str, ...]:
    """Return what the system shows of Intel's GPUs and NPUs; whether their drivers work only the engine can tell."""
    devices = ["CPU"]
    if sys.platform == "linux":
        vendors = Path("/sys/class/drm").glob("renderD*/device/vendor")
        if any(_read(each) == "0x8086" for each in vendors):
            devices.append("GPU")
        if Path("/dev/accel").exists():
            devices.append("NPU")
    elif sys.platform == "win32":
        system = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32"
        if (system / "OpenCL.dll").exists():
            devices.append("GPU")
    return tuple(devices)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _libpython() -> tuple[str, ...]:
    """Return the versions of libpython in the folders where the loader looks."""
    found = set()
    for folder in LIBRARY_FOLDERS:
        # Directly there or in the folder of an architecture: the loader looks no deeper, and a whole tree takes long.
        for pattern in ("libpython3.*.so*", "*/libpython3.*.so*"):
            for path in Path(folder).glob(pattern) if Path(folder).is_dir() else ():
                if match := re.match(r"libpython(3\.\d+)\.so", path.name):
                    found.add(match[1])
    return tuple(sorted(found, key=lambda each: int(each.partition(".")[2])))
