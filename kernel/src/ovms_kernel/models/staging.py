"""Staging: where a model grows until it is published. Its folder appears whole and disappears whole.

``models/.staging/<key>/files`` grows until it is complete and on the disk, then gets its record; one rename makes it
``models/<id>``. A crash or power cut leaves the old state, or a staging folder that the next pull goes on with. What is
to vanish is renamed first.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anyio.to_thread
from msgspec.structs import replace

from ovms_kernel.errors import BadRequest, OvmsError, TimedOut, Unavailable
from ovms_kernel.fetch.partial import clean_up, present_bytes
from ovms_kernel.files import Meter, hash_file, read_json, rename, run_with_progress, size_of, sync, write_atomically
from ovms_kernel.models.model_card import is_text, read_texts, walk
from ovms_kernel.models.model_record import RECORD, read_record
from ovms_kernel.models.names import staging_key
from ovms_kernel.values import Progress, PullPlan, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ovms_kernel.drivers import Hub
    from ovms_kernel.fetch.http import Body
    from ovms_kernel.models.model_record import ModelRecord
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import ModelRef

log = logging.getLogger(__name__)

TRASH = ".trash-"
JOURNAL = "staging.json"
WATCH_EVERY = 0.2
"""Seconds between two looks at what another process has fetched."""
STUCK = 120.0
"""Seconds without progress after which a pull in another process is not waited for any longer."""

# -- folders -------------------------------------------------------------------------------------------------------


def model_folder(settings: Settings, model_id: str) -> Path:
    """Return where a checked id lives once published."""
    return settings.models_dir.joinpath(*model_id.split("/"))


def staging_folder(settings: Settings, model_id: str) -> Path:
    """Return where a checked id grows."""
    return settings.staging_dir / staging_key(model_id)


def lock_file(settings: Settings, model_id: str) -> Path:
    """Return the lock of one model: held by what pulls, publishes, loads or deletes it."""
    return settings.staging_dir / f"{staging_key(model_id)}.lock"


def staged_files(settings: Settings, model_id: str) -> Path:
    """Return the folder of staging that becomes the model's."""
    return staging_folder(settings, model_id) / "files"


def open_staging(settings: Settings, model_id: str, origin: dict[str, str]) -> bool:
    """Make the folders in which a model grows; return whether it was begun before, and from the same origin."""
    folder = staging_folder(settings, model_id)
    begun = is_begun(folder, origin)
    if folder.exists() and not begun:
        discard(settings, folder)
    staged_files(settings, model_id).mkdir(parents=True, exist_ok=True)
    if not begun:
        journal = {"id": model_id, "origin": origin}
        write_atomically(folder / JOURNAL, json.dumps(journal, ensure_ascii=False).encode())
    return begun


def is_begun(folder: Path, origin: dict[str, str]) -> bool:
    """Tell whether that folder of staging was begun from that origin."""
    return (read_json(folder / JOURNAL) or {}).get("origin") == origin


def cache_folder(settings: Settings, model_id: str) -> Path:
    """Return where the embedded engine keeps a model's compiled code; OVMS keeps all models' in the folder above."""
    return settings.cache_dir / quote(staging_key(model_id), safe="@+")


def discard(settings: Settings, folder: Path) -> None:
    """Remove a folder of staging; what cannot be removed now is only said to be trash and goes another time."""
    if not folder.name.startswith(TRASH):
        folder = _to_trash(settings, folder)
    shutil.rmtree(folder, ignore_errors=True)


def profile_folder(settings: Settings, name: str) -> Path:
    """Return the folder of the profile of that checked name."""
    return settings.profiles_dir / staging_key(name)


def discard_profile(settings: Settings, name: str) -> None:
    """Remove the folder of a profile and its compiled code; the model's files stay."""
    shutil.rmtree(cache_folder(settings, name), ignore_errors=True)
    if (folder := profile_folder(settings, name)).exists():
        discard(settings, folder)


def discard_profiles(settings: Settings, model_id: str) -> None:
    """Remove the folders of a model's profiles, whose links would keep its old files; they are made anew when used."""
    if settings.profiles_dir.is_dir():
        for folder in settings.profiles_dir.iterdir():
            if (record := read_record(folder)) and record.id == model_id:
                discard_profile(settings, folder.name.replace("@", "/"))


def empty_trash(settings: Settings) -> None:
    """Remove what an earlier removal left, for want of time, because it was killed, or because it was in use."""
    for folder in settings.staging_dir.glob(TRASH + "*"):
        shutil.rmtree(folder, ignore_errors=True)


# -- publication and removal ---------------------------------------------------------------------------------------


