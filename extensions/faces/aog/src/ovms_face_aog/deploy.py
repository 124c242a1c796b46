"""``ovms-plugin deploy``: put the plugin where AOG looks for it, and see that it starts from there."""

import os
import platform
import shlex
import shutil
import site
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from ovms_face_aog.manifest import MARK, PROVIDER, SYSTEMS, Bodies, executable, manifest_of
from ovms_kernel.api.commands import BadRequest, NotFound, NotSupported, OvmsError, PreconditionFailed, Session, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_kernel.api.platforms import Host
    from ovms_kernel.api.services import ServiceDefinition

MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
"""GOARCH by what Python calls the machine."""

LAUNCHER = """#!/bin/sh
# Starts ovms-plugin for AOG; written by `ovms-plugin deploy`.
python={python}
if [ ! -x "$python" ]; then
  echo "[ERROR] The Python environment of ovms-plugin was $python and no longer exists;" \\
    "run \\`ovms-plugin deploy\\` again from where it is now." >&2
  exit 1
fi
exec "$python" {flags} -m ovms_face_aog "$0"
"""


async def deploy(session: Session, plugin_dir: Path | None, bodies: Bodies, *, remove: bool) -> None:
    """Write the plugin's folder and start the plugin once from there, or remove the folder."""
    plugins = plugin_dir.expanduser().absolute() if plugin_dir else usual_folder(os.environ)  # noqa: ASYNC240 - nothing else waits
    folder = plugins / PROVIDER
    check_ours(folder)
    try:
        if remove:
            _remove(folder)
            return
        async with session.kernel() as kernel:
            manifest = manifest_of(kernel.services, bodies=bodies)
            # What people try first.
            example = min(manifest.services, key=lambda each: each.name != "chat", default=None)
            trouble = trouble_of_aog(kernel.host)
        if example is None:
            raise NotSupported("No service that AOG knows is installed; install one, such as ovms-service-chat.")
        system = this_system()
        text = manifest.as_yaml(
            systems=(system,), resources={"data_dir": str(session.settings.data_dir).replace("$", "$$")}
        )
        existed = folder.exists()
        launcher = write(folder, text, system)
    except OSError as error:
        raise PreconditionFailed(_refused(error, folder)) from error
    try:
        seconds = await start_once(launcher)
    except OvmsError:
        if not existed:
            await anyio.to_thread.run_sync(shutil.rmtree, folder)
        raise
    _say_next(session, folder, plugins, example, seconds)
    if trouble:
        say(trouble)


