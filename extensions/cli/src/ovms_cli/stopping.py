"""``ovms-plugin stop``: ends the server that runs for this data folder, or unloads models."""

import json
from pathlib import Path
from typing import Annotated

import anyio
import psutil
import typer

from ovms_cli import models as about_models
from ovms_cli import output
from ovms_cli.session import Session, add
from ovms_kernel.errors import OvmsError, TimedOut

PATIENCE = 30.0
"""Seconds that a server has to end; its engine alone may take eight."""
LOOK = 0.1
"""Seconds between two looks at a server that ends."""
CLOCK = 2.0
"""Seconds by which the clocks of processes and files may differ."""


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    add(app, stop)


async def stop(
    session: Session,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Unload these instead, as `unload` does.", show_default=False),
    ] = None,
) -> None:
    """Stop the server that runs for this data folder.

    With models, they are unloaded and the server goes on.
    """
    if models:
        await about_models.unload(session, models)
        return
    server = serving(session.settings.data_dir)
    if server is None:
        print("No server runs here.")
        return
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
    print("The server is stopped; models and settings are kept.")


def serving(data_dir: Path) -> psutil.Process | None:
    """Return the process that serves a data folder; ``None`` if none does."""
    file = data_dir / "run" / "http.json"
    try:
        process = psutil.Process(int(json.loads(file.read_bytes())["pid"]))
        # A process that began after the file was written only has the number of one that is gone.
        old = process.create_time() <= file.stat().st_mtime + CLOCK
        return process if old and not _ended(process) else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def _ended(process: psutil.Process) -> bool:
    # One that its parent has not asked after yet is still listed.
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
