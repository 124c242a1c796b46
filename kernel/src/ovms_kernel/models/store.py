"""The models on disk: listed, described, verified, deleted, and held against others. Nothing here asks a network."""

from __future__ import annotations

import functools
import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from msgspec.structs import replace

from ovms_kernel.errors import NotFound, PreconditionFailed
from ovms_kernel.files import (
    Meter,
    disk_errors,
    disk_usage,
    free_space,
    hash_file,
    locked,
    patiently,
    run_with_progress,
)
from ovms_kernel.models import profiles
from ovms_kernel.models.model_record import RECORD, describe, local_model, read_record, write_record
from ovms_kernel.models.names import parse_model_id
from ovms_kernel.models.staging import (
    discard,
    discard_profile,
    empty_trash,
    lock_file,
    model_folder,
    profile_folder,
    recover,
    remove,
    staging_folder,
)
from ovms_kernel.models.usage import Usage, cache_sizes, staged_models, trash_size
from ovms_kernel.values import LocalModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from ovms_kernel.events import Events
    from ovms_kernel.models.model_record import ModelRecord
    from ovms_kernel.models.usage import Staged
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import Profile, Progress

OWN = ("directory", "problem", "graph", "graph_edited")
"""What a profile's own folder says of it."""

log = logging.getLogger(__name__)


