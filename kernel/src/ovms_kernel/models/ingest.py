"""How a model gets here: pulled from a hub or imported from this machine, checked, given a graph, and published.

Everything that can fail does so before anything is published.
"""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import msgspec
from msgspec.structs import replace

from ovms_kernel.drivers import ModelFiles, SearchableHub
from ovms_kernel.errors import BadRequest, NotFound, NotSupported, PreconditionFailed
from ovms_kernel.fetch.http import FetchFailed
from ovms_kernel.fetch.transfer import rising
from ovms_kernel.files import Meter, check_lengths, check_space, disk_errors, human, run_with_progress, sync_tree
from ovms_kernel.models import checks, gguf, model_card
from ovms_kernel.models.graph_writer import read_graph
from ovms_kernel.models.import_source import copy_into, open_source
from ovms_kernel.models.model_record import (
    GRAPH,
    ModelRecord,
    is_edited,
    is_whole,
    local_model,
    read_record,
    write_record,
)
from ovms_kernel.models.names import parse_model_id
from ovms_kernel.models.staging import (
    Download,
    check_target,
    discard,
    model_folder,
    open_staging,
    publish,
    staged_files,
    staging_folder,
    watch_staging,
)
from ovms_kernel.single_flight import Conflict, SingleFlight
from ovms_kernel.values import LocalModel, ModelRef, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ovms_kernel.drivers import FoundModel, Hub
    from ovms_kernel.events import Events
    from ovms_kernel.models.graph_writer import GraphWriter
    from ovms_kernel.models.store import Store
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import PullPlan, RemoteFile

log = logging.getLogger(__name__)


class Wish(msgspec.Struct, frozen=True):
    """What a caller wants to have."""

    ref: ModelRef
    declared: str = ""
    """The model type; empty means what the files say."""
    options: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Calculator options for its graph."""

    @property
    def id(self) -> str:
        """The model's id."""
        return self.ref.id


