"""How a model comes to be published: pulled from a hub or taken in from this machine, recognised, and given a graph.

The caller holds the model's lock. Everything that can fail does so before anything is published.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ovms_kernel.errors import BadRequest
from ovms_kernel.files import Meter, check_space, human, run_with_progress, sync_tree
from ovms_kernel.models import facts
from ovms_kernel.models import files as model_files
from ovms_kernel.models import graph as graphs
from ovms_kernel.models.importing import copy_into, open_source
from ovms_kernel.models.metadata import Metadata, is_whole, local_model, read_metadata, write_metadata
from ovms_kernel.models.properties import check_files, check_imported
from ovms_kernel.models.publish import (
    check_target,
    discard,
    model_folder,
    open_staging,
    publish,
    staged_files,
    staging_folder,
)
from ovms_kernel.models.pulling import Staging, check_format, choose_files
from ovms_kernel.models.soundness import check_sound
from ovms_kernel.values import ModelFiles, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ovms_kernel.drivers import Hub
    from ovms_kernel.events import Events
    from ovms_kernel.models.shaping import Shaper
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import LocalModel, ModelRef, PullPlan

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller wants to have."""

    ref: ModelRef
    declared: str = ""
    """The model type; empty means what the files say."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Calculator options for its graph."""

    @property
    def id(self) -> str:
        """The model's id."""
        return self.ref.id


