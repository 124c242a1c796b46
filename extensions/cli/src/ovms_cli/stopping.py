"""``stop`` and ``restart``: the server that runs for this data folder."""

import sys
from pathlib import Path
from typing import Annotated

import anyio
import anyio.to_thread
import psutil
import typer

from ovms_cli import autostart, output
from ovms_cli import models as about_models
from ovms_cli.autostart import program
from ovms_cli.completing import installed
from ovms_cli.session import Session, add
from ovms_kernel.api.commands import BadRequest, OvmsError, TimedOut, read_server

PATIENCE = 30.0
"""Seconds that a server has to end; its engine alone may take eight."""
LOOK = 0.1
"""Seconds between two looks at a server that ends."""


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    add(app, stop, restart)


async def stop(
    session: Session,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            autocompletion=installed,
            help="Unload these instead, as `unload` does.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Stop the server of this data folder.

    With models, they are unloaded and the server goes on.
    """
    if models:
        await about_models.unload(session, models)
        return
    server = serving(session.settings.data_dir)
    if server is None:
        print("No server is running.")
        return
    await _end(session, server)
    print("The server is stopped; models and settings are kept.")


async def restart(session: Session) -> None:
    """Stop the server and start it again in the background.

    It keeps its options, and changed settings take effect. One that `service install` starts remains a service.
    """
    server = serving(session.settings.data_dir)
    if server is None:
        output.say("No server is running; starting one.")
        command = [*program(), "serve"]
        if session.data_dir_given:
            command += ["--data-dir", str(session.settings.data_dir)]
    elif managed(server):
        await autostart.restart(session)
        return
    else:
        command = await anyio.to_thread.run_sync(server.cmdline)
        if "serve" not in command:
            raise BadRequest(f"The server is part of `{' '.join(command)}`, process {server.pid}; restart that.")
        await _end(session, server)
    session.kept = "Interrupted; `ovms-plugin status` shows whether the server runs."
    done = await anyio.run_process([*command, "--detach"], check=False, stdin=None, stdout=None, stderr=None)
    session.code = done.returncode


async def _end(session: Session, server: psutil.Process) -> None:
    """End a server and wait for that.

    :raises OvmsError: it belongs to somebody else.
    :raises TimedOut: it goes on.
    """
    session.kept = "Interrupted; the server is stopping."
    try:
        with output.waiting("stopping"):
            server.terminate()
            with anyio.fail_after(PATIENCE):
                while not _ended(server):  # noqa: ASYNC110 - no event tells of a process that is not a child
                    await anyio.sleep(LOOK)
    except psutil.NoSuchProcess:
        pass
    except psutil.AccessDenied as error:
        raise OvmsError(f"The server is process {server.pid} of another user; stop it as that user.") from error
    except TimeoutError as error:
        raise TimedOut(f"The server, process {server.pid}, did not end within {PATIENCE:.0f} s; try again.") from error


def managed(server: psutil.Process, system: str = sys.platform) -> bool:
    """Tell whether the system's manager of services started a server."""
    if system == "linux":
        try:
            return f"/{autostart.NAME}.service" in Path(f"/proc/{server.pid}/cgroup").read_text("ascii", "replace")
        except OSError:
            return False
    # launchd is the parent of what it manages; on Windows nothing tells a task from another process.
    return system == "darwin" and server.ppid() == 1 and autostart.agent(Path.home()).exists()


def serving(data_dir: Path) -> psutil.Process | None:
    """Return the process that serves a data folder; ``None`` if none does."""
    server = read_server(data_dir)
    try:
        return psutil.Process(server.pid) if server else None
    except psutil.NoSuchProcess:  # it has just ended
        return None


def _ended(process: psutil.Process) -> bool:
    # One that its parent has not asked after yet is still listed.
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