def check_target(settings: Settings, model_id: str) -> None:
    """Refuse an id whose folder would hold another model or lie in one.

    :raises BadRequest: one sentence names the other model.
    """
    target = model_folder(settings, model_id)
    if "/" in model_id:
        if (target.parent / RECORD).exists():
            raise BadRequest(f"{target.parent.name} is itself a model here, so {model_id} cannot be; delete it first.")
    elif target.is_dir() and not (target / RECORD).exists() and any(target.iterdir()):
        raise BadRequest(f"{model_id} is the folder of an owner's models here; choose a name such as {model_id}/model.")


def publish(settings: Settings, model_id: str) -> None:
    """Make the staged model the published one, in place of an older one.

    The caller holds the model's lock and has written the record, which makes the staged files complete.
    """
    staged = staged_files(settings, model_id)
    target = model_folder(settings, model_id)
    if read_record(staged) is None:
        raise OvmsError(f"Model {model_id} is not complete, so it was not published; pull it again.")
    check_target(settings, model_id)
    old = _to_trash(settings, target) if target.exists() else None
    try:
        _rename_into_place(staged, target)
    except OSError as error:
        if old is not None:
            _rename_into_place(old, target)
        raise OvmsError(
            f"Model {model_id} could not be moved to {target} ({error.strerror}); fix that and pull it again."
        ) from error
    sync(target.parent)
    sync(settings.models_dir)
    if old is not None:
        shutil.rmtree(cache_folder(settings, model_id), ignore_errors=True)  # compiled from the old files
        discard_profiles(settings, model_id)
    for each in (old, staging_folder(settings, model_id)):
        if each is not None:
            discard(settings, each)


def recover(settings: Settings, model_id: str) -> bool:
    """Finish a publication that a crash interrupted; the caller holds the model's lock."""
    staged = staged_files(settings, model_id)
    if (staged / RECORD).exists() and read_record(staged) is not None:
        publish(settings, model_id)
        return True
    return False


def remove(settings: Settings, model_id: str) -> None:
    """Take a published model and its compiled code off disk; the caller holds the model's lock."""
    target = model_folder(settings, model_id)
    # First, so that a crash between the two leaves no compiled code of a model that is gone.
    shutil.rmtree(cache_folder(settings, model_id), ignore_errors=True)
    discard_profiles(settings, model_id)
    trash = _to_trash(settings, target)
    sync(target.parent)
    if target.parent != settings.models_dir:
        with suppress(OSError):
            target.parent.rmdir()  # only if that was the owner's last model
    discard(settings, trash)


def _rename_into_place(staged: Path, target: Path) -> None:
    for last in (False, False, True):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            rename(staged, target)
            return
        except FileNotFoundError:
            # Another process deleted the owner's last model, and the owner's folder with it, in between.
            if last:
                raise


def _to_trash(settings: Settings, folder: Path) -> Path:
    settings.staging_dir.mkdir(parents=True, exist_ok=True)
    trash = settings.staging_dir / f"{TRASH}{uuid.uuid4().hex}"
    rename(folder, trash)
    return trash