class Arrivals:
    """Brings models into one library."""

    def __init__(self, settings: Settings, events: Events, shaper: Shaper) -> None:
        self._settings = settings
        self._events = events
        self._shaper = shaper

    async def plan(self, hub: Hub, ref: ModelRef) -> PullPlan:
        """Return what a pull that looks at the hub would fetch now, without changing anything."""
        staging = await self._staging(hub, ref)
        return await anyio.to_thread.run_sync(staging.plan)

    async def _staging(self, hub: Hub, ref: ModelRef) -> Staging:
        """Return where a model would grow, and of what; nothing is made yet.

        :raises BadRequest: it is no model that can be served.
        """
        files = choose_files(await hub.list_files(ref), ref.id)
        check_target(self._settings, ref.id)
        published = model_folder(self._settings, ref.id)
        known = await anyio.to_thread.run_sync(read_metadata, published)
        return Staging(ref, staged_files(self._settings, ref.id), files, published, known)

    async def pull(self, hub: Hub, wish: Wish, report: Callable[[Progress], None]) -> LocalModel:
        """Fetch a model, going on where an earlier pull of the same broke off; nothing happens if it is here as wished.

        :raises BadRequest: it is refused, before its weights are fetched; nothing of it is kept but an earlier pull.
        """
        ref = wish.ref
        report(Progress("listing", subject=ref.id))
        staging = await self._staging(hub, ref)
        if model := await anyio.to_thread.run_sync(_had, wish, staging):
            report(Progress("success", model.size, model.size, model.id, model.digest))
            return model
        plan = await anyio.to_thread.run_sync(staging.plan)
        check_space(self._settings.models_dir, plan.total - plan.present, f"Pulling {ref.id}")
        await self._events.ask("ovms_before_pull", model=ref, plan=plan)
        begun = await anyio.to_thread.run_sync(open_staging, self._settings, ref.id, staging.origin)
        try:
            await staging.prepare(report)
            texts = await staging.fetch_texts(hub, report)
            sizes = {file.path: file.size for file in staging.files}
            described = ModelFiles(ref.id.rsplit("/", 1)[-1], sizes, texts)
            check_files(described, ref.id)
            model_type = self._shaper.recognise(described, wish.declared, ref.id)
            await anyio.to_thread.run_sync(self._shaper.check, described, model_type, ref.id, wish.options)
            await staging.check_gguf(hub)
        except BadRequest:
            if not begun:
                await self._drop(wish)
            raise
        await staging.fetch(hub, report)
        digests = await staging.digests(report)
        metadata = Metadata(ref.id, model_type, digests, ref.hub, ref.revision, options=dict(wish.options))
        return await self._finish(staging.folder, metadata, report)

    async def take_in(self, source: Path, wish: Wish, report: Callable[[Progress], None]) -> LocalModel:
        """Copy a model from a folder or archive; if that fails, nothing of it is kept.

        :raises BadRequest: it is refused.
        """
        found = await anyio.to_thread.run_sync(open_source, source)
        if self._settings.models_dir.absolute() in (found.path, *found.path.parents):
            raise BadRequest(f"{source} lies in this plugin's own models folder; import from somewhere else.")
        check_format(found.sizes, str(source))
        check_target(self._settings, wish.id)
        total = sum(found.sizes.values())
        check_space(self._settings.models_dir, total, f"Importing {wish.id}")
        # Copying is quick and cannot be resumed safely, as the source may have changed.
        await self._drop(wish)
        open_staging(self._settings, wish.id, {"import": str(source)})
        into = staged_files(self._settings, wish.id)
        meter = Meter("importing", total)
        try:
            files = await run_with_progress(lambda: copy_into(found, into, meter), meter, report)
            metadata = Metadata(wish.id, wish.declared, files, source=str(source), options=dict(wish.options))
            return await self._finish(into, metadata, report)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._drop(wish)
            raise

    async def _finish(self, staged: Path, metadata: Metadata, report: Callable[[Progress], None]) -> LocalModel:
        """Recognise, write graph and note, publish; everything that can fail does so before anything is published."""
        identifier = metadata.id.rsplit("/", 1)[-1]
        described = await anyio.to_thread.run_sync(model_files.read_files, staged, identifier)
        check_files(described, metadata.id)
        header = await anyio.to_thread.run_sync(check_sound, staged, described.sizes)
        weights = await anyio.to_thread.run_sync(facts.weights_of, staged, described.sizes)
        metadata = replace(
            metadata,
            type=self._shaper.recognise(described, metadata.type, metadata.id),
            format=facts.format_of(described.sizes),
            family=header.architecture if header else facts.family_of(described),
            parameter_size=facts.parameter_size_of(described, weights) or (header.parameters if header else ""),
            quantization=header.quantization if header else facts.quantization_of(described, weights),
        )
        folder = model_folder(self._settings, metadata.id)
        old = await anyio.to_thread.run_sync(read_metadata, folder)
        if metadata.source and (staged / model_files.GRAPH).exists():
            await anyio.to_thread.run_sync(self._check_graph, staged, described, metadata)
        else:
            if guess := self._shaper.guess_of(described, metadata.type, metadata.id, metadata.options):
                log.warning("%s", guess)
            digest = await self._shaper.write(staged, local_model(folder, metadata), metadata.options)
            metadata = replace(metadata, graph=digest)
            if old is not None and await anyio.to_thread.run_sync(graphs.is_edited, folder, old.graph):
                log.info("Model %s keeps its graph.pbtxt as somebody else wrote it", metadata.id)
                await anyio.to_thread.run_sync(shutil.copyfile, folder / model_files.GRAPH, staged / model_files.GRAPH)
        # The note says that everything else is there, so everything else has to survive whatever the note survives.
        await anyio.to_thread.run_sync(sync_tree, staged)
        if old is not None:
            await self._events.tell("ovms_before_replace", model=local_model(folder, old))
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(write_metadata, staged, metadata)
            await anyio.to_thread.run_sync(publish, self._settings, metadata.id)
            model = local_model(folder, metadata)
            log.info("Model %s (%s, %s) is published", model.id, model.model_type, human(model.size))
            await self._events.tell("ovms_pulled", model=model)
        report(Progress("success", model.size, model.size, model.id, model.digest))
        return model

    def _check_graph(self, staged: Path, described: ModelFiles, metadata: Metadata) -> None:
        if (own := graphs.read_graph(staged)) is not None:
            usual = self._shaper.check(described, metadata.type, metadata.id, metadata.options)
            check_imported(own, usual)

    async def _drop(self, wish: Wish) -> None:
        """Remove what is in staging of a model."""

        def work() -> None:
            folder = staging_folder(self._settings, wish.id)
            if folder.exists():
                discard(self._settings, folder)

        await anyio.to_thread.run_sync(work)


def _had(wish: Wish, staging: Staging) -> LocalModel | None:
    """Return the published model if it is what is wished for, to the last file of the hub's."""
    ref, known = wish.ref, staging.known
    if known is None or len(staging.same) < max(len(staging.files), len(known.files)):
        return None
    if (known.hub, known.revision, dict(known.options)) != (ref.hub, ref.revision, dict(wish.options)):
        return None
    if wish.declared not in ("", known.type) or not is_whole(staging.published, known):
        return None
    return local_model(staging.published, known)
