"""Starting and ending an engine process: ports, a key, flags, and notes in ``run/`` of which one runs."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import anyio
import msgspec
from msgspec.structs import asdict

from ovms_kernel import processes
from ovms_kernel.declared import Count  # noqa: TC001 - msgspec reads annotations
from ovms_kernel.engine.process import EngineProcess, spawn
from ovms_kernel.errors import EngineFailed
from ovms_kernel.events import merge
from ovms_kernel.files import read_json, write_atomically
from ovms_kernel.values import Endpoint, LaunchPlan, Ports

if TYPE_CHECKING:
    from pathlib import Path

    from ovms_kernel.events import Events
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import LaunchPatch

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
Pid = Annotated[int, msgspec.Meta(gt=0)]


class RunningEngine(msgspec.Struct, frozen=True):
    """What ``run/engine.json`` says of the engine, for the next plugin or a second one."""

    pid: Pid
    started: float
    """Start time of the process as the system tells it: with the pid, it names one process for good."""
    owner: Pid
    """Pid of the plugin."""
    version: str
    rest: Count
    grpc: Count


def choose_ports(settings: Settings) -> Ports:
    """Return two loopback ports, those of the settings if they are free."""
    rest = settings.rest_port if _is_free(settings.rest_port) else _any_free()
    grpc = settings.grpc_port
    return Ports(rest, grpc if grpc != rest and _is_free(grpc) else _any_free(rest))


def _is_free(port: int) -> bool:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        if os.name == "posix":  # on Windows the option would let us share a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError):
            return False
        return True


def _any_free(taken: int = 0) -> int:
    while True:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        if port != taken:
            return port


def write_key(settings: Settings) -> str:
    """Make a new API key, readable by this user only, and return it."""
    key = secrets.token_urlsafe(32)
    write_private(key_file(settings), key + "\n")
    return key


def key_file(settings: Settings) -> Path:
    """Return where the engine reads its API key."""
    return settings.run_dir / "api_key"


def write_private(path: Path, text: str) -> None:
    """Replace a file that only this user may read, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, text.encode(), 0o600)


def endpoint_of(ports: Ports, api_key: str) -> Endpoint:
    """Return where the plugin's own engine answers."""
    return Endpoint(f"http://{LOOPBACK}:{ports.rest}", f"{LOOPBACK}:{ports.grpc}", api_key)


NO_ORIGIN = "https://nobody.invalid"
"""The origin of no page: nobody can own a name that ends so (RFC 2606)."""


def engine_arguments(settings: Settings, ports: Ports) -> list[str]:
    """Return the flags that every engine is started with.

    Loopback only, as OVMS listens on every interface unless it is told otherwise; no web page may read its answers,
    which OVMS allows all of them; and no watching of ``config.json``, as serving asks for each reload.
    """
    flags = {
        "rest_port": ports.rest,
        "port": ports.grpc,
        "rest_bind_address": LOOPBACK,
        "grpc_bind_address": LOOPBACK,
        "config_path": settings.config_json,
        "cache_dir": settings.cache_dir,
        "api_key_file": key_file(settings),
        "allowed_origins": NO_ORIGIN,
        "file_system_poll_wait_seconds": 0,
        "log_level": "INFO",
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


async def amended(plan: LaunchPlan, events: Events) -> LaunchPlan:
    """Return the plan with what extensions add to it.

    :raises Refused: one vetoes the launch, or two contradict each other.
    """
    patches: list[tuple[str, LaunchPatch]] = await events.ask("ovms_amend_launch", plan=plan)
    env = merge([(name, patch.env) for name, patch in patches], "the variable")
    extra = tuple(word for _, patch in patches for word in patch.argv)
    return LaunchPlan(plan.argv + extra if plan.argv else (), dict(plan.env) | env, plan.cwd, plan.endpoint)


async def start(plan: LaunchPlan, arguments: list[str], log_file: Path) -> EngineProcess:
    """Start the engine's process.

    :raises EngineFailed: the system cannot.
    """
    try:
        return await spawn([*plan.argv, *arguments], plan.env, plan.cwd, log_file)
    except OSError as error:
        raise EngineFailed(f"The engine {plan.argv[0]} cannot be started: {error.strerror}.") from error


async def end(process: EngineProcess, patience: float) -> int:
    """Stop a process: ask it, wait that many seconds, end it by force with all that it started; return its code."""
    if patience:
        process.terminate()
        with anyio.move_on_after(patience):
            return await process.wait()
        log.warning("The engine did not stop within %g s and is ended by force", patience)
    process.kill()
    return await process.wait()


# -- run/ ----------------------------------------------------------------------------------------------------------


def started_here(pid: int, version: str, ports: Ports) -> RunningEngine:
    """Return the note of an engine that this process has just started."""
    return RunningEngine(pid, processes.start_time(pid), os.getpid(), version, ports.rest, ports.grpc)


def note_running(settings: Settings, running: RunningEngine) -> None:
    """Write down which engine runs."""
    note = asdict(running) | {"boot": processes.boot()}
    write_private(settings.run_dir / "engine.json", json.dumps(note) + "\n")


def read_running(settings: Settings) -> RunningEngine | None:
    """Return the engine that was written down last, since the system was started; it may be gone."""
    note = read_json(settings.run_dir / "engine.json") or {}
    if note.pop("boot", None) != processes.boot():
        return None
    try:
        return msgspec.convert(note, RunningEngine)
    except msgspec.ValidationError:
        return None


def noted_endpoint(settings: Settings, running: RunningEngine) -> Endpoint | None:
    """Return where an engine that was written down answers; ``None`` if it or its key is gone."""
    if not is_alive(running):
        return None
    try:
        key = key_file(settings).read_text("utf-8").strip()
    except OSError:
        return None
    return endpoint_of(Ports(running.rest, running.grpc), key)


def forget_running(settings: Settings) -> None:
    """Take the note away again, with the key."""
    (settings.run_dir / "engine.json").unlink(missing_ok=True)
    key_file(settings).unlink(missing_ok=True)


def is_alive(running: RunningEngine) -> bool:
    """Tell whether that very process still runs, not another one that was given its pid."""
    return processes.is_alive(running.pid, running.started)


def listens(pid: int, port: int) -> bool:
    """Tell whether a process or a child of it listens on a port; true if the system does not let us know."""
    import psutil

    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            connections = each.net_connections("tcp")
            if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections):
                return True
    except (psutil.AccessDenied, RuntimeError):  # the latter where Windows gives psutil no table of its sockets
        return True
    except psutil.Error:
        pass
    return False
