"""What starting an engine needs beside the platform's plan: ports, a key, flags, a log file, notes in ``run/``."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ovms_kernel.errors import Unavailable
from ovms_kernel.events import merge
from ovms_kernel.files import write_atomically
from ovms_kernel.values import Endpoint, LaunchPlan, Ports

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ovms_kernel.events import Events
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import LaunchPatch

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
LOG_LIMIT = 16 << 20
"""Bytes of an engine log before it is set aside."""
LOGS_KEPT = 3
START_TOLERANCE = 0.5
"""Seconds by which two readings of one process's start time may differ."""
ERRORS = re.compile(r"\[(error|critical)\]|error while loading|Traceback|Error:|terminate called", re.IGNORECASE)
PREFIX = re.compile(r"^\[[^\]]*\]\[[^\]]*\]\[[^\]]*\]\[[^\]]*\]\[[^\]]*\]\s*")
"""Time, thread, logger, level and place before an OVMS log line."""

STAMP = re.compile(r"^\[(?P<time>\d{4}-[^\]]*)\]\[")
"""The time of such a line."""
ANSWERED = re.compile(r"^\[[^\]]*\]\[[^\]]*\]\[[^\]]*_calculator\]")
"""A line that tells what a model's calculator answered to a request."""
END = timedelta(seconds=5)
"""How long before an engine's end a line may tell of its cause."""


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """What ``run/engine.json`` says of the engine, for the next plugin or a second one."""

    pid: int
    started: float
    """Start time of the process as the system tells it: with the pid, it names one process for good."""
    owner: int
    """Pid of the plugin."""
    version: str
    rest: int
    grpc: int


def choose_ports(settings: Settings, avoid: Iterable[int] = ()) -> Ports:
    """Return two loopback ports, those of the settings if they are free."""
    taken = set(avoid)
    chosen = []
    for wanted in (settings.rest_port, settings.grpc_port):
        port = wanted if wanted not in taken and _is_free(wanted) else _any_free(taken)
        taken.add(port)
        chosen.append(port)
    return Ports(*chosen)


def _is_free(port: int) -> bool:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        if os.name == "posix":  # on Windows the option would let us share a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError):
            return False
        return True


def _any_free(taken: set[int]) -> int:
    while True:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
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


# -- run/ ----------------------------------------------------------------------------------------------------------


def note_running(settings: Settings, running: RunningEngine) -> None:
    """Write down which engine runs."""
    note = asdict(running) | {"boot": _boot()}
    write_private(settings.run_dir / "engine.json", json.dumps(note) + "\n")


def read_running(settings: Settings) -> RunningEngine | None:
    """Return the engine that was written down last, since the system was started; it may be gone."""
    try:
        note = json.loads((settings.run_dir / "engine.json").read_text("utf-8"))
        if note.pop("boot") != _boot():
            return None
        running = RunningEngine(**note)
        numbers = (running.pid, running.owner, running.rest, running.grpc)
        whole = all(type(each) is int and each >= 0 for each in numbers) and running.pid > 0 < running.owner
        return running if whole and isinstance(running.started, int | float) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def forget_running(settings: Settings) -> None:
    """Take the note away again, with the key."""
    (settings.run_dir / "engine.json").unlink(missing_ok=True)
    key_file(settings).unlink(missing_ok=True)