class Store:
    """The models of one data folder. What is published is complete and was verified.

    :param events: gets the event of a removal; ``None`` where models are only read.
    :param live: returns the settings that hold now, for the profiles in them; ``None`` = those given.
    """

    def __init__(
        self, settings: Settings, events: Events | None = None, live: Callable[[], Settings] | None = None
    ) -> None:
        self._settings = settings
        self._events = events
        self._live = live or (lambda: settings)

    # -- what is here ----------------------------------------------------------------------------------------------

    def list(self) -> list[LocalModel]:
        """Return the published models, by id."""
        return [local_model(folder, record) for folder, record in self._published()]

    def served(self) -> Sequence[LocalModel]:
        """Return what the engine can load: the published models and their profiles, by id."""
        models = self.list()
        return sorted([*models, *profiles.all_of(self._live(), models)], key=lambda each: each.id)

    def profile(self, name: str) -> Profile | None:
        """Return the profile of that name, as the settings have it now; ``None`` if there is none."""
        return profiles.profile_of(self._live(), name)

    def find(self, model_id: str) -> LocalModel:
        """Return one published model, or a profile, whose folder need not be there yet.

        :raises NotFound: it is not here; the sentence says what is.
        """
        if profile := self.profile(model_id):
            return profiles.as_model(self._settings, model_id, profile, local_model(*self.entry(profile.model)))
        return local_model(*self.entry(model_id))

    def prepare(self, model_id: str) -> LocalModel:
        """Return one model as :meth:`find` does, with a profile's folder made; the caller holds the model's lock."""
        if profile := self.profile(model_id):
            profiles.make(self._settings, model_id, profile, *self.entry(profile.model))
        return self.find(model_id)

    def describe(self, model_id: str) -> dict[str, Any]:
        """Return everything noted about a model, for people: origin, files with digests, options, graph."""
        if (profile := self.profile(model_id)) is None:
            return describe(*self.entry(model_id))
        folder, facts = profile_folder(self._settings, model_id), describe(*self.entry(profile.model))
        if record := read_record(folder):
            facts |= {key: each for key, each in describe(folder, record).items() if key in OWN}
        options = {**facts["options"], **profile.options}
        return facts | {"device": profile.device, "context": profile.context, "options": options}

    def usage(self) -> Usage:
        """Return what models and staging occupy, and what is free."""
        staging = sum(each.size for each in self.staging())
        free = free_space(self._settings.models_dir)
        models = {record.id: record.size for _, record in self._published()}
        models |= {model_id: disk_usage(folder) for model_id, folder in self.damaged().items()}
        return Usage(models, staging, trash_size(self._settings), free, cache_sizes(self._settings))

    def damaged(self) -> dict[str, Path]:
        """Return the folders, by id, of models whose record cannot be read."""
        models = self._settings.models_dir
        return {each.relative_to(models).as_posix(): each for each in _recorded(models) if read_record(each) is None}

    def empty_trash(self) -> None:
        """Remove what killed or hindered removals left."""
        empty_trash(self._settings)

    def staging(self) -> Sequence[Staged]:
        """Return pulls that are not done; the old ones among them are offered for removal, never removed unasked."""
        return staged_models(self._settings, self._live().staging_age)

    def records(self, model_ids: Sequence[str]) -> dict[str, ModelRecord]:
        """Return what is noted of models, by id; those that are not installed any more are left out."""
        found = ((each, read_record(self._folder(each))) for each in model_ids)
        return {name: record for name, record in found if record is not None}

    async def note(self, model_id: str, **changes: Any) -> LocalModel:  # noqa: ANN401 - fields of the record
        """Change fields of a model's record, such as ``pinned``.

        :raises NotFound: it is not installed.
        """
        with disk_errors(f"Noting that of {model_id}"):
            folder, record = await self._noted(model_id)
            await anyio.to_thread.run_sync(write_record, folder, replace(record, **changes))
        return await anyio.to_thread.run_sync(self.find, model_id)

    async def _noted(self, model_id: str) -> tuple[Path, ModelRecord]:
        """Return the folder and the record that is noted in: a profile's own, made if it is not there yet."""
        if (profile := self.profile(model_id)) is None:
            return await anyio.to_thread.run_sync(self.entry, model_id)
        folder = profile_folder(self._settings, model_id)
        if (record := await anyio.to_thread.run_sync(read_record, folder)) is None:
            async with self.hold(profile.model):
                await anyio.to_thread.run_sync(self.prepare, model_id)
            record = await anyio.to_thread.run_sync(read_record, folder)
        if record is None:
            raise NotFound(f"Model {profile.model} is no longer installed; pull it again.")
        return folder, record

    async def verify(self, model_id: str, report: Callable[[Progress], None] = lambda _: None) -> Sequence[str]:
        """Read every file of a model again; return what is wrong, a sentence for each file.

        What is found wrong is noted, so that the next pull fetches it again.
        """
        from ovms_kernel.models.checks import faults_of  # not needed to list what is here

        folder, record = await anyio.to_thread.run_sync(self.entry, model_id)
        meter = Meter("verifying", record.size)

        def check() -> dict[str, str]:
            faults = {}
            for path, (size, sha256) in record.files.items():
                meter.subject = path
                try:
                    actual = (folder / path).stat().st_size
                    if actual != size:
                        faults[path] = f"{path} has {actual} bytes instead of {size}."
                    elif hash_file(folder / path, meter.advance) != sha256:
                        faults[path] = f"{path} is not what was pulled: its SHA-256 differs."
                except OSError as error:
                    faults[path] = f"{path} cannot be read ({error.strerror})."
            there = {path: size for path, (size, _) in record.files.items() if path not in faults}
            # A file that is damaged is not there for the second look, which calls it missing.
            return faults_of(folder, there) | faults

        def note() -> None:
            # Meanwhile the model may have been replaced or deleted, or its graph written anew.
            now = read_record(folder)
            if now is not None and now.files == record.files and tuple(faults) != tuple(now.damaged):
                write_record(folder, replace(now, damaged=tuple(faults)))

        faults = await run_with_progress(check, meter, report)
        if tuple(faults) != tuple(record.damaged):
            async with self.hold(model_id):
                await anyio.to_thread.run_sync(note)
        return list(faults.values())

    # -- removal ---------------------------------------------------------------------------------------------------

    async def delete(self, model_id: str) -> None:
        """Remove a model from disk; the engine unloads it first.

        :raises NotFound: it is not here.
        """
        model_id = parse_model_id(model_id)
        with disk_errors(f"Deleting {model_id}"):
            model = await anyio.to_thread.run_sync(self._removable, model_id)
            async with self.hold(model_id):
                model = await anyio.to_thread.run_sync(self._removable, model_id)
                await self._tell("ovms_before_replace", model)
                await anyio.to_thread.run_sync(remove, self._settings, model_id)
            await anyio.to_thread.run_sync(self.empty_trash)
        await self._tell("ovms_deleted", model)

    async def _tell(self, event: str, model: LocalModel) -> None:
        if self._events is not None:
            await self._events.tell(event, model=model)

    def _removable(self, model_id: str) -> LocalModel:
        """Return a model to remove, even one whose record is damaged."""
        if (folder := self.damaged().get(model_id)) is None:
            return self.find(model_id)
        return LocalModel(model_id, folder, "", disk_usage(folder), "", datetime.now(UTC))

    async def discard_staging(self, model_id: str) -> None:
        """Remove what is there of a pull that is not done.

        :raises NotFound: there is nothing.
        """
        model_id = parse_model_id(model_id)
        async with self.hold(model_id, timeout=0, busy=f"{model_id} is being pulled right now; cancel that first."):
            folder = staging_folder(self._settings, model_id)
            if not folder.exists():
                raise NotFound(f"Nothing of {model_id} is in staging, so nothing was removed.")
            await anyio.to_thread.run_sync(discard, self._settings, folder)
            await anyio.to_thread.run_sync(empty_trash, self._settings)

    async def discard_profile(self, name: str, model_id: str) -> None:
        """Remove the folder of a profile and its compiled code; the files of its model stay."""
        with disk_errors(f"Removing the profile {name}"):
            async with self.hold(model_id):
                await anyio.to_thread.run_sync(discard_profile, self._settings, name)

    # -- the folders -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def hold(
        self,
        model_id: str,
        *,
        timeout: float | None = None,
        busy: str = "",
        waiting: Callable[[], None] | None = None,
    ) -> AsyncIterator[None]:
        """Keep every other task and process from pulling, publishing, loading or deleting that model."""
        path = lock_file(self._settings, model_id)
        keep = functools.partial(self._is_known, model_id)
        async with locked(path, timeout=timeout, busy=busy, waiting=waiting, keep=keep):
            if await anyio.to_thread.run_sync(recover, self._settings, model_id):
                log.warning("Model %s was complete but not published, because of a crash; it is now", model_id)
            yield

    def _is_known(self, model_id: str) -> bool:
        """Tell whether there is anything of a model here."""
        return model_folder(self._settings, model_id).exists() or staging_folder(self._settings, model_id).exists()

    def _folder(self, model_id: str) -> Path:
        of = profile_folder if self.profile(model_id) else model_folder
        return of(self._settings, model_id)

    def _published(self) -> Sequence[tuple[Path, ModelRecord]]:
        read = ((folder, read_record(folder)) for folder in _recorded(self._settings.models_dir))
        # A copy that somebody made by hand has the record of the model that it is a copy of.
        found = [(each, it) for each, it in read if it and _is_same(each, model_folder(self._settings, it.id))]
        return sorted(found, key=lambda pair: pair[1].id)

    def entry(self, model_id: str) -> tuple[Path, ModelRecord]:
        """Return a published model's folder and record.

        :raises NotFound: it is not here; the sentence says what is.
        :raises PreconditionFailed: its record is damaged.
        """
        model_id = parse_model_id(model_id)
        folder = model_folder(self._settings, model_id)
        record = read_record(folder)
        if record is None and (folder / RECORD).exists():
            raise PreconditionFailed(
                f"The record {folder / RECORD} of {model_id} is damaged; fetch the model again with "
                f"`ovms-plugin pull {model_id}`, or remove it with `ovms-plugin rm {model_id}`."
            )
        # On a file system that ignores case another model's folder may answer.
        if record is None or record.id != model_id:
            names = ", ".join(each.id for _, each in self._published()) or "none"
            raise NotFound(
                f"Model {model_id} is not installed (installed: {names}); pull it with `ovms-plugin pull {model_id}`."
            )
        return folder, record


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _recorded(models: Path) -> Iterator[Path]:
    """Yield the folders of models and of owners' models that have a record."""
    for folder in _folders(models):
        for each in [folder] if (folder / RECORD).exists() else _folders(folder):
            if (each / RECORD).exists():
                yield each


def _folders(parent: Path) -> Sequence[Path]:
    """Return the folders in one; none if it is not there, or not any more."""
    try:
        # Another process may be removing it, during which Windows does not open it.
        inside = patiently(lambda: list(parent.iterdir()))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [each for each in inside if not each.name.startswith(".") and each.is_dir()]
