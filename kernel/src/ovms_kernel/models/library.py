"""Models on disk: pull, import, list, describe, verify, delete. What is published is complete and was verified."""

from __future__ import annotations

import functools
import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from ovms_kernel.drivers import SearchableHub
from ovms_kernel.errors import BadRequest, NotFound, NotSupported, PreconditionFailed
from ovms_kernel.fetch.transfer import rising
from ovms_kernel.files import Meter, disk_errors, disk_usage, free_space, hash_file, locked, run_with_progress
from ovms_kernel.models import files as model_files
from ovms_kernel.models.arrivals import Arrivals, Wish
from ovms_kernel.models.metadata import Metadata, describe, is_whole, local_model, read_metadata, write_metadata
from ovms_kernel.models.names import parse_model_id, parse_model_ref
from ovms_kernel.models.publish import (
    Staged,
    Usage,
    cache_sizes,
    discard,
    empty_trash,
    lock_file,
    model_folder,
    recover,
    remove,
    staged_models,
    staging_folder,
    trash_size,
)
from ovms_kernel.models.pulling import watch_staging
from ovms_kernel.models.shaping import Shaper
from ovms_kernel.models.soundness import faults_of
from ovms_kernel.single_flight import Conflict, SingleFlight
from ovms_kernel.values import LocalModel, ModelRef, Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from ovms_kernel.drivers import GraphTemplate, Hub
    from ovms_kernel.events import Events
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import FoundModel, Host, PullPlan

log = logging.getLogger(__name__)


def _ignore(_: Progress) -> None:
    """Report to nobody."""


