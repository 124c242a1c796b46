"""``ovms-plugin service``: have `serve` start when you log in, through the system's own manager of user services."""

import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import list2cmdline
from typing import Annotated

import anyio.to_thread
import typer

from ovms_cli.session import Session, add
from ovms_kernel.api.commands import NotSupported, PreconditionFailed

NAME = "ovms-plugin"
LABEL = "ovms-plugin.serve"
"""What launchd calls it."""


@dataclass(frozen=True)
class Plan:
    """What it takes on one system; each command is run in order."""

    manager: str
    """The program that has to be there."""
    file: Path | None
    """Where the service is described; Windows keeps that itself."""
    text: bytes
    install: Sequence[Sequence[str]]
    uninstall: Sequence[Sequence[str]]
    status: Sequence[str]
    restart: Sequence[Sequence[str]]
    log: str
    """How to see what it prints."""


def plan(system: str, command: Sequence[str], home: Path, environment: Mapping[str, str]) -> Plan:
    """Return what it takes to start a command at login.

    :param system: as ``sys.platform`` has it.
    :raises NotSupported: nothing is known of this system.
    """
    if system == "linux":
        config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
        return Plan(
            "systemctl",
            config / "systemd" / "user" / f"{NAME}.service",
            _unit(command).encode(),
            [["systemctl", "--user", "daemon-reload"], ["systemctl", "--user", "enable", "--now", NAME]],
            [["systemctl", "--user", "disable", "--now", NAME]],
            ["systemctl", "--user", "status", "--no-pager", NAME],
            [["systemctl", "--user", "restart", NAME]],
            f"journalctl --user -u {NAME}",
        )
    if system == "darwin":
        return _launch_agent(command, home)
    if system == "win32":
        task = ["schtasks", "/TN", NAME]
        made = ["schtasks", "/Create", "/F", "/SC", "ONLOGON", "/TN", NAME, "/TR", list2cmdline(command)]
        return Plan(
            "schtasks",
            None,
            b"",
            [made, [*task, "/Run"]],
            [[*task, "/End"], [*task, "/Delete", "/F"]],
            [*task, "/Query"],
            [[*task, "/End"], [*task, "/Run"]],
            f"{NAME} logs",
        )
    raise NotSupported(f"Starting at login is not supported on {system}; start `ovms-plugin serve` in another way.")


def _launch_agent(command: Sequence[str], home: Path) -> Plan:
    path = agent(home)
    log = home / "Library" / "Logs" / f"{NAME}.log"
    domain = f"gui/{os.getuid() if hasattr(os, 'getuid') else 0}"
    described = {
        "Label": LABEL,
        "ProgramArguments": list(command),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "StandardOutPath": str(log),
        "StandardErrorPath": str(log),
    }
    return Plan(
        "launchctl",
        path,
        plistlib.dumps(described),
        [["launchctl", "bootstrap", domain, str(path)]],
        [["launchctl", "bootout", f"{domain}/{LABEL}"]],
        ["launchctl", "print", f"{domain}/{LABEL}"],
        [["launchctl", "kickstart", "-k", f"{domain}/{LABEL}"]],
        f"tail {log}",
    )


def agent(home: Path) -> Path:
    """Return the file that describes the service to launchd."""
    return home / "Library" / "LaunchAgents" / f"{LABEL}.plist"


def _unit(command: Sequence[str]) -> str:
    # systemd splits at spaces, and takes % and $ for its own.
    taken = str.maketrans({"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"})
    words = " ".join(f'"{each.translate(taken)}"' for each in command)
    return f"""\
[Unit]
Description=OpenVINO models at one HTTP address
Documentation=man:ovms-plugin(1)

[Service]
ExecStart={words}
Restart=on-failure
# What `ovms-plugin stop` and Ctrl-C end it with.
SuccessExitStatus=130 143
RestartSec=2
TimeoutStopSec=60

[Install]
WantedBy=default.target
"""


def add_to(app: typer.Typer) -> None:
    """Add the group ``service``."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Start `serve` when you log in.")
    add(group, install, uninstall, status)
    app.add_typer(group, name="service")


async def install(
    session: Session,
    *,
    show: Annotated[bool, typer.Option("--show", help="Only print what would be installed.")] = False,
) -> None:
    """Start `serve` now and at each login."""
    found = _plan(session)
    if show:
        print(found.text.decode() or "\n".join(list2cmdline(each) for each in found.install))
        return
    _need(found)
    if found.file is not None:
        found.file.parent.mkdir(parents=True, exist_ok=True)
        found.file.write_bytes(found.text)
    for command in found.install:
        await anyio.to_thread.run_sync(_call, command)
    print(
        f"`serve` runs, and starts at each login. `{found.log}` shows its log, `ovms-plugin service uninstall` ends it."
    )


async def uninstall(session: Session) -> None:
    """Stop `serve`, and start it at login no more."""
    found = _plan(session)
    _need(found)
    if found.file is not None and not found.file.exists():
        print("The service is not installed.")
        return
    for command in found.uninstall:
        await anyio.to_thread.run_sync(_call, command)
    if found.file is not None:
        found.file.unlink(missing_ok=True)
    print("The service is uninstalled; models and settings are kept.")


async def status(session: Session) -> None:
    """Show what the system says of the service."""
    found = _plan(session)
    _need(found)
    if found.file is not None and not found.file.exists():
        print("The service is not installed; `ovms-plugin service install` does that.")
        session.code = 1
        return
    done = await anyio.to_thread.run_sync(lambda: subprocess.run(found.status, check=False))
    session.code = done.returncode


async def restart(session: Session) -> None:
    """Have the system's manager restart the service."""
    for command in _plan(session).restart:
        await anyio.to_thread.run_sync(_call, command)
    print("The service is restarted.")


def program() -> list[str]:
    """Return the words that start this program."""
    installed = Path(sys.executable).with_name(NAME + (".exe" if os.name == "nt" else ""))
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "ovms_cli"]


def _plan(session: Session) -> Plan:
    command = [*program(), "serve"]
    if session.data_dir_given:
        command += ["--data-dir", str(session.settings.data_dir)]
    return plan(sys.platform, command, Path.home(), os.environ)


def _need(found: Plan) -> None:
    if shutil.which(found.manager) is None:
        raise PreconditionFailed(
            f"This system has no {found.manager}; start `ovms-plugin serve` in the way that it has instead."
        )


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise PreconditionFailed(f"`{list2cmdline(command)}` failed: {said or f'exit code {done.returncode}'}.")