class Ingest:
    """Brings models into a store.

    :param hubs: returns hub drivers by name, as the settings have them now.
    :param live: returns the settings that hold now.
    """

    def __init__(
        self,
        settings: Settings,
        events: Events,
        store: Store,
        graphs: GraphWriter,
        hubs: Callable[[], Mapping[str, Hub]],
        live: Callable[[], Settings],
    ) -> None:
        self._settings = settings
        self._live = live
        self._events = events
        self._store = store
        self._graphs = graphs
        self._hubs = hubs
        self._pulls: SingleFlight[LocalModel, Progress] = SingleFlight(cancel_abandoned=True)

    async def aclose(self) -> None:
        """Cancel the pulls that go on and return when they have ended; what has arrived is kept."""
        await self._pulls.aclose()

    # -- what people and faces ask ---------------------------------------------------------------------------------

    async def plan(self, ref: ModelRef) -> PullPlan:
        """Return what the hub has of a model and how much of that is here, without changing anything.

        :raises BadRequest: it is no model that can be served.
        """
        ref, hub = self._on_hub(ref)
        download = await self._download(hub, ref)
        return await anyio.to_thread.run_sync(download.plan)

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
        report: Callable[[Progress], None] = lambda _: None,
    ) -> LocalModel:
        """Fetch a model from its hub; a second request for the same joins, and the last to be cancelled stops it.

        A complete copy is returned as it is, without a look at the network.

        :param model_type: what it is; empty means what its files say.
        :param options: calculator options for its graph.
        :param refresh: look at the hub even so, and fetch what has changed there; if nothing has, nothing happens.
        :raises BadRequest: it is no model that can be served, or not of that type; nothing has changed.
        :raises OvmsError: as the hub driver; what has arrived is kept, and the next pull goes on from there.
        """
        self._graphs.check_type(model_type)
        if not refresh and (model := await anyio.to_thread.run_sync(self._complete, ref, model_type)):
            report(Progress("success", model.size, model.size, model.id, model.digest))
            return model
        ref, hub = self._on_hub(ref)
        wanted = (ref, model_type, dict(options or {}))

        async def work(tell: Callable[[Progress], None]) -> LocalModel:
            watch = watch_staging(staging_folder(self._settings, ref.id), tell)
            with disk_errors(f"Pulling {ref.id}"):
                async with self._store.hold(ref.id, waiting=watch):
                    if not refresh and (here := await anyio.to_thread.run_sync(self._complete, ref, model_type)):
                        return here
                    return await self._pull(hub, Wish(ref, model_type, options or {}), rising(tell))

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
        report: Callable[[Progress], None] = lambda _: None,
    ) -> LocalModel:
        """Take in a model from a folder or archive on this machine; an older one of that id is replaced.

        :param model_type: what it is; empty means what its files say.
        :param options: calculator options for its graph.
        :raises BadRequest: it is no model that can be served, or not of that type; nothing has changed.
        """
        model_id = parse_model_id(model_id)
        self._graphs.check_type(model_type)
        with disk_errors(f"Importing {model_id}"):
            watch = watch_staging(staging_folder(self._settings, model_id), report)
            async with self._store.hold(model_id, waiting=watch):
                wish = Wish(ModelRef(model_id), model_type, options or {})
                return await self._import(source, wish, report)

    # -- hubs ------------------------------------------------------------------------------------------------------

    def _on_hub(self, ref: ModelRef) -> tuple[ModelRef, Hub]:
        """Return the reference with its hub's name, and that hub.

        :raises NotSupported: there is none of that name.
        """
        hubs = self._hubs()
        name = self._hub_name(ref.hub or self._live().hub)
        if name not in hubs:
            offered = ", ".join(sorted(hubs)) or "none"
            raise NotSupported(
                f"There is no hub {name!r} (installed: {offered}); install ovms-hub-{name} or name another."
            )
        return replace(ref, hub=name), hubs[name]

    def _hub_name(self, name: str) -> str:
        """Return the name of the hub that has that name or that short name."""
        return next((each for each, hub in self._hubs().items() if getattr(hub, "alias", "") == name), name)

    def _complete(self, ref: ModelRef, declared: str) -> LocalModel | None:
        """Return the published model if it is whole and what is asked for; ``None`` if it has to be fetched.

        :raises BadRequest: it is here as another type than declared.
        """
        try:
            folder, record = self._store.entry(ref.id)
        except (NotFound, PreconditionFailed):
            return None
        if ref.hub and record.hub not in ("", self._hub_name(ref.hub)):
            return None  # another hub's model of that name was asked for
        if (ref.revision and record.revision != ref.revision) or not is_whole(folder, record):
            return None
        if declared and declared != record.type:
            raise BadRequest(
                f"{ref.id} is installed here as type {record.type}; delete it first to pull it as {declared}."
            )
        return local_model(folder, record)

    # -- under the lock of the model -------------------------------------------------------------------------------

    async def _download(self, hub: Hub, ref: ModelRef) -> Download:
        """Return where a model would grow, and of what; nothing is made yet.

        :raises BadRequest: it is no model that can be served.
        """
        files = checks.choose_files(await hub.list_files(ref), ref.id)
        check_target(self._settings, ref.id)
        published = model_folder(self._settings, ref.id)
        known = await anyio.to_thread.run_sync(read_record, published)
        return Download(ref, staged_files(self._settings, ref.id), files, published, known)

    async def _pull(self, hub: Hub, wish: Wish, report: Callable[[Progress], None]) -> LocalModel:
        """Fetch a model, going on where an earlier pull of the same broke off; nothing happens if it is here as wished.

        :raises BadRequest: it is refused, before its weights are fetched; nothing of it is kept but an earlier pull.
        """
        ref = wish.ref
        report(Progress("listing", subject=ref.id))
        download = await self._download(hub, ref)
        if model := await anyio.to_thread.run_sync(_had, wish, download):
            report(Progress("success", model.size, model.size, model.id, model.digest))
            return model
        plan = await anyio.to_thread.run_sync(download.plan)
        check_space(self._settings.models_dir, plan.total - plan.present, f"Pulling {ref.id}")
        check_lengths(download.folder, (file.path for file in download.files), f"Pulling {ref.id}")
        await self._events.ask("ovms_before_pull", model=ref, plan=plan)
        begun = await anyio.to_thread.run_sync(open_staging, self._settings, ref.id, download.origin)
        try:
            await download.prepare(report)
            texts = await download.fetch_texts(hub, report)
            sizes = {file.path: file.size for file in download.files}
            described = ModelFiles(ref.id.rsplit("/", 1)[-1], sizes, texts)
            checks.check_files(described, ref.id)
            model_type = self._graphs.recognise(described, wish.declared, ref.id)
            await anyio.to_thread.run_sync(self._graphs.check, described, model_type, ref.id, wish.options)
            await _check_gguf(hub, ref, download.files)
        except BadRequest:
            if not begun:
                await self._drop(wish)
            raise
        await download.fetch(hub, report)
        digests = await download.digests(report)
        record = ModelRecord(ref.id, model_type, digests, ref.hub, ref.revision, options=dict(wish.options))
        return await self._finish(download.folder, record, report)

    async def _import(self, source: Path, wish: Wish, report: Callable[[Progress], None]) -> LocalModel:
        """Copy a model from a folder or archive; if that fails, nothing of it is kept.

        :raises BadRequest: it is refused.
        """
        found = await anyio.to_thread.run_sync(open_source, source)
        if self._settings.models_dir.absolute() in (found.path, *found.path.parents):
            raise BadRequest(f"{source} lies in this plugin's own models folder; import from somewhere else.")
        checks.check_format(found.sizes, str(source))
        check_target(self._settings, wish.id)
        total = sum(found.sizes.values())
        check_space(self._settings.models_dir, total, f"Importing {wish.id}")
        check_lengths(staged_files(self._settings, wish.id), found.sizes, f"Importing {wish.id}")
        # Copying is quick and cannot be resumed safely, as the source may have changed.
        await self._drop(wish)
        open_staging(self._settings, wish.id, {"import": str(source)})
        into = staged_files(self._settings, wish.id)
        meter = Meter("importing", total)
        try:
            files = await run_with_progress(lambda: copy_into(found, into, meter), meter, report)
            record = ModelRecord(wish.id, wish.declared, files, source=str(source), options=dict(wish.options))
            return await self._finish(into, record, report)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._drop(wish)
            raise

    async def _finish(self, staged: Path, record: ModelRecord, report: Callable[[Progress], None]) -> LocalModel:
        """Recognise, write graph and record, publish; everything that can fail does so before anything is published."""
        identifier = record.id.rsplit("/", 1)[-1]
        described = await anyio.to_thread.run_sync(model_card.read_files, staged, identifier)
        checks.check_files(described, record.id)
        header = await anyio.to_thread.run_sync(checks.check_sound, staged, described.sizes)
        weights = await anyio.to_thread.run_sync(model_card.weights_of, staged, described.sizes)
        record = replace(
            record,
            type=self._graphs.recognise(described, record.type, record.id),
            format=model_card.format_of(described.sizes),
            family=header.architecture if header else model_card.family_of(described),
            parameter_size=model_card.parameter_size_of(described, weights) or (header.parameters if header else ""),
            quantization=header.quantization if header else model_card.quantization_of(described, weights),
        )
        folder = model_folder(self._settings, record.id)
        old = await anyio.to_thread.run_sync(read_record, folder)
        if record.source and (staged / GRAPH).exists():
            await anyio.to_thread.run_sync(self._check_graph, staged, described, record)
        else:
            if guess := self._graphs.guess_of(described, record.type, record.id, record.options):
                log.warning("%s", guess)
            digest = await self._graphs.write(staged, local_model(folder, record), record.options)
            record = replace(record, graph=digest)
            if old is not None and await anyio.to_thread.run_sync(is_edited, folder, old.graph):
                log.info("Model %s keeps its graph.pbtxt as somebody else wrote it", record.id)
                await anyio.to_thread.run_sync(shutil.copyfile, folder / GRAPH, staged / GRAPH)
        # The record says that everything else is there, so everything else has to survive whatever the record survives.
        await anyio.to_thread.run_sync(sync_tree, staged)
        if old is not None:
            await self._events.tell("ovms_before_replace", model=local_model(folder, old))
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(write_record, staged, record)
            await anyio.to_thread.run_sync(publish, self._settings, record.id)
            model = local_model(folder, record)
            log.info("Model %s (%s, %s) is published", model.id, model.model_type, human(model.size))
            await self._events.tell("ovms_pulled", model=model)
        report(Progress("success", model.size, model.size, model.id, model.digest))
        return model

    def _check_graph(self, staged: Path, described: ModelFiles, record: ModelRecord) -> None:
        if (own := read_graph(staged)) is not None:
            usual = self._graphs.check(described, record.type, record.id, record.options)
            checks.check_imported(own, usual)

    async def _drop(self, wish: Wish) -> None:
        """Remove what is in staging of a model."""

        def work() -> None:
            folder = staging_folder(self._settings, wish.id)
            if folder.exists():
                discard(self._settings, folder)

        await anyio.to_thread.run_sync(work)


