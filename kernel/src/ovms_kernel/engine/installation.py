"""Engine versions on disk: fetched, verified, extracted, tried, renamed into place, and one of them active.

A version is a folder ``engine/versions/<version>`` with a note in it; whatever is not finished ends in
``.partial``. The file ``engine/active`` names the version in use. Killed anywhere, there is the old state or a partial
folder that the next install resumes or replaces.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec

from ovms_kernel.engine.record import Record
from ovms_kernel.errors import BadRequest, EngineFailed, NotFound, TimedOut, Unavailable
from ovms_kernel.files import locked, patiently, read_struct, rename, write_atomically
from ovms_kernel.values import Installation, Ports, Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from ovms_kernel.drivers import Platform
    from ovms_kernel.events import Events
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import Release

log = logging.getLogger(__name__)

NOTE = "installation.json"
VERSION_LINE = "OpenVINO Model Server "
"""How the first line of ``ovms --version`` begins."""
TRY_LIMIT = 60.0
"""Seconds that ``--version`` may take; the first start of a large program off a slow disk does take long."""


class Installations:
    """The engine versions of one data folder."""

    def __init__(self, settings: Settings, events: Events) -> None:
        self._settings = settings
        self._events = events

    def active(self) -> Installation | None:
        """Return the version in use; ``None`` if there is none, or its folder is gone."""
        try:
            version = patiently(self._settings.active_file.read_bytes).decode().strip()
        except (OSError, UnicodeDecodeError):
            return None
        try:
            check_version(version)
        except BadRequest:
            return None
        return self._read(self._settings.versions_dir / version)

    def versions(self) -> list[Installation]:
        """Return every complete version, oldest first."""
        if not self._settings.versions_dir.is_dir():
            return []
        found = [self._read(each) for each in self._settings.versions_dir.iterdir()]
        return sorted((each for each in found if each), key=lambda each: version_key(each.version))

    def find(self, version: str) -> Installation:
        """Return one complete version.

        :raises NotFound: it is not installed; the sentence says what is.
        """
        versions = {each.version: each for each in self.versions()}
        if version not in versions:
            there = ", ".join(versions) or "none"
            raise NotFound(f"Engine version {version} is not installed (installed: {there}); install it first.")
        return versions[version]

    async def install(
        self,
        name: str,
        platform: Platform,
        release: Release,
        report: Callable[[Progress], None] = lambda _: None,
        *,
        activate: bool = True,
    ) -> Installation:
        """Install a release, or find that it is installed, and make it the active one.

        :param name: of the platform driver.
        :raises Refused: an extension does not want it.
        :raises EngineFailed: it was installed and does not run here; nothing has changed.
        """
        check_version(release.version)
        target = self._settings.versions_dir / release.version
        installation = await anyio.to_thread.run_sync(self._read, target)
        if installation is None:
            await self._events.ask("ovms_before_install", release=release, target=target)
            async with _only_one(self._settings):
                # Another process may have been quicker.
                installation = self._read(target) or await self._make(name, platform, release, target, report)
        if activate:
            await self.activate(installation)
        report(Progress("success", release.size or 0, release.size or 0, release.version))
        return installation

    async def activate(self, installation: Installation) -> None:
        """Switch to a version; one atomic replacement of the pointer."""
        await anyio.to_thread.run_sync(self._switch, installation.version)
        await self._events.tell("ovms_installed", installation=installation)

    async def remove(self, version: str) -> None:
        """Remove a version that is not active.

        :raises BadRequest: it is the active one.
        """
        found = self.find(version)
        active = self.active()
        if active and active.version == version:
            raise BadRequest(
                f"Engine version {version} is in use; switch to another one with `ovms-plugin engine use`."
            )
        # What is half removed must not look complete.
        doomed = found.directory.with_name(found.directory.name + ".partial")
        await anyio.to_thread.run_sync(_remove, doomed)
        await anyio.to_thread.run_sync(rename, found.directory, doomed)
        await anyio.to_thread.run_sync(_remove, doomed)

    def read_record(self) -> Record:
        """Return what earlier installs found out about platforms."""
        return read_struct(self._settings.active_file.with_name("platform.json"), Record) or Record()

    def write_record(self, record: Record) -> None:
        """Note what an install found out; nothing is written if that is known."""
        if record != self.read_record():
            text = json.dumps(msgspec.to_builtins(record), indent=1) + "\n"
            write_atomically(self._settings.active_file.with_name("platform.json"), text.encode())

    def forget(self, release: Release) -> None:
        """Remove what was fetched of a release that will not be installed."""
        from ovms_kernel.engine.archives import discard_download

        discard_download(self._settings, release)

    async def _make(
        self, name: str, platform: Platform, release: Release, target: Path, report: Callable[[Progress], None]
    ) -> Installation:
        partial = target.with_name(target.name + ".partial")
        digest = None
        if release.archive:
            from ovms_kernel.engine.archives import discard_download, fetch_and_extract

            digest = await fetch_and_extract(self._settings, release, partial, report)
        else:
            partial.mkdir(parents=True, exist_ok=True)
        installation = Installation(release.version, partial, name, digest)
        report(Progress("verifying", release.size or 0, release.size or 0, release.version))
        try:
            said = await try_version(platform, installation)
        except EngineFailed as error:
            explained = await _explained(error, platform, installation)
            await anyio.to_thread.run_sync(_remove, partial)
            raise explained from error
        log.info("Engine %s says that it is %s", release.version, said)
        if release.archive and not f"{said}.".startswith(f"{release.version}."):
            await anyio.to_thread.run_sync(_remove, partial)
            discard_download(self._settings, release)
            raise EngineFailed(
                f"{release.archive} holds version {said}, not {release.version}; report that to its vendor."
            )
        note = {
            "version": release.version,
            "reported": said,
            "platform": name,
            "sha256": digest,
            "archive": release.archive,
        }
        await anyio.to_thread.run_sync(_publish, partial, target, note)
        if release.archive:
            discard_download(self._settings, release)
        return Installation(release.version, target, name, digest)

    def _read(self, directory: Path) -> Installation | None:
        if directory.suffix == ".partial":
            return None
        try:
            note = json.loads((directory / NOTE).read_text("utf-8"))
            return Installation(note["version"], directory, note["platform"], note.get("sha256"))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _switch(self, version: str) -> None:
        write_atomically(self._settings.active_file, f"{version}\n".encode())


class AlreadyInstalling(Unavailable):
    """Another process installs an engine in this data folder."""


@asynccontextmanager
async def _only_one(settings: Settings) -> AsyncIterator[None]:
    """Keep other processes from installing at the same time.

    :raises AlreadyInstalling: one installs already.
    """
    settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(locked(settings.run_dir / "install.lock", timeout=0))
        except TimedOut as error:
            raise AlreadyInstalling(
                "Another process is installing an engine in this data folder; wait for it."
            ) from error
        yield


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _publish(partial: Path, target: Path, note: dict[str, str | None]) -> None:
    write_atomically(partial / NOTE, (json.dumps(note, indent=1) + "\n").encode())
    if target.exists():  # a folder without a note in it: what was there is not an installation
        shutil.rmtree(target)
    rename(partial, target)


async def try_version(platform: Platform, installation: Installation) -> str:
    """Run the engine's ``--version`` in the environment it will be started in and return the version it names.

    :raises EngineFailed: it does not run here; the sentence says why.
    """
    from ovms_kernel.engine.exit_status import cause_of

    plan = platform.launch(installation, Ports(0, 0))
    if not plan.argv:
        return installation.version
    try:
        with anyio.fail_after(TRY_LIMIT):
            done = await anyio.run_process(
                [*plan.argv, "--version"],
                env=dict(plan.env),
                cwd=plan.cwd,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                check=False,
            )
    except TimeoutError as error:
        raise EngineFailed(
            f"Engine {installation.version} did not tell its version within {TRY_LIMIT:g} s; try again."
        ) from error
    except OSError as error:
        raise EngineFailed(f"Engine {installation.version} cannot be started here: {error.strerror}.") from error
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    for line in lines:
        if done.returncode == 0 and line.startswith(VERSION_LINE):
            return line.removeprefix(VERSION_LINE).strip()
    cause = cause_of(done.returncode, [line for line in lines if line.strip()][-3:])
    raise EngineFailed(f"Engine {installation.version} does not run on this system: {cause}.")


async def _explained(error: EngineFailed, platform: Platform, installation: Installation) -> EngineFailed:
    """Return the error with what the system lacks and the commands that fix it, where that is why."""
    lacks = [each for each in await platform.requirements(installation) if each.fatal]
    if not lacks:
        return error
    words = "; ".join(f"{each.what}: {each.remedy}" for each in lacks)
    return EngineFailed(
        f"Engine {installation.version} does not run here, as the system lacks {words}; then try again."
    )


def check_version(version: str) -> None:
    """Refuse a version that could not be a folder's name.

    :raises BadRequest: it could not.
    """
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,63}", version) or version.endswith((".partial", ".")):
        raise BadRequest(f"{version!r} is not an engine version; name one such as 2026.4.1.")


def version_key(version: str) -> list[tuple[int, str]]:
    """Return what versions are sorted by: numbers as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.+_-]", version)]
