"""Installing into this environment by uv or pip, and what became of the extensions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import anyio
import msgspec

from ovms_kernel.api.commands import BadRequest, EngineFailed, PreconditionFailed, say

ESSENTIAL = ("ovms-kernel", "ovms-cli", "ovms-authoring", "ovms-plugin")
"""Distributions that this command itself needs."""


async def install(names: list[str]) -> None:
    """Install distributions and print the state of each extension that is new.

    :raises EngineFailed: the installer, or an extension, fails.
    """
    before = await _reports()
    await _run(["install", *map(_requirement, names)])
    reports = await _reports()
    new = [each for key, each in reports.items() if before.get(key) != each]
    if not new:
        say("Nothing changed: no extension is new in this environment.")
    for each in new:
        print(f"{each.kind}.{each.name}  {each.state}  {each.distribution} {each.version}  {each.cause}".rstrip())
    if broken := [each for each in new if each.state == "broken"]:
        raise EngineFailed(f"{broken[0].kind}.{broken[0].name} cannot be used: {broken[0].cause}.")


async def remove(names: list[str]) -> None:
    """Remove distributions.

    :raises BadRequest: one is needed by this command, or offers no extension.
    """
    owners = {_normal(each.distribution) for each in (await _reports()).values()}
    for each in names:
        if _normal(each) in ESSENTIAL:
            raise BadRequest(f"{each} is what runs this command; remove it with pip or uv.")
        if _normal(each) not in owners:
            raise BadRequest(f"{each} offers no extension here; `ovms-plugin extension list` shows those that do.")
    await _run(["uninstall", *names])
    say(f"Removed {', '.join(names)}.")


class Report(msgspec.Struct, frozen=True):
    """One extension, as ``ovms-plugin extensions --json`` prints it."""

    kind: str
    name: str
    distribution: str
    version: str
    state: str
    cause: str = ""


async def _reports() -> dict[str, Report]:
    """Return what a new process finds, as this one has imported what was there."""
    command = [sys.executable, "-m", "ovms_cli", "extensions", "--json"]
    done = await anyio.run_process(command, check=False)
    try:
        found = msgspec.json.decode(done.stdout, type=list[Report])
    except msgspec.DecodeError as error:
        said = done.stderr.decode(errors="replace").strip()
        raise EngineFailed(f"The extensions cannot be listed: {said}") from error
    return {f"{each.kind}.{each.name} of {each.distribution}": each for each in found}


async def _run(words: list[str]) -> None:
    command = [*_installer(words[0]), *words[1:]]
    done = await anyio.run_process(command, stdout=subprocess.DEVNULL, stderr=None, check=False, env=os.environ)
    if done.returncode:
        raise EngineFailed(f"`{' '.join(command)}` ended with code {done.returncode}.")


def _installer(verb: str) -> list[str]:
    """Return the command of an installer for the environment of this process."""
    beside = Path(sys.executable).with_name("uv" + (".exe" if os.name == "nt" else ""))
    if uv := str(beside) if beside.exists() else shutil.which("uv"):
        return [uv, "pip", verb, "--quiet", "--python", sys.executable]
    if find_spec("pip"):
        quiet = ["--quiet", "--yes"] if verb == "uninstall" else ["--quiet"]
        return [sys.executable, "-m", "pip", verb, "--disable-pip-version-check", *quiet]
    raise PreconditionFailed("Neither uv nor pip is installed; install pip with `python -m ensurepip`.")


def _requirement(name: str) -> str:
    """Return what installers take: a path as it is from the root, as a bare name means an index's distribution."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
