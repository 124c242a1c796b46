"""Models on disk: pull, import, list, describe, verify, delete. What is published is complete and was verified."""

from __future__ import annotations

import logging
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from ovms_kernel.errors import BadRequest, NotFound, NotSupported
from ovms_kernel.models import facts
from ovms_kernel.models import files as model_files
from ovms_kernel.models import graph as graphs
from ovms_kernel.models.metadata import Metadata, describe, local_model, read_metadata, write_metadata
from ovms_kernel.models.names import check_file_path, parse_model_id, parse_model_ref
from ovms_kernel.models.publish import (
    Staged,
    check_space,
    check_target,
    discard,
    empty_trash,
    human,
    lock_file,
    model_folder,
    open_staging,
    publish,
    recover,
    remove,
    staged_models,
    staging_folder,
)
from ovms_kernel.models.pulling import Pulls, Staging, check_format, choose_files, rising, watch_staging
from ovms_kernel.models.shaping import Shaper
from ovms_kernel.models.work import Meter, locked, run_with_progress
from ovms_kernel.values import ModelFiles, Progress, PullPlan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from ovms_kernel.drivers import GraphTemplate, Hub
    from ovms_kernel.events import Events
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import Host, LocalModel, ModelRef

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Usage:
    """What models occupy on disk, in bytes."""

    models: Mapping[str, int]
    staging: int
    free: int


def _ignore(_: Progress) -> None:
    """Report to nobody."""


