"""Commands about the engine: run it, look at it, install another one."""

import os
import sys
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer

from ovms_cli import output
from ovms_cli.session import Json, Session, add
from ovms_kernel.api.administration import check_host, newest_engine, report_engine, skipped_platforms, use_engine
from ovms_kernel.api.commands import ENGINE_KINDS, NotFound, running

if TYPE_CHECKING:
    from io import TextIOWrapper


LOG = "engine.log"
CLEAR = "\033[H\033[2J\033[H"
"""Empties a terminal."""
WATCH_TICK = 2.0
"""Seconds between two looks at what the engine does."""
FOLLOW_TICK = 0.25
"""Seconds between two looks at a log that is followed."""
Version = Annotated[
    str, typer.Argument(metavar="VERSION", help="Version, as `engine ls` lists it.", show_default=False)
]
AnyVersion = Annotated[
    str, typer.Argument(metavar="VERSION", help="Version; the newest known to work if left out.", show_default=False)
]


def add_to(app: typer.Typer) -> None:
    """Add these commands, and the group ``engine``."""
    add(app, status, logs)
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Install, choose and remove engine versions.")
    add(group, ls, install, use, upgrade, remove)
    app.add_typer(group, name="engine")


async def status(
    session: Session,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep running and show changes.")] = False,
    json: Json = False,
) -> None:
    """Show whether the engine runs, where, and what it serves."""
    report = await _status(session)
    _show_status(report, json=json)
    session.kept = "No longer watching."
    while watch:
        await anyio.sleep(WATCH_TICK)
        before, report = report, await _status(session)
        if report != before:
            print(CLEAR if sys.stdout.isatty() and not json else "")
            _show_status(report, json=json)


def _show_status(report: dict[str, Any], *, json: bool) -> None:
    if json:
        output.print_json(report)
    else:
        shown = report | {"models": ", ".join(report["models"])}
        for face in [name for name, value in shown.items() if isinstance(value, dict)]:
            shown |= {f"{face}_{name}": value for name, value in shown.pop(face).items()}
        output.print_facts({name.replace("_", " "): str(value) for name, value in shown.items() if value})
    sys.stdout.flush()


async def _status(session: Session) -> dict[str, Any]:
    faces = session.extensions(["faces"]).faces
    async with session.kernel(kinds=ENGINE_KINDS) as kernel:
        runs = await running(kernel)
        models = [each.id for each in await kernel.running_models() if each.id == each.served_as] if runs else []
        engine = report_engine(kernel)
    return {
        "engine": engine.state,
        "version": engine.version,
        "rest": engine.rest,
        "grpc": engine.grpc,
        "pid": engine.pid,
        "models": models,
        "data_dir": session.settings.data_dir,
        **{name: dict(face.status(session.settings)) for name, face in faces.items() if hasattr(face, "status")},
    }


async def logs(
    session: Session,
    *,
    lines: Annotated[int, typer.Option("-n", "--lines", metavar="N", min=0, help="Number of last lines.")] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Follow the log as it grows.")] = False,
) -> None:
    """Print the engine's log."""
    session.kept = "No longer following the log."
    path = session.settings.logs_dir / LOG
    if not path.is_file():
        raise NotFound(f"There is no log at {path} yet; it begins when the engine is first started.")
    with ExitStack() as stack:
        file = stack.enter_context(path.open(encoding="utf-8", errors="replace"))
        for line in deque(file, maxlen=lines):
            print(line, end="")
        sys.stdout.flush()
        while follow:
            if line := file.readline():
                print(line, end="", flush=True)
                continue
            await anyio.sleep(FOLLOW_TICK)
            if _has_begun_anew(path, file):
                stack.close()
                file = stack.enter_context(path.open(encoding="utf-8", errors="replace"))


def _has_begun_anew(path: Path, file: "TextIOWrapper") -> bool:
    """Tell whether a long log was set aside since it was read: moved before a start, or copied and emptied later."""
    try:
        now = path.stat()
    except OSError:
        return False
    return not os.path.samestat(now, os.fstat(file.fileno())) or now.st_size < os.lseek(file.fileno(), 0, os.SEEK_CUR)


def ls(session: Session, *, json: Json = False) -> None:
    """List the engine versions on this machine."""
    active, versions = session.installations().active(), session.installations().versions()
    if json:
        output.print_json([output.plain(each) | {"active": each == active} for each in versions])
    elif versions:
        rows = [(each.version, each.platform, "active" if each == active else "") for each in versions]
        output.print_table(("VERSION", "PLATFORM", ""), rows)
    else:
        output.say("No engine is installed; `ovms-plugin engine install` does that.")


async def install(
    session: Session,
    version: AnyVersion = "",
    *,
    platform: Annotated[
        str,
        typer.Option(metavar="NAME", help="Platform to use instead of the best, such as portable.", show_default=False),
    ] = "",
    retry: Annotated[
        bool, typer.Option("--retry", help="Retry platforms that were refused or did not run here.")
    ] = False,
    json: Json = False,
) -> None:
    """Install an engine and make it the active one.

    Nothing happens if it is already. Where a platform that fits better failed to download, it is tried again.
    """
    session.kept = "Interrupted; the partial download is kept. Run the same command again to resume."
    async with session.kernel() as kernel:
        with output.progress("engine") as report:
            installation = await kernel.install_engine(version, platform=platform, retry=retry, report=report)
        skipped = skipped_platforms(kernel)
        findings = dict(await check_host(kernel))
    for each in skipped:
        how = "; `ovms-plugin engine install --retry` tries it again" if each.final else ""
        output.say(f"Platform {each.platform} is not used: {each.cause.rstrip('.')}{how}.")
    for finding in findings.get(f"platforms.{installation.platform}", ()):
        output.say(f"{finding.text}.{f' To change that: {finding.remedy}' if finding.remedy else ''}")
    if json:
        output.print_json(installation)
    else:
        print(f"Engine {installation.version} ({installation.platform}) is installed and active.")


async def use(session: Session, version: Version) -> None:
    """Make an installed version the active one.

    An engine that runs is not touched; the version counts from the next start on.
    """
    async with session.kernel() as kernel:
        await use_engine(kernel, version)
    print(f"Engine {version} is active from the next start on.")


async def upgrade(session: Session, version: AnyVersion = "", *, json: Json = False) -> None:
    """Change to another version.

    The old one is put back if the new one does not come up healthy.
    """
    session.kept = "Interrupted; the engine version is as it was."
    async with session.kernel() as kernel:
        with output.progress("engine") as report:
            # The kernel fetches nothing unless a version is named, as AOG asks it for an upgrade after every start.
            installation = await kernel.upgrade_engine(version or newest_engine(kernel), report=report)
    if json:
        output.print_json(installation)
    else:
        print(f"Engine {installation.version} is active.")


async def remove(session: Session, version: Version) -> None:
    """Delete a version that is not the active one."""
    await session.installations().remove(version)
    print(f"Engine {version} is removed.")
