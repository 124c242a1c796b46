"""From a release to an unpacked folder: mirrors, digests, room on the disk, and what is kept when it is interrupted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

import anyio
import anyio.to_thread

from ovms_kernel.engine.download import BLOCK, CONNECT_LIMIT, Download, open_client
from ovms_kernel.engine.extract import extract
from ovms_kernel.engine.ovms import FOLDER
from ovms_kernel.errors import BadRequest, NotFound, OvmsError, PreconditionFailed, Unavailable
from ovms_kernel.values import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from ovms_kernel.settings import Settings
    from ovms_kernel.values import Release

    Report = Callable[[Progress], None]

log = logging.getLogger(__name__)

GROWTH = 4
"""How many times its own size an archive takes when unpacked; the Ubuntu releases take about three and a half."""
RESERVE = 64 << 20
"""Bytes that are left free on the disk."""


class DigestUnknown(PreconditionFailed):
    """The setting ``engine_known_digest`` demands a digest that was published beforehand, and there is none."""


async def fetch_and_extract(settings: Settings, release: Release, into: Path, report: Report) -> str:
    """Fetch a release's archive, verify it, unpack it into a new folder, and return its SHA-256.

    Interrupted, the next call goes on where this one ended.

    :raises BadRequest: the archive is not what it should be; it is removed.
    :raises NotFound: no mirror has it.
    :raises Unavailable: no mirror can be reached.
    :raises PreconditionFailed: there is no room, or its digest is not known and a setting demands that.
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


def _unpack(archive: Path, into: Path, report: Report) -> None:
    if into.exists():
        shutil.rmtree(into)
    try:
        extract(archive, into, report, top=f"/{FOLDER}/")
    except OvmsError:
        # A partial folder of an archive that will not do helps nobody, and it may be what filled the disk.
        shutil.rmtree(into, ignore_errors=True)
        raise


async def _fetch(settings: Settings, release: Release, report: Report) -> tuple[Path, str]:
    remote, local = _mirrors(settings, release)
    here = [path for path in (settings.downloads_dir / release.archive, *local) if path.is_file()]
    async with open_client() as client:
        known = await _known_digest(settings, release, client)
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
            _check_room(settings, path.stat().st_size * GROWTH)
            return path, digest
        trusted = bool(known or _pinned(settings, release))
        for url in remote:
            try:
                return await _download(settings, release, client, url, known, report, trusted=trusted)
            except (BadRequest, NotFound, Unavailable) as error:
                # Which mirror it was is what the user needs to know; the URL may hold a password.
                failures.append(type(error)(f"{urlsplit(url).hostname}: {error.message.rstrip('.')}"))
    raise _joined(release, failures)


async def _download(
    settings: Settings,
    release: Release,
    client: httpx.AsyncClient,
    url: str,
    known: str,
    report: Report,
    *,
    trusted: bool,
) -> tuple[Path, str]:
    def room_for(missing: int) -> None:
        _check_room(settings, missing + (missing or release.size or 0) * GROWTH)

    if release.size:
        room_for(release.size)
    download = Download(settings.downloads_dir / release.archive, report, room_for, trusted=trusted)
    digest = await download.fetch(client, url)
    try:
        await anyio.to_thread.run_sync(_settle, settings, release, download.partial, digest, known)
    except BadRequest:
        download.discard()
        raise
    download.finish()
    report(Progress("verified", subject=release.archive, digest=f"sha256:{digest}"))
    return download.target, digest


def _joined(release: Release, failures: list[OvmsError]) -> OvmsError:
    """Return the one error that all failures make: the worst of them gives the code."""
    causes = "; ".join(error.message.rstrip(".") for error in failures)
    advice = "check the network and proxy, or name a mirror or a local folder in the setting engine_mirrors"
    for kind in (BadRequest, Unavailable, NotFound):
        if any(isinstance(error, kind) for error in failures):
            return kind(f"The engine archive {release.archive} could not be had ({causes}); {advice}.")
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


async def _known_digest(settings: Settings, release: Release, client: httpx.AsyncClient) -> str:
    """Return the digest that was named beforehand: by setting, by our release data, or by the release's page."""
    known = settings.engine_sha256 or release.sha256 or ""
    if not known and release.asset_list:
        known = await _digest_beside(release, client) or await _published_digest(release, client)
    if not known and settings.engine_known_digest:
        raise DigestUnknown(
            f"No SHA-256 is known for {release.archive} and the setting engine_known_digest demands one; "
            "set engine_sha256 to it."
        )
    return known.lower()


async def _published_digest(release: Release, client: httpx.AsyncClient) -> str:
    import httpx

    try:
        answer = await client.get(release.asset_list, timeout=CONNECT_LIMIT)
        assets = answer.json()["assets"] if answer.status_code == 200 else []
        for asset in assets:
            kind, _, digest = str(asset.get("digest") or "").partition(":")
            if asset["name"] == release.archive and kind == "sha256" and len(digest) == 64:
                return digest
    except (httpx.HTTPError, OvmsError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.info("The release page %s cannot be read: %s", release.asset_list, error)
    return ""


async def _digest_beside(release: Release, client: httpx.AsyncClient) -> str:
    """Return the digest in the file ``<archive>.sha256`` that lies beside the archive on the vendor's page."""
    import httpx

    for mirror in release.mirrors:
        try:
            answer = await client.get(f"{mirror.rstrip('/')}/{quote(release.archive)}.sha256", timeout=CONNECT_LIMIT)
        except (httpx.HTTPError, httpx.InvalidURL, OvmsError) as error:
            log.info("%s names no digest: %s", mirror, error)
            continue
        if answer.status_code == 200 and (found := re.match(r"([0-9a-fA-F]{64})(\s|$)", answer.text)):
            return found[1]
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
        log.warning("Nobody names the SHA-256 of %s; from now on it must be %s", release.archive, digest)
        _pin(settings, release, digest)


def _pins(settings: Settings) -> Path:
    return settings.downloads_dir / "digests.json"


def _read_pins(settings: Settings) -> dict[str, str]:
    try:
        pins = json.loads(_pins(settings).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        # Taking it for empty would accept any archive.
        raise PreconditionFailed(
            f"The pinned digests in {_pins(settings)} cannot be read; mend or remove it."
        ) from error
    return pins if isinstance(pins, dict) else {}


def _pinned(settings: Settings, release: Release) -> str:
    return str(_read_pins(settings).get(release.archive, ""))


def _pin(settings: Settings, release: Release, digest: str) -> None:
    pins = _read_pins(settings) | {release.archive: digest}
    path = _pins(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(pins, indent=1, sort_keys=True) + "\n", "utf-8")
    partial.replace(path)


def _digest_of(path: Path, report: Report) -> str:
    digest = hashlib.sha256()
    total = path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            report(Progress("verifying", file.tell(), total, path.name))
    return digest.hexdigest()


def _check_room(settings: Settings, needed: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    folder = settings.downloads_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed + RESERVE > free:
        raise PreconditionFailed(
            f"{_mebibytes(needed + RESERVE)} MiB are needed in {settings.data_dir} to install the engine and "
            f"{_mebibytes(free)} MiB are free; make room or choose another data folder."
        )


def _mebibytes(size: int) -> int:
    return -(-size // (1 << 20))
