"""Commands that report: what is installed, and what is wrong."""

import os
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import anyio.to_thread
import typer
from msgspec.structs import replace

from ovms_cli import checkup, output
from ovms_cli.session import Json, Session, add
from ovms_kernel.api.administration import diagnose
from ovms_kernel.api.commands import DRIVER_PROTOCOLS, KERNEL_KINDS, ExtensionReport, Extensions, Finding
from ovms_kernel.api.configuration import ELSEWHERE

if TYPE_CHECKING:
    from ovms_kernel.api.commands import Kernel

OTHERS = [each for each in DRIVER_PROTOCOLS if each not in KERNEL_KINDS]
"""Kinds of extension that a kernel is not composed of."""
ROOM = 5 << 30
"""Bytes that an engine and a small model need at least."""
MARKS = {"ok": "✓", "warning": "!", "error": "✗"}
COLORS = {"ok": "green", "warning": "yellow", "error": "red"}


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    add(app, doctor, extensions)


async def extensions(session: Session, *, json: Json = False) -> None:
    """List the extensions, with the reason if one is not used."""
    async with session.kernel() as kernel:
        others = await anyio.to_thread.run_sync(lambda: session.extensions(OTHERS))
        known = {each.key for each in kernel.reports}
        reports = [*kernel.reports, *(each for each in others.reports if each.key not in known)]
        reports = [replace(each, cause=each.cause or _declined(each, kernel, others)) for each in reports]
    if json:
        output.print_json(reports)
        return
    rows = [(each.key, each.state, f"{each.distribution} {each.version}".strip(), each.cause) for each in reports]
    output.print_table(("EXTENSION", "STATE", "FROM", ""), rows)


def _declined(report: ExtensionReport, kernel: "Kernel", others: Extensions) -> str:
    """Return which faces do not offer a service, and why."""
    if report.kind != "services" or report.name not in kernel.services:
        return ""
    definition = kernel.services[report.name].definition
    causes = {name: face.why_not(definition) for name, face in others.faces.items() if hasattr(face, "why_not")}
    return "; ".join(f"not offered by {name}: {cause}" for name, cause in causes.items() if cause)


async def doctor(
    session: Session,
    *,
    fix: Annotated[
        bool, typer.Option("--fix", help="Fix what is safe to fix, and install an engine if there is none.")
    ] = False,
    json: Json = False,
) -> None:
    """Check this machine and suggest fixes.

    The exit code is 1 if something stands in the way.
    """
    async with session.kernel() as kernel:
        if fix:
            for done in await checkup.fix(session, kernel):
                output.say(done)
        findings = [*_host(kernel), *await diagnose(kernel), *_disk(session), *await checkup.network(kernel)]
    if json:
        output.print_json(findings)
    else:
        _print(findings)
    session.code = 1 if any(each.level == "error" for each in findings) else 0


def _print(findings: list[Finding]) -> None:
    from rich.text import Text

    console = output.stdout()
    width = max(len(each.subject) for each in findings)
    for each in findings:
        mark = Text(MARKS[each.level], COLORS[each.level])
        lines = _folded(each.text, console.width - width - 5)
        console.print(Text.assemble(mark, f" {each.subject:<{width}}   {lines[0]}"))
        lines = [f"  {line}" for line in lines[1:]]
        if each.remedy:
            first, *rest = _folded(each.remedy, console.width - width - 7)
            lines += [f"→ {first}", *(f"  {line}" for line in rest)]
        for line in lines:
            console.print(Text(f"  {'':<{width}}   {line}"))


def _folded(text: str, width: int) -> list[str]:
    """Return a text in lines of a terminal, broken between words; elsewhere in one."""
    if not sys.stdout.isatty():
        return [text]
    return output.folded(text, max(width, 20))


def _host(kernel: "Kernel") -> list[Finding]:
    host = kernel.host
    system = f"{host.distribution or host.os} {host.version}".strip()
    memory = f", {output.size(host.memory)} of memory" if host.memory else ""
    return [Finding("ok", "system", f"{system} on {host.machine}{memory}; devices: {', '.join(host.devices)}")]


def _disk(session: Session) -> list[Finding]:
    folder = session.settings.data_dir
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not os.access(existing, os.W_OK):
        return [Finding("error", "disk", f"{existing} cannot be written", f"Fix that, or {ELSEWHERE}.")]
    free = shutil.disk_usage(existing).free
    text = f"{output.size(free)} free for {folder}"
    if free < ROOM:
        return [Finding("warning", "disk", text, "Set data_dir to a folder on a larger disk.")]
    return [Finding("ok", "disk", text)]