def _had(wish: Wish, download: Download) -> LocalModel | None:
    """Return the published model if it is what is wished for, to the last file of the hub's."""
    ref, known = wish.ref, download.known
    if known is None or len(download.same) < max(len(download.files), len(known.files)):
        return None
    if (known.hub, known.revision, dict(known.options)) != (ref.hub, ref.revision, dict(wish.options)):
        return None
    if wish.declared not in ("", known.type) or not is_whole(download.published, known):
        return None
    return local_model(download.published, known)


async def _check_gguf(hub: Hub, ref: ModelRef, files: Sequence[RemoteFile]) -> None:
    """Read the header of a GGUF model from the hub, and refuse what the engine cannot load.

    :raises BadRequest: it cannot.
    """
    for file in files:
        if file.path.endswith(".gguf") and "mmproj" not in file.path and not gguf.LATER_PART.search(file.path):

            def read(file: RemoteFile = file) -> gguf.Gguf:
                body = hub.open(ref, file, 0, min(file.size, gguf.HEADER_LIMIT) - 1)
                try:
                    return gguf.read_header(body.read, file.path)
                finally:
                    body.close()

            try:
                header = await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
            except FetchFailed as error:
                log.info("The header of %s cannot be read yet: %s", file.path, error.message)
                return  # it is read again when all of it is here
            gguf.check_loadable(header, file.path, file.size)