def usual_folder(environment: "Mapping[str, str]") -> Path:
    """Return AOG's folder of plugins on this system.

    :raises NotFound: AOG has no folder here.
    """
    if sys.platform == "win32":
        root = Path(environment.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "AOG"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Application Support" / "AOG"
    else:
        root = Path("/var/lib/aog")
    if not root.is_dir():
        raise NotFound(f"AOG's folder {root} is not there; install and start AOG first, or name its folder of plugins "
                       "with --plugin-dir.")  # fmt: skip
    return root / "plugins"


def this_system() -> str:
    """Return this machine's ``<GOOS>_<GOARCH>``.

    :raises NotSupported: AOG has no build for it.
    """
    system = f"{platform.system().lower()}_{MACHINES.get(platform.machine().lower(), platform.machine())}"
    if system not in SYSTEMS:
        raise NotSupported(f"AOG does not run on {system}; it does on {', '.join(SYSTEMS)}.")
    return system


def trouble_of_aog(host: "Host") -> str:
    """Return what keeps AOG itself from starting on this system, or nothing.

    On a distribution that its own OpenVINO engine does not know, AOG v0.7 goes on with an engine that is nil
    (``internal/provider/engine/openvino.go``).
    """
    known = host.distribution == "deepin" or (host.distribution == "ubuntu" and host.version in ("22.04", "24.04"))
    if host.os != "linux" or known:
        return ""
    return (
        f"AOG v0.7 itself crashes at its start on {host.distribution or 'this Linux'} {host.version}".rstrip()
        + ": it runs on Ubuntu 22.04, Ubuntu 24.04 and deepin."
    )


def check_ours(folder: Path) -> None:
    """Refuse to touch what somebody else put there under our name, such as AOG's own sample.

    :raises BadRequest: it is not ours.
    """
    manifest = folder / "plugin.yaml"
    if not folder.exists() and not folder.is_symlink():
        return
    try:
        ours = folder.is_dir() and (not any(folder.iterdir()) or manifest.read_text("utf-8").startswith(MARK))
    except (OSError, UnicodeDecodeError):
        ours = False
    if not ours:
        raise BadRequest(
            f"{folder} holds another plugin of that name, not one that this command wrote; move it away first."
        )


def write(folder: Path, manifest: str, system: str) -> Path:
    """Write the plugin's folder and return its launcher; what is there already is replaced file by file."""
    launcher = folder / executable(system)
    launcher.parent.mkdir(parents=True, exist_ok=True)
    if system.startswith("windows"):
        source = Path(sys.executable).with_name(launcher.name)
        if not source.exists():
            raise NotFound(f"{source} is not there, which AOG is to start; install ovms-plugin with pip or uv.")
        _replace(launcher, source.read_bytes())
    else:
        _replace(launcher, launcher_text().encode(), mode=0o755)
    # The manifest comes last: with it AOG begins to see the plugin.
    _replace(folder / "plugin.yaml", manifest.encode())
    return launcher


def launcher_text() -> str:
    """Return the launcher for systems with a shell: it becomes this very Python, so that AOG's signals reach it."""
    kernel = Path(sys.modules["ovms_kernel"].__file__ or "")
    user_site = site.getusersitepackages()
    # Isolated from whatever AOG's user has in the environment, unless we are installed just there.
    flags = "-X utf8" if kernel.is_relative_to(user_site) else "-I -X utf8"
    return LAUNCHER.format(python=shlex.quote(sys.executable), flags=flags)


def _refused(error: OSError, folder: Path) -> str:
    advice = "run this as the user that runs AOG, or name another folder with --plugin-dir."
    if os.name == "nt" and isinstance(error, PermissionError):
        advice = "stop AOG first, as Windows neither replaces nor removes a program that runs."
    return f"{error.filename or folder} cannot be written ({error.strerror}); {advice}"


def _replace(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.chmod(mode)
    try:
        partial.replace(path)
    except PermissionError:
        # Windows refuses while AOG runs the launcher, which needs no other one if it is the same.
        if not path.is_file() or path.read_bytes() != data:
            raise
    finally:
        partial.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    if folder.exists():
        # First: while AOG runs it, Windows refuses that, and all of it stays.
        for launcher in folder.glob("bin/*/*"):
            launcher.unlink()
        shutil.rmtree(folder)
        say(f"Removed {folder}; restart AOG to make it forget the plugin.")
    else:
        say(f"There is nothing to remove: {folder} is not there.")


async def start_once(launcher: Path) -> float:
    """Start the plugin as AOG would and end it again; return the seconds to its handshake.

    :raises OvmsError: it does not start, or not well.
    """
    from ovms_face_aog.client import PluginFailed, PluginHost

    # AOG's working directory is two levels above the executable, which is not the plugin's folder.
    host = PluginHost([launcher], cwd=launcher.parent.parent)
    try:
        async with host:
            answer: Any = await host.call("GetManifest", timeout=60)
            if answer.code not in (0, 200):
                raise OvmsError(f"The plugin starts, but says: {answer.message}")
            await host.kill()
    except (PluginFailed, OSError) as error:
        raise OvmsError(f"AOG could not start the plugin from {launcher}: {error}") from error
    return host.handshake_seconds


def _say_next(session: Session, folder: Path, plugins: Path, service: "ServiceDefinition", seconds: float) -> None:
    say(f"Written to {folder} and started once from there: it answered after {seconds * 1000:.0f} ms.")
    say(f"Models and engine are kept in {session.settings.data_dir}.")
    say("")
    say("Next, restart AOG, which looks for plugins only when it starts, and install a service:")
    say("  aog server stop; aog server start -d")
    model = service.default_model or "<owner>/<name>"
    say(f"  aog install {service.name} --flavor {PROVIDER} --model {model}")
    say("")
    say(f"AOG must read {plugins}: started in a folder that has a folder `plugins`, it reads that one instead.")
    say("Get more models with `aog install` or over its HTTP API: `aog pull` crashes with any plugin.")