async def _keep(_: LocalModel) -> None:
    """Nothing is served, so nothing has to be let go of."""


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
        self._pulls = Pulls()
        self.shaper = Shaper(settings, events, drivers, host, lambda model_id: self._found(model_id)[0])
        self.release: Callable[[LocalModel], Awaitable[None]] = _keep
        """Makes the engine let go of a model whose files are about to be replaced or removed; serving sets it."""

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
        self.settings.models_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.settings.models_dir).free
        return Usage({metadata.id: metadata.size for _, metadata in self._published()}, staging, free)

    def staging(self) -> Sequence[Staged]:
        """Return pulls that are not done; the old ones among them are offered for removal, never removed unasked."""
        return staged_models(self.settings, self.settings.staging_age)

    def memory_needed(self, model: LocalModel) -> int:
        """Return the bytes of weights: what a load of the model brings into memory at least."""
        metadata = read_metadata(model.directory)
        return model_files.weight_bytes({path: size for path, (size, _) in metadata.files.items()}) if metadata else 0

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
                    elif model_files.hash_file(folder / path, meter.advance) != sha256:
                        faults[path] = f"{path} is not what was pulled: its SHA-256 differs."
                except OSError as error:
                    faults[path] = f"{path} cannot be read ({error.strerror})."
            if tuple(faults) != tuple(metadata.damaged):
                write_metadata(folder, replace(metadata, damaged=tuple(faults)))
            return faults

        return list((await run_with_progress(check, meter, report)).values())

    # -- in and out ------------------------------------------------------------------------------------------------

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
        :param refresh: look at the hub even so, and fetch what has changed there.
        :raises BadRequest: it is no model that can be served, or not of that type; nothing has changed.
        :raises OvmsError: as the hub driver; what has arrived is kept, and the next pull goes on from there.
        """
        self.shaper.check_type(model_type)
        if not refresh and (model := await anyio.to_thread.run_sync(self._complete, ref, model_type)):
            report(Progress("success", model.size, model.size, model.id, model.digest))
            return model
        name = ref.hub or self.settings.hub
        if name not in self._hubs:
            offered = ", ".join(sorted(self._hubs)) or "none"
            raise NotSupported(
                f"There is no hub {name!r} (installed: {offered}); install ovms-hub-{name} or name another."
            )
        wanted = (ref, model_type, dict(options or {}))

        async def work(tell: Callable[[Progress], None]) -> LocalModel:
            return await self._pull(replace(ref, hub=name), model_type, options or {}, rising(tell), refresh=refresh)

        return await self._pulls.join(ref.id, wanted, work, report)

    async def _pull(
        self,
        ref: ModelRef,
        declared: str,
        options: Mapping[str, Any],
        report: Callable[[Progress], None],
        *,
        refresh: bool,
    ) -> LocalModel:
        hub = self._hubs[ref.hub]
        watch = watch_staging(staging_folder(self.settings, ref.id), report)
        async with self.hold(ref.id, waiting=watch):
            if not refresh and (model := await anyio.to_thread.run_sync(self._complete, ref, declared)):
                return model
            report(Progress("listing", subject=ref.id))
            files = choose_files(await hub.list_files(ref), ref.id)
            check_target(self.settings, ref.id)
            origin = {"hub": ref.hub, "revision": ref.revision}
            staging = Staging(await anyio.to_thread.run_sync(open_staging, self.settings, ref.id, origin), files)
            published = model_folder(self.settings, ref.id)
            known = await anyio.to_thread.run_sync(read_metadata, published)
            try:
                present = await anyio.to_thread.run_sync(staging.prepare, published, known)
                check_space(self.settings, staging.total - present, f"Pulling {ref.id}")
                plan = PullPlan(tuple(files), staging.total, present)
                await self._events.ask("ovms_before_pull", model=ref, plan=plan)
                texts = await staging.fetch_texts(hub, ref, report)
                sizes = {file.path: file.size for file in files}
                described = ModelFiles(ref.id.rsplit("/", 1)[-1], sizes, texts)
                model_type = self.shaper.recognise(described, declared, ref.id)
            except BadRequest:
                await anyio.to_thread.run_sync(discard, self.settings, staging_folder(self.settings, ref.id))
                raise
            await staging.fetch(hub, ref, report)
            digests = await staging.digests(report)
            metadata = Metadata(ref.id, model_type, digests, ref.hub, ref.revision, options=dict(options))
            return await self._finish(staging.folder, metadata, report)

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
        from ovms_kernel.models.importing import copy_into, open_source

        model_id = parse_model_id(model_id)
        self.shaper.check_type(model_type)
        async with self.hold(model_id):
            with_source = await anyio.to_thread.run_sync(open_source, source)
            if self.settings.models_dir.absolute() in (with_source.path, *with_source.path.parents):
                raise BadRequest(f"{source} lies in this plugin's own models folder; import from somewhere else.")
            check_format(with_source.sizes, str(source))
            for path in with_source.sizes:
                check_file_path(path, str(source))
            check_target(self.settings, model_id)
            total = sum(with_source.sizes.values())
            check_space(self.settings, total, f"Importing {model_id}")
            # Copying is quick and cannot be resumed safely, as the source may have changed.
            discard_begun = staging_folder(self.settings, model_id)
            if discard_begun.exists():
                await anyio.to_thread.run_sync(discard, self.settings, discard_begun)
            into = open_staging(self.settings, model_id, {"import": str(source)})
            meter = Meter("importing", total)
            try:
                files = await run_with_progress(lambda: copy_into(with_source, into, meter), meter, report)
                metadata = Metadata(model_id, model_type, files, source=str(source), options=dict(options or {}))
                return await self._finish(into, metadata, report)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    if staging_folder(self.settings, model_id).exists():
                        await anyio.to_thread.run_sync(discard, self.settings, staging_folder(self.settings, model_id))
                raise

    async def delete(self, model_id: str) -> None:
        """Remove a model from disk; the engine lets go of it first.

        :raises NotFound: it is not here.
        """
        async with self.hold(parse_model_id(model_id)):
            model = await anyio.to_thread.run_sync(self.find, model_id)
            await self.release(model)
            await anyio.to_thread.run_sync(remove, self.settings, model.id)
        await self._events.tell("ovms_deleted", model=model)

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
        async with locked(lock_file(self.settings, model_id), timeout=timeout, busy=busy, waiting=waiting):
            if await anyio.to_thread.run_sync(recover, self.settings, model_id):
                log.warning("Model %s was complete but not published, because of a crash; it is now", model_id)
            yield

    # -- publication --------------------------------------------------------------------------------------------------

    async def _finish(self, staged: Path, metadata: Metadata, report: Callable[[Progress], None]) -> LocalModel:
        """Recognise, write graph and note, publish; everything that can fail does so before anything is published."""
        identifier = metadata.id.rsplit("/", 1)[-1]
        described = await anyio.to_thread.run_sync(model_files.read_files, staged, identifier)
        weights = await anyio.to_thread.run_sync(facts.weights_of, staged, described.sizes)
        metadata = replace(
            metadata,
            type=self.shaper.recognise(described, metadata.type, metadata.id),
            format=facts.format_of(described.sizes),
            family=facts.family_of(described),
            parameter_size=facts.parameter_size_of(described, weights),
            quantization=facts.quantization_of(described, weights),
        )
        folder = model_folder(self.settings, metadata.id)
        old = await anyio.to_thread.run_sync(read_metadata, folder)
        if metadata.source and (staged / model_files.GRAPH).exists():
            await anyio.to_thread.run_sync(graphs.read_graph, staged)
        else:
            digest = await self.shaper.write(staged, local_model(folder, metadata), metadata.options)
            metadata = replace(metadata, graph=digest)
            if old is not None and await anyio.to_thread.run_sync(graphs.is_edited, folder, old.graph):
                log.info("Model %s keeps its graph.pbtxt as somebody else wrote it", metadata.id)
                await anyio.to_thread.run_sync(shutil.copyfile, folder / model_files.GRAPH, staged / model_files.GRAPH)
        if old is not None:
            await self.release(local_model(folder, old))
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(write_metadata, staged, metadata)
            await anyio.to_thread.run_sync(publish, self.settings, metadata.id)
            model = local_model(folder, metadata)
            log.info("Model %s (%s, %s) is published", model.id, model.model_type, human(model.size))
            await self._events.tell("ovms_pulled", model=model)
        report(Progress("success", model.size, model.size, model.id, model.digest))
        return model

    def _complete(self, ref: ModelRef, declared: str) -> LocalModel | None:
        """Return the published model if it is whole and what is asked for; ``None`` if it has to be fetched.

        :raises BadRequest: it is here as another type than declared.
        """
        try:
            folder, metadata = self._found(ref.id)
        except NotFound:
            return None
        if (ref.revision and metadata.revision != ref.revision) or metadata.damaged:
            return None
        for path, (size, _) in metadata.files.items():
            file = folder / path
            if not file.is_file() or file.stat().st_size != size:
                return None
        if declared and declared != metadata.type:
            raise BadRequest(
                f"{ref.id} is installed here as type {metadata.type}; delete it first to pull it as {declared}."
            )
        return local_model(folder, metadata)

    # -- the folders -----------------------------------------------------------------------------------------------

    def _published(self) -> Sequence[tuple[Path, Metadata]]:
        found = []
        if self.settings.models_dir.is_dir():
            for folder in self.settings.models_dir.iterdir():
                if folder.name.startswith(".") or not folder.is_dir():
                    continue
                candidates = [folder] if (folder / model_files.METADATA).exists() else folder.iterdir()
                found += [(each, metadata) for each in candidates if (metadata := read_metadata(each))]
        return sorted(found, key=lambda pair: pair[1].id)

    def _found(self, model_id: str) -> tuple[Path, Metadata]:
        model_id = parse_model_id(model_id)
        folder = model_folder(self.settings, model_id)
        metadata = read_metadata(folder)
        # On a file system that ignores case another model's folder may answer.
        if metadata is None or metadata.id != model_id:
            names = ", ".join(each.id for _, each in self._published()) or "none"
            raise NotFound(
                f"Model {model_id} is not installed (installed: {names}); pull it with `ovms-plugin pull {model_id}`."
            )
        return folder, metadata
