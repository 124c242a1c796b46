"""From a release to an unpacked folder: mirrors, digests, space, and what is kept when it is interrupted."""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

import anyio
import anyio.to_thread
import msgspec

from ovms_kernel.errors import BadRequest, NotFound, OvmsError, PreconditionFailed, Unavailable
from ovms_kernel.fetch.archive import extract
from ovms_kernel.fetch.http import CONNECT_LIMIT, Body, FetchFailed, Web
from ovms_kernel.fetch.partial import clean_up, present_bytes
from ovms_kernel.fetch.transfer import DigestMismatch, Pace, fetch_files, rising
from ovms_kernel.files import check_space, hash_file, read_json, write_atomically
from ovms_kernel.values import Progress, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovms_kernel.settings import Settings
    from ovms_kernel.values import Release

    Report = Callable[[Progress], None]

log = logging.getLogger(__name__)

GROWTH = 4
"""How many times its own size an archive takes when unpacked; the Ubuntu releases take about three and a half."""
PACE = Pace(connections=4, part_size=8 << 20)
LOOKS = 3
"""How often a mirror that does not answer is asked for the archive's size."""
BACK_OFF = 0.5
"""Seconds before it is asked again."""
PAGE_LIMIT = 4 << 20
"""Bytes of a release page or a file with a digest."""
MAGIC = {".zip": b"PK", ".gz": b"\x1f\x8b"}
"""How an archive begins; a page that asks for a password begins otherwise, whatever its status and type say."""


class DigestUnknown(PreconditionFailed):
    """The setting ``engine_known_digest`` demands a digest that was published beforehand, and there is none."""


async def fetch_and_extract(settings: Settings, release: Release, into: Path, report: Report) -> str:
    """Fetch a release's archive, verify it, unpack it into a new folder, and return its SHA-256.

    Interrupted, the next call goes on where this one ended.

    :raises BadRequest: the archive is not what it should be; it is removed.
    :raises NotFound: no mirror has it.
    :raises Unavailable: no mirror can be reached.
    :raises PreconditionFailed: the disk is too small, or its digest is not known and a setting demands that.
    """
    if Path(release.archive).name != release.archive:
        raise BadRequest(f"{release.archive!r} is not the name of an archive.")
    archive, digest = await _fetch(settings, release, report)
    await anyio.to_thread.run_sync(_unpack, archive, into, report)
    return digest


def discard_download(settings: Settings, release: Release) -> None:
    """Remove the archive of a release that is installed; one that lies elsewhere is not touched."""
    if release.archive:
        (settings.downloads_dir / release.archive).unlink(missing_ok=True)
        clean_up(settings.downloads_dir)


def _unpack(archive: Path, into: Path, report: Report) -> None:
    if into.exists():
        shutil.rmtree(into)
    try:
        extract(archive, into, report)
    except OvmsError:
        # A partial folder of an archive that will not do helps nobody, and it may be what filled the disk.
        shutil.rmtree(into, ignore_errors=True)
        raise


async def _fetch(settings: Settings, release: Release, report: Report) -> tuple[Path, str]:
    remote, local = _mirrors(settings, release)
    here = [path for path in (settings.downloads_dir / release.archive, *local) if path.is_file()]
    web = Web()
    known = await anyio.to_thread.run_sync(_known_digest, settings, release, web, abandon_on_cancel=True)
    failures: list[OvmsError] = []
    for path in here:
        digest = await anyio.to_thread.run_sync(_digest_of, path, report)
        try:
            await anyio.to_thread.run_sync(_settle, settings, release, path, digest, known)
        except BadRequest as error:
            failures.append(error)
            if path.parent == settings.downloads_dir:
                path.unlink()
            continue
        check_space(settings.downloads_dir, path.stat().st_size * GROWTH, "Installing the engine")
        return path, digest
    report = rising(report)
    for url in remote:
        try:
            return await _download(settings, release, web, url, known, report)
        except (BadRequest, NotFound, Unavailable) as error:
            # Which mirror it was is what the user needs to know; the URL may hold a password.
            host = urlsplit(url).hostname or url
            failures.append(error if error.message.startswith(host) else error.again(f"{host}: {error.message}"))
    raise _joined(release, failures) from (failures[-1] if failures else None)


