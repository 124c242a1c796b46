"""What a process that a go-plugin host started has of that host, taken as early as possible."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovms_face_aog import goplugin
from ovms_face_aog.environment import AOG_PLUGIN, read_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_face_aog.parent import Seat
    from ovms_kernel.api.programs import Log

AOG = "AOG_VERSION"
"""Set by AOG alone: its quirks are met only then."""


@dataclass
class PluginProcess:
    """The host's side of this process."""

    version: int
    """The application protocol version to speak."""
    stdout: int
    """Descriptor that the handshake goes to."""
    host: goplugin.Host
    log: Log
    launcher: Path
    """The file that the host started; above it is ``plugin.yaml``."""
    seat: Seat | None = None
    """Where to serve, if a parent process keeps the socket."""

    @property
    def of_aog(self) -> bool:
        """Whether the host is AOG."""
        return bool(os.environ.get(AOG))

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """The ``plugin.yaml`` that the launcher belongs to; empty if there is none."""
        return read_manifest(self.launcher)


def take_process(launcher: str = "", seat: Seat | None = None) -> PluginProcess:
    """Take the standard streams and what the host set.

    :param launcher: the file that the host started, if that is not ``sys.argv[0]``.
    :raises Refusal: no host started this process, or one that wants what cannot be offered.
    """
    version = read_environment(AOG_PLUGIN, os.environ)
    stdout, stderr = goplugin.take_standard_streams()
    host = goplugin.Host(stderr, seat.parent if seat else os.getppid())
    from ovms_kernel.api.programs import Log

    return PluginProcess(version, stdout, host, Log(stderr), Path(launcher or sys.argv[0]).absolute(), seat)


def read_manifest(launcher: Path) -> Mapping[str, Any]:
    """Return the manifest of the plugin folder that a launcher lies in; empty if it lies in none.

    AOG starts plugins in a folder that is not theirs, so the manifest is looked for above the launcher.
    """
    for folder in launcher.parents[:4]:
        if (folder / "plugin.yaml").is_file() and (folder / "bin") in launcher.parents:
            break
    else:
        return {}
    import yaml

    try:
        value = yaml.safe_load((folder / "plugin.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def data_dir_of(manifest: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """Return the data folder that a manifest names, with ``${NAME}`` replaced.

    Empty if it names none or a variable that is not set: AOG documents ``AOG_DATA_DIR`` and never sets it (D2-39).
    """
    resources = manifest.get("resources")
    folder = resources.get("data_dir") if isinstance(resources, dict) else None
    if not isinstance(folder, str):
        return ""
    import string

    try:
        return string.Template(folder).substitute(environment)
    except (KeyError, ValueError):
        return ""


def passed_by(manifest: Mapping[str, Any]) -> frozenset[str]:
    """Return the services whose bodies AOG does not convert: those with its template that has no conversions."""
    services = manifest.get("services")
    listed = [each for each in services if isinstance(each, dict)] if isinstance(services, list) else []
    return frozenset(str(each.get("service_name")) for each in listed if str(each.get("config_ref")).startswith("aog:"))