class Library:
    """The models of one data folder.

    :param hubs: hub drivers by name.
    :param drivers: graph drivers by model type.
    :param host: what graphs are built for.
    """

    def __init__(
        self,
        settings: Settings,
        events: Events,
        hubs: Mapping[str, Hub],
        drivers: Mapping[str, GraphTemplate],
        host: Host,
    ) -> None:
        self.settings = settings
        self._events = events
        self._hubs = hubs
        self._pulls: SingleFlight[LocalModel, Progress] = SingleFlight(cancel_abandoned=True)
        self.shaper = Shaper(settings, events, drivers, host, lambda model_id: self._found(model_id)[0])
        self._arrivals = Arrivals(settings, events, self.shaper)

    async def aclose(self) -> None:
        """Cancel the pulls that go on and return when they have ended; what has arrived is kept."""
        await self._pulls.aclose()

    # -- what is here ----------------------------------------------------------------------------------------------

    @staticmethod
    def parse_ref(text: str) -> ModelRef:
        """Return what a caller named, checked; see :func:`ovms_kernel.models.names.parse_model_ref`."""
        return parse_model_ref(text)

    def list(self) -> list[LocalModel]:
        """Return the published models, by id."""
        return [local_model(folder, metadata) for folder, metadata in self._published()]

    def find(self, model_id: str) -> LocalModel:
        """Return one published model.

        :raises NotFound: it is not here; the sentence says what is.
        """
        return local_model(*self._found(model_id))

    def describe(self, model_id: str) -> dict[str, Any]:
        """Return everything noted about a model, for people: origin, files with digests, options, graph."""
        return describe(*self._found(model_id))

    def usage(self) -> Usage:
        """Return what models and staging occupy, and what is free."""
        staging = sum(each.size for each in self.staging())
        free = free_space(self.settings.models_dir)
        models = {metadata.id: metadata.size for _, metadata in self._published()}
        models |= {model_id: disk_usage(folder) for model_id, folder in self.damaged().items()}
        return Usage(models, staging, trash_size(self.settings), free, cache_sizes(self.settings))

    def damaged(self) -> dict[str, Path]:
        """Return the folders, by id, of models whose record cannot be read."""
        found = {}
        for folder in _folders(self.settings.models_dir):
            for each in [folder] if (folder / model_files.METADATA).exists() else _folders(folder):
                if (each / model_files.METADATA).exists() and read_metadata(each) is None:
                    found[each.relative_to(self.settings.models_dir).as_posix()] = each
        return found

    def empty_trash(self) -> None:
        """Remove what killed or hindered removals left."""
        empty_trash(self.settings)

    def staging(self) -> Sequence[Staged]:
        """Return pulls that are not done; the old ones among them are offered for removal, never removed unasked."""
        return staged_models(self.settings, self.settings.staging_age)

    def memory_needed(self, model: LocalModel) -> int:
        """Return the bytes of weights: what a load of the model brings into memory at least."""
        metadata = read_metadata(model.directory)
        return model_files.weight_bytes({path: size for path, (size, _) in metadata.files.items()}) if metadata else 0

    def records(self, model_ids: Sequence[str]) -> dict[str, Metadata]:
        """Return what is noted of models, by id; those that are not installed any more are left out."""
        found = ((each, read_metadata(model_folder(self.settings, each))) for each in model_ids)
        return {name: metadata for name, metadata in found if metadata is not None}

    async def note(self, model_id: str, **changes: Any) -> LocalModel:  # noqa: ANN401 - fields of the record
        """Change fields of a model's record, such as ``pinned``.

        :raises NotFound: it is not installed.
        """
        folder, metadata = await anyio.to_thread.run_sync(self._found, model_id)
        await anyio.to_thread.run_sync(write_metadata, folder, replace(metadata, **changes))
        return local_model(folder, metadata)

    async def verify(self, model_id: str, report: Callable[[Progress], None] = _ignore) -> Sequence[str]:
        """Read every file of a model again; return what is wrong, a sentence for each file.

        What is found wrong is noted, so that the next pull fetches it again.
        """
        folder, metadata = await anyio.to_thread.run_sync(self._found, model_id)
        meter = Meter("verifying", metadata.size)

        def check() -> dict[str, str]:
            faults = {}
            for path, (size, sha256) in metadata.files.items():
                meter.subject = path
                try:
                    actual = (folder / path).stat().st_size
                    if actual != size:
                        faults[path] = f"{path} has {actual} bytes instead of {size}."
                    elif hash_file(folder / path, meter.advance) != sha256:
                        faults[path] = f"{path} is not what was pulled: its SHA-256 differs."
                except OSError as error:
                    faults[path] = f"{path} cannot be read ({error.strerror})."
            there = {path: size for path, (size, _) in metadata.files.items() if path not in faults}
            return faults | faults_of(folder, there)

        def note() -> None:
            # Meanwhile the model may have been replaced or deleted, or its graph written anew.
            now = read_metadata(folder)
            if now is not None and now.files == metadata.files and tuple(faults) != tuple(now.damaged):
                write_metadata(folder, replace(now, damaged=tuple(faults)))

        faults = await run_with_progress(check, meter, report)
        if tuple(faults) != tuple(metadata.damaged):
            async with self.hold(model_id):
                await anyio.to_thread.run_sync(note)
        return list(faults.values())

    # -- in and out ------------------------------------------------------------------------------------------------

    async def plan(self, ref: ModelRef) -> PullPlan:
        """Return what the hub has of a model and how much of that is here, without changing anything.

        :raises BadRequest: it is no model that can be served.
        """
        ref, hub = self._on_hub(ref)
        return await self._arrivals.plan(hub, ref)

    async def search(self, words: str, hub: str = "", limit: int = 20) -> Sequence[FoundModel]:
        """Return models of a hub that the words find.

        :param hub: empty means the one by setting.
        :raises NotSupported: there is none of that name, or it cannot be searched.
        """
        ref, driver = self._on_hub(ModelRef("", hub=hub))
        if not isinstance(driver, SearchableHub):
            raise NotSupported(f"The hub {ref.hub} cannot be searched; look for models on its site.")
        return await driver.search(words, limit)

    async def pull(
        self,
        ref: ModelRef,
        *,
        model_type: str = "",
        options: Mapping[str, Any] | None = None,
        refresh: bool = False,
        report: Callable[[Progress], None] = _ignore,
    ) -> LocalModel:
        """Fetch a model from its hub; whoever asks for the same meanwhile joins, and the last to be cancelled stops it.

        A complete copy is returned as it is, without a look at the network.

        :param model_type: what it is; empty means what its files say.
        :param options: calculator options for its graph.
        :param refresh: look at the hub even so, and fetch what has changed there; if nothing has, nothing happens.
        :raises BadRequest: it is no model that can be served, or not of that type; nothing has changed.
        :raises OvmsError: as the hub driver; what has arrived is kept, and the next pull goes on from there.
        """
        self.shaper.check_type(model_type)
        if not refresh and (model := await anyio.to_thread.run_sync(self._complete, ref, model_type)):
            report(Progress("success", model.size, model.size, model.id, model.digest))
            return model
        ref, hub = self._on_hub(ref)
        wanted = (ref, model_type, dict(options or {}))

        async def work(tell: Callable[[Progress], None]) -> LocalModel:
            watch = watch_staging(staging_folder(self.settings, ref.id), tell)
            with disk_errors(f"Pulling {ref.id}"):
                async with self.hold(ref.id, waiting=watch):
                    if not refresh and (here := await anyio.to_thread.run_sync(self._complete, ref, model_type)):
                        return here
                    return await self._arrivals.pull(hub, Wish(ref, model_type, options or {}), rising(tell))

        try:
            return await self._pulls.join(ref.id, work, wanted=wanted, report=report)
        except Conflict as error:
            raise BadRequest(
                f"{ref.id} is being pulled already, at another revision or type; wait for that or cancel it."
            ) from error

    async def import_(
        self,
        source: Path,
        model_id: str,
        *,
        model_type: str = "",
        options: Mapping[str, Any] | None = None,
        report: Callable[[Progress], None] = _ignore,
    ) -> LocalModel:
        """Take in a model from a folder or archive on this machine; an older one of that id is replaced.

        :param model_type: what it is; empty means what its files say.
        :param options: calculator options for its graph.
        :raises BadRequest: it is no model that can be served, or not of that type; nothing has changed.
        """
        model_id = parse_model_id(model_id)
        self.shaper.check_type(model_type)
        with disk_errors(f"Importing {model_id}"):
            watch = watch_staging(staging_folder(self.settings, model_id), report)
            async with self.hold(model_id, waiting=watch):
                wish = Wish(ModelRef(model_id), model_type, options or {})
                return await self._arrivals.take_in(source, wish, report)

    async def delete(self, model_id: str) -> None:
        """Remove a model from disk; the engine lets go of it first.

        :raises NotFound: it is not here.
        """
        model_id = parse_model_id(model_id)
        with disk_errors(f"Deleting {model_id}"):
            model = await anyio.to_thread.run_sync(self._removable, model_id)
            async with self.hold(model_id):
                model = await anyio.to_thread.run_sync(self._removable, model_id)
                await self._events.tell("ovms_before_replace", model=model)
                await anyio.to_thread.run_sync(remove, self.settings, model_id)
            await anyio.to_thread.run_sync(self.empty_trash)
        await self._events.tell("ovms_deleted", model=model)

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
            folder = staging_folder(self.settings, model_id)
            if not folder.exists():
                raise NotFound(f"Nothing of {model_id} is in staging.")
            await anyio.to_thread.run_sync(discard, self.settings, folder)
            await anyio.to_thread.run_sync(empty_trash, self.settings)

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
        path = lock_file(self.settings, model_id)
        keep = functools.partial(self._is_known, model_id)
        async with locked(path, timeout=timeout, busy=busy, waiting=waiting, keep=keep):
            if await anyio.to_thread.run_sync(recover, self.settings, model_id):
                log.warning("Model %s was complete but not published, because of a crash; it is now", model_id)
            yield

    # -- the folders -----------------------------------------------------------------------------------------------

    def _is_known(self, model_id: str) -> bool:
        """Tell whether there is anything of a model here."""
        return model_folder(self.settings, model_id).exists() or staging_folder(self.settings, model_id).exists()

    def _on_hub(self, ref: ModelRef) -> tuple[ModelRef, Hub]:
        """Return the reference with its hub's name, and that hub.

        :raises NotSupported: there is none of that name.
        """
        name = self._hub_name(ref.hub or self.settings.hub)
        if name not in self._hubs:
            offered = ", ".join(sorted(self._hubs)) or "none"
            raise NotSupported(
                f"There is no hub {name!r} (installed: {offered}); install ovms-hub-{name} or name another."
            )
        return replace(ref, hub=name), self._hubs[name]

    def _hub_name(self, name: str) -> str:
        """Return the name of the hub that has that name or that short name."""
        return next((each for each, hub in self._hubs.items() if getattr(hub, "alias", "") == name), name)

    def _complete(self, ref: ModelRef, declared: str) -> LocalModel | None:
        """Return the published model if it is whole and what is asked for; ``None`` if it has to be fetched.

        :raises BadRequest: it is here as another type than declared.
        """
        try:
            folder, metadata = self._found(ref.id)
        except (NotFound, PreconditionFailed):
            return None
        if ref.hub and metadata.hub not in ("", self._hub_name(ref.hub)):
            return None  # another hub's model of that name was asked for
        if (ref.revision and metadata.revision != ref.revision) or not is_whole(folder, metadata):
            return None
        if declared and declared != metadata.type:
            raise BadRequest(
                f"{ref.id} is installed here as type {metadata.type}; delete it first to pull it as {declared}."
            )
        return local_model(folder, metadata)

    def _published(self) -> Sequence[tuple[Path, Metadata]]:
        found = []
        for folder in _folders(self.settings.models_dir):
            for each in [folder] if (folder / model_files.METADATA).exists() else _folders(folder):
                metadata = read_metadata(each)
                # A copy that somebody made by hand has the note of the model that it is a copy of.
                if metadata and _is_same(each, model_folder(self.settings, metadata.id)):
                    found.append((each, metadata))
        return sorted(found, key=lambda pair: pair[1].id)

    def _found(self, model_id: str) -> tuple[Path, Metadata]:
        model_id = parse_model_id(model_id)
        folder = model_folder(self.settings, model_id)
        metadata = read_metadata(folder)
        if metadata is None and (folder / model_files.METADATA).exists():
            raise PreconditionFailed(
                f"The record {folder / model_files.METADATA} of {model_id} is damaged; fetch the model again with "
                f"`ovms-plugin pull {model_id}`, or remove it with `ovms-plugin rm {model_id}`."
            )
        # On a file system that ignores case another model's folder may answer.
        if metadata is None or metadata.id != model_id:
            names = ", ".join(each.id for _, each in self._published()) or "none"
            raise NotFound(
                f"Model {model_id} is not installed (installed: {names}); pull it with `ovms-plugin pull {model_id}`."
            )
        return folder, metadata


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _folders(parent: Path) -> Sequence[Path]:
    """Return the folders in one; none if it is not there, or not any more."""
    try:
        return [each for each in parent.iterdir() if not each.name.startswith(".") and each.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