async def _download(
    settings: Settings, release: Release, web: Web, url: str, known: str, report: Report
) -> tuple[Path, str]:
    """Fetch the archive from one mirror and return it with its SHA-256."""
    folder = settings.downloads_dir
    wanted = known or _pinned(settings, release)
    found = await _look(web, url)
    if release.size and found.size != release.size:
        raise BadRequest(f"{release.archive} has {found.size} bytes instead of {release.size}")
    file = RemoteFile(release.archive, found.size, wanted)
    missing = found.size - await anyio.to_thread.run_sync(present_bytes, [file], folder, found.version)
    check_space(folder, missing + found.size * GROWTH, "Installing the engine")

    def open_range(_: RemoteFile, start: int, end: int) -> Body:
        return web.open(url, start=start, end=end, headers={"If-Range": found.etag} if found.etag else None)

    try:
        await fetch_files([file], folder, open_range, report, PACE, version=found.version)
    except DigestMismatch as error:
        clean_up(folder)
        raise BadRequest(f"{release.archive} does not have the SHA-256 {wanted}") from error
    target = folder / release.archive
    digest = wanted or await anyio.to_thread.run_sync(_digest_of, target, report)
    await anyio.to_thread.run_sync(_settle, settings, release, target, digest, known)
    report(Progress("verified", subject=release.archive, digest=f"sha256:{digest}"))
    return target, digest


class _Found(msgspec.Struct, frozen=True):
    """What a mirror has."""

    size: int
    etag: str
    """Strong, or empty."""
    version: str
    """Names these bytes on that server."""