# -- one pull ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Download:
    """What one pull fetches and the folder in which that grows."""

    ref: ModelRef
    folder: Path
    files: Sequence[RemoteFile]
    published: Path
    """Where an older state of the model may be, to take files over from."""
    known: ModelRecord | None
    """The record of that state."""

    @property
    def origin(self) -> dict[str, str]:
        """What has to be the same for a later pull to go on with the folder."""
        return {"hub": self.ref.hub, "revision": self.ref.revision}

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def same(self) -> Sequence[RemoteFile]:
        """The files that the published state has, too, as far as its record says."""
        if self.known is None:
            return []
        had = {path: entry for path, entry in self.known.files.items() if path not in self.known.damaged}
        return [file for file in self.files if file.sha256 and had.get(file.path) == (file.size, file.sha256.lower())]

    def plan(self) -> PullPlan:
        """Return what there is to fetch, and what need not be as sizes tell; nothing is changed."""
        noted = self._noted() if is_begun(self.folder.parent, self.origin) else {}

        def of(file: RemoteFile) -> int:
            if file in self.same and size_of(self.published / file.path) == file.size:
                return file.size
            return present_bytes([file], self.folder) if noted.get(file.path) == [file.size, file.sha256] else 0

        return PullPlan(tuple(self.files), self.total, sum(map(of, self.files)))

    async def prepare(self, report: Callable[[Progress], None]) -> None:
        """Remove what belongs to another state of the model, take over what is published already."""
        meter = Meter("verifying", sum(file.size for file in self.same))
        await run_with_progress(lambda: self._prepare(meter), meter, report if self.same else lambda _: None)

    def _prepare(self, meter: Meter) -> None:
        before, now = self._noted(), {file.path: [file.size, file.sha256] for file in self.files}
        for path, status in list(walk(self.folder)):
            # What was taken over earlier is the published file itself, which may have changed since.
            if path not in now or before.get(path) != now[path] or status.st_nlink > 1:
                (self.folder / path).unlink()
        note = self.folder.parent / JOURNAL
        journal = (read_json(note) or {}) | {"files": now}
        write_atomically(note, json.dumps(journal, ensure_ascii=False).encode())
        for file in self.same:
            target = self.folder / file.path
            if not target.exists():
                _take_over(self.published / file.path, target, file, meter)

    def _noted(self) -> dict[str, Any]:
        """Return size and digest by path of the files that the folder was begun for."""
        files = (read_json(self.folder.parent / JOURNAL) or {}).get("files")
        return files if isinstance(files, dict) else {}

    async def fetch(self, hub: Hub, report: Callable[[Progress], None]) -> None:
        """Fetch all files; progress counts what was here before."""
        await self._fetch(hub, self.files, report)

    async def _fetch(self, hub: Hub, files: Sequence[RemoteFile], report: Callable[[Progress], None]) -> None:
        from ovms_kernel.fetch.transfer import fetch_files

        def open_range(file: RemoteFile, start: int, end: int) -> Body:
            return hub.open(self.ref, file, start, end)

        await fetch_files(files, self.folder, open_range, self._within(report), hub.pace)

    async def fetch_texts(self, hub: Hub, report: Callable[[Progress], None]) -> Mapping[str, str]:
        """Fetch the small files that tell what the model is, and return their content."""
        texts = [file for file in self.files if is_text(file.path, file.size)]
        if texts:
            await self._fetch(hub, texts, report)
        sizes = {file.path: file.size for file in texts}
        return await anyio.to_thread.run_sync(read_texts, self.folder, sizes)

    async def digests(self, report: Callable[[Progress], None]) -> dict[str, tuple[int, str]]:
        """Return size and SHA-256 of every file, reading only those whose digest the hub did not say.

        :raises Unavailable: a file is missing or has another size, whatever the hub driver claims.
        """
        unknown = [file for file in self.files if not file.sha256]
        meter = Meter("verifying", sum(file.size for file in unknown))

        def check() -> dict[str, tuple[int, str]]:
            for file in self.files:
                if size_of(self.folder / file.path) != file.size:
                    raise Unavailable(f"{file.path} did not arrive whole; pull the model again.")
            hashed = {file.path: hash_file(self.folder / file.path, meter.advance) for file in unknown}
            clean_up(self.folder)
            return {file.path: (file.size, hashed.get(file.path) or file.sha256.lower()) for file in self.files}

        return await run_with_progress(check, meter, report if unknown else lambda _: None)

    def _within(self, report: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Report against the total of all files; what a hub reports never makes it fall."""

        def forward(progress: Progress) -> None:
            report(replace(progress, total=self.total, completed=min(progress.completed, self.total)))

        return forward


def watch_staging(folder: Path, report: Callable[[Progress], None]) -> Callable[[], None]:
    """Return a function that reports, now and then, how far the pull of another process is, as its staging tells."""
    last, most = 0.0, 0
    before, changed = -1, time.monotonic()

    def look() -> None:
        nonlocal last, most, before, changed
        if time.monotonic() - last < WATCH_EVERY:
            return
        last = time.monotonic()
        listed = (read_json(folder / JOURNAL) or {}).get("files")
        files = [RemoteFile(path, *entry) for path, entry in listed.items()] if isinstance(listed, dict) else []
        total = sum(file.size for file in files)
        try:
            present = present_bytes(files, folder / "files")
        except OSError:
            return  # a file was just finished, or all was just published
        most = max(most, present)  # there are fewer for a moment when a file or the whole is renamed
        report(Progress("downloading", most, total) if total else Progress("waiting"))
        if present != before:
            before, changed = present, time.monotonic()
        elif time.monotonic() - changed > STUCK:
            raise TimedOut(
                f"Another process holds {folder.name.replace('@', '/')} and has made no progress for {STUCK:g} s; "
                "end that process, then try again."
            )

    return look


def _take_over(source: Path, target: Path, file: RemoteFile, meter: Meter) -> None:
    """Give a published file a second name if it is sound, or copy it where the file system has no links."""
    try:
        if source.stat().st_size != file.size or hash_file(source, meter.advance) != file.sha256.lower():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    except OSError as error:
        log.warning("%s cannot be taken over (%s), so it is fetched again", source, error.strerror)
        target.unlink(missing_ok=True)