def is_alive(running: RunningEngine) -> bool:
    """Tell whether that very process still runs, not another one that was given its pid."""
    import psutil

    try:
        zombie = psutil.Process(running.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
    return not zombie and abs(start_time(running.pid) - running.started) < START_TOLERANCE


def start_time(pid: int) -> float:
    """Return when a process started, in a measure that setting the clock does not change; 0 if it is gone already.

    On Linux psutil counts from the boot time, which is the clock's time minus the uptime and so moves with the clock.
    """
    import psutil

    try:
        if sys.platform == "linux":
            fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            return int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22, counted from 1 and with the two before ")"
        else:  # noqa: RET505 - for mypy, which knows one platform at a time
            return float(psutil.Process(pid).create_time())
    except (psutil.Error, OSError, ValueError, IndexError):
        return 0.0


def _boot() -> str:
    """Return a name of this run of the system, as start times are counted from its beginning."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def listens(pid: int, port: int) -> bool:
    """Tell whether a process or a child of it listens on a port; true if the system does not let us know."""
    import psutil

    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            connections = each.net_connections("tcp")
            if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections):
                return True
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        pass
    return False


# -- the log -------------------------------------------------------------------------------------------------------


def open_log(settings: Settings) -> Path:
    """Return the engine's log file, setting a large one aside first.

    :raises Unavailable: it cannot be written.
    """
    path = settings.logs_dir / "engine.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            # A pipe would wait for a reader for ever, and /dev/full has no end.
            log.warning("The engine's log %s is no file; it is replaced by one.", path)
            path.unlink()
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            _make_room(path)
            path.replace(path.with_suffix(".log.1"))
        path.open("ab").close()
    except OSError as error:
        raise Unavailable(
            f"The engine's log {path} cannot be written ({error.strerror}); fix that and retry."
        ) from error
    return path


def cut_log(path: Path) -> bool:
    """Set the lines of a large log aside while the engine goes on writing to it; return whether that was done.

    The engine's handle appends, so it goes on at the beginning of the emptied file. On Windows it would not, so there
    the log is only set aside at a start.
    """
    copy = path.with_suffix(".log.partial")
    try:
        if sys.platform == "win32" or path.stat().st_size <= LOG_LIMIT:
            return False
        # Before the older ones move up, or a full disk would cost one of them at each try.
        shutil.copyfile(path, copy)
        _make_room(path)
        copy.replace(path.with_suffix(".log.1"))
        os.truncate(path, 0)
    except FileNotFoundError:
        return False  # an engine that runs elsewhere writes no log here
    except OSError as error:
        with suppress(OSError):
            copy.unlink()
        log.warning("The engine's log %s cannot be set aside (%s); fix that.", path, error.strerror)
        return False
    return True


def _make_room(path: Path) -> None:
    for number in range(LOGS_KEPT, 1, -1):
        newer = path.with_suffix(f".log.{number - 1}")
        if newer.exists():
            newer.replace(path.with_suffix(f".log.{number}"))


def log_lines(path: Path, begin: int = 0, *, limit: int = 64 << 10) -> list[str]:
    """Return the lines of a log after a position in bytes, the last 64 KiB of them at most."""
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begin, size - limit, 0))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def last_lines(path: Path, begin: int = 0) -> list[str]:
    """Return the lines around the end of an engine, without what it said of requests that it answered.

    The engine's clock may show another zone, so the times in the log are compared with each other only.

    :param begin: a position in bytes; nothing before it counts.
    """
    try:
        if time.time() - path.stat().st_mtime > END.total_seconds():
            return []
    except OSError:
        return []
    lines = log_lines(path, begin)
    times = [_time_of(line) for line in lines]
    last = max((each for each in times if each), default=None)
    found = []
    keep = True
    for line, written in zip(lines, times, strict=True):
        if written and last:  # a line without a time goes on the one before it
            keep = last - written <= END and not ANSWERED.match(line)
        if keep:
            found.append(line)
    return found


def _time_of(line: str) -> datetime | None:
    match = STAMP.match(line)
    try:
        return datetime.fromisoformat(match["time"]) if match else None
    except ValueError:
        return None


def error_lines(lines: list[str], *, most: int = 5) -> list[str]:
    """Return the last lines that tell of errors, without their prefix; else the last that is not of OVMS's own form.

    Such a line is what the loader, the shell or Python says of an engine that did not come so far.
    """
    found = [PREFIX.sub("", line).strip() for line in lines if ERRORS.search(line)]
    if not found:
        found = [line.strip() for line in lines if line.strip() and not PREFIX.match(line)][-1:]
    return found[-most:]