async def _look(web: Web, url: str) -> _Found:
    """Return what a mirror has at a URL, from the first bytes of it.

    :raises NotFound: it has nothing.
    :raises FetchFailed: it does not answer, or gives something else.
    """
    for number in range(LOOKS):
        try:
            return await anyio.to_thread.run_sync(_look_once, web, url, abandon_on_cancel=True)
        except FetchFailed as error:
            if error.status in (404, 410):
                raise NotFound(f"{url} does not exist") from error
            if error.final or number + 1 == LOOKS:
                raise
            log.info("%s: %s", url, error.message)
        await anyio.sleep(BACK_OFF * 2**number * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
    raise AssertionError  # the last try returns or raises


def _look_once(web: Web, url: str) -> _Found:
    body = web.open(url, start=0, end=3)
    try:
        # storage.openvinotoolkit.org answers 200 with a page for a missing file.
        if "html" in body.headers.get("Content-Type", ""):
            raise FetchFailed("gives a web page instead of the archive, perhaps one that asks to log in", final=True)
        if not body.read(4).startswith(MAGIC.get(Path(urlsplit(url).path).suffix, b"")):
            raise FetchFailed("gives something that is not an archive, perhaps a page that asks to log in", final=True)
        if not body.total:
            raise FetchFailed("does not say how large the archive is", final=True)
        etag = body.headers.get("ETag", "")
        etag = "" if etag.startswith("W/") else etag
        return _Found(body.total, etag, f"{url} {etag or body.headers.get('Last-Modified', '')}")
    finally:
        body.close()


def _joined(release: Release, failures: list[OvmsError]) -> OvmsError:
    """Return the one error that all failures make: the worst of them gives the code."""
    # What each of them advises is said once, at the end.
    causes = "; ".join(error.message.partition("; ")[0].rstrip(".") for error in failures)
    advice = "check the network and proxy, or name a mirror or a local folder in the setting engine_mirrors"
    for kind in (BadRequest, Unavailable, NotFound):
        if any(isinstance(error, kind) for error in failures):
            return kind(f"The engine archive {release.archive} cannot be downloaded ({causes}); {advice}.")
    return NotFound(f"No mirror is known for the engine archive {release.archive}; {advice}.")


def _mirrors(settings: Settings, release: Release) -> tuple[list[str], list[Path]]:
    """Return the URLs, the vendor's first, and the files on this machine, which are tried before any of them."""
    remote: list[str] = []
    local: list[Path] = []
    for mirror in (*release.mirrors, *settings.engine_mirrors):
        parts = urlsplit(mirror)
        if parts.scheme in ("http", "https"):
            remote.append(f"{mirror.rstrip('/')}/{quote(release.archive)}")
            continue
        path = Path(url2pathname(unquote(parts.path))) if parts.scheme == "file" else Path(mirror).expanduser()
        local.append(path if path.name == release.archive else path / release.archive)
    return remote, local


# -- digests -------------------------------------------------------------------------------------------------------


def _known_digest(settings: Settings, release: Release, web: Web) -> str:
    """Return the digest that was named beforehand: by setting, by the platform's data, or by the vendor's page."""
    known = settings.engine_sha256 or release.sha256 or ""
    if not known and release.asset_list:
        known = _digest_beside(release, web) or _published_digest(release, web)
    if not known and settings.engine_known_digest:
        raise DigestUnknown(
            f"No SHA-256 is known for {release.archive} and the setting engine_known_digest demands one; "
            "set engine_sha256 to it."
        )
    return known.lower()


def _published_digest(release: Release, web: Web) -> str:
    try:
        page = web.read(release.asset_list, limit=PAGE_LIMIT, seconds=CONNECT_LIMIT)
        for asset in json.loads(page)["assets"]:
            kind, _, digest = str(asset.get("digest") or "").partition(":")
            if asset["name"] == release.archive and kind == "sha256" and len(digest) == 64:
                return digest
    except (OvmsError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.info("The release page %s cannot be read: %s", release.asset_list, error)
    return ""


def _digest_beside(release: Release, web: Web) -> str:
    """Return the digest in the file ``<archive>.sha256`` that the vendor publishes beside the archive."""
    for mirror in release.mirrors:
        try:
            page = web.read(
                f"{mirror.rstrip('/')}/{quote(release.archive)}.sha256", limit=PAGE_LIMIT, seconds=CONNECT_LIMIT
            )
        except OvmsError as error:
            log.info("%s names no digest: %s", mirror, error)
            continue
        if found := re.match(rb"([0-9a-fA-F]{64})(\s|$)", page):
            return found[1].decode()
    return ""


def _settle(settings: Settings, release: Release, file: Path, digest: str, known: str) -> None:
    """Accept a complete archive or raise; the digest of a first one is pinned if nobody named one."""
    if release.size and file.stat().st_size != release.size:
        raise BadRequest(f"{release.archive} has {file.stat().st_size} bytes instead of {release.size}")
    pinned = _pinned(settings, release)
    wanted = known or pinned
    if wanted and digest != wanted:
        why = "" if known else ", which it had when it was first fetched"
        raise BadRequest(f"{release.archive} has the SHA-256 {digest} instead of {wanted}{why}")
    if not wanted:
        log.warning("No SHA-256 is published for %s; from now on it must be %s", release.archive, digest)
        _pin(settings, release, digest)


def _pins(settings: Settings) -> Path:
    return settings.downloads_dir / "digests.json"


def _read_pins(settings: Settings) -> dict[str, object]:
    path = _pins(settings)
    if not path.exists():
        return {}
    pins = read_json(path)
    if pins is None:
        # Taking it for empty would accept any archive.
        raise PreconditionFailed(f"The pinned digests in {path} cannot be read; fix or remove that file.")
    return pins


def _pinned(settings: Settings, release: Release) -> str:
    return str(_read_pins(settings).get(release.archive, ""))


def _pin(settings: Settings, release: Release, digest: str) -> None:
    pins = _read_pins(settings) | {release.archive: digest}
    write_atomically(_pins(settings), (json.dumps(pins, indent=1, sort_keys=True) + "\n").encode())


def _digest_of(path: Path, report: Report) -> str:
    total, read = path.stat().st_size, 0

    def advance(count: int) -> None:
        nonlocal read
        read += count
        report(Progress("verifying", read, total, path.name))

    return hash_file(path, advance)
