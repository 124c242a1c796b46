"""The kernel: one method for each thing that a face can ask.

It knows that there are services, platforms, graphs and hubs, and none of them by name.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

import anyio
import anyio.to_thread

from ovms_kernel import aliases
from ovms_kernel.admission import Admission, checked, end_of, in_time
from ovms_kernel.errors import NotSupported, OvmsError, PreconditionFailed
from ovms_kernel.models.names import parse_model_ref
from ovms_kernel.request_engine import RequestEngine
from ovms_kernel.values import Answer, Request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from ovms_kernel.aliases import AliasSettings
    from ovms_kernel.drivers import ConversingService, Service, StreamingService
    from ovms_kernel.engine.control import EngineControl
    from ovms_kernel.engine.installation import Installations
    from ovms_kernel.engine.supervisor import Supervisor
    from ovms_kernel.events import Events
    from ovms_kernel.extensions import ExtensionReport, Extensions
    from ovms_kernel.live_settings import LiveSettings
    from ovms_kernel.models.graph_writer import GraphWriter
    from ovms_kernel.models.ingest import Ingest
    from ovms_kernel.models.passport import Passports
    from ovms_kernel.models.report import ResidentModel
    from ovms_kernel.models.residency import Residency
    from ovms_kernel.models.servables import Servables
    from ovms_kernel.models.store import Store
    from ovms_kernel.values import (
        Call,
        EngineInfo,
        EngineStatus,
        Host,
        Installation,
        LocalModel,
        Message,
        Progress,
    )

    Report: TypeAlias = Callable[[Progress], None]


def _unheard(_: Progress) -> None:
    """Take progress that nobody wants to hear of."""


@dataclass(eq=False, repr=False)
class Kernel:
    """Everything that a face can ask, once entered as an async context manager; ``compose.py`` makes one."""

    live: LiveSettings
    host: Host
    events: Events
    extensions: Extensions
    installations: Installations
    store: Store
    graphs: GraphWriter
    ingest: Ingest
    supervisor: Supervisor
    control: EngineControl
    servables: Servables
    residency: Residency
    passports: Passports

    def __post_init__(self) -> None:
        self.settings = self.live.now()
        """Those of the start."""
        self._stack = AsyncExitStack()
        self._stopping = False

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.residency)
        await self._stack.enter_async_context(self.supervisor)
        self._stack.push_async_callback(self.ingest.aclose)
        await anyio.to_thread.run_sync(self.store.empty_trash)
        await self.events.tell("ovms_kernel_started", extensions=self.extensions.reports)
        return self

    async def __aexit__(self, *exception: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.stop()
        await self._stack.aclose()

    async def stop(self, reason: str = "the plugin ends") -> None:
        """Admit nothing more and stop the engine; a second call waits for the first and does nothing."""
        if not self._stopping:
            self._stopping = True
            self.control.close()
            await self.events.tell("ovms_kernel_stopping", reason=reason)
        await self.stop_engine(reason)

    # -- the engine ------------------------------------------------------------------------------------------------

    async def check_engine(self) -> bool:
        """Tell whether an engine is installed."""
        return await anyio.to_thread.run_sync(self.installations.active) is not None

    async def install_engine(
        self, version: str = "", *, platform: str = "", retry: bool = False, report: Report = _unheard
    ) -> Installation:
        """Install an engine and make it the active one; see ``platform_selection.install_engine``.

        :param version: empty means the one by setting, like ``platform``.
        """
        return await self.control.install(version, platform, retry=retry, report=report)

    async def init_environment(self) -> None:
        """Make the folders and the engine's configuration file."""
        await self.servables.prepare()

    async def start_engine(self, device: str = "") -> None:
        """Start the engine if it does not run; see ``KernelApi``."""
        self.control.check_open()
        self.control.installed()
        if device and device not in self.host.devices:
            raise PreconditionFailed(f"This machine shows no {device}; start with another device or none.")
        self.residency.choose_device(device)
        await self.init_environment()
        await self.control.start()

    async def stop_engine(self, reason: str = "asked to") -> None:
        """Stop the engine; nothing happens if it does not run."""
        await self.control.stop(reason)

    async def upgrade_engine(self, version: str = "", *, report: Report = _unheard) -> Installation:
        """Bring the engine to the wanted version; the old one is put back if the new one does not come up healthy.

        Nothing is downloaded unless a version was asked for, here or by setting, so a face may ask after every start.
        """
        from ovms_kernel.upgrade import upgrade

        async with self.control.installing:
            return await upgrade(self, version or self.settings.engine_version, report)

    async def engine(self) -> EngineInfo:
        """Return the running engine, starting it if it does not run and waiting until it is ready."""
        return await self.control.ready()

    def engine_runs(self) -> bool:
        """Tell whether there is an engine already: here, of another process on this data folder, or elsewhere."""
        return self.control.runs()

    async def health(self) -> None:
        """Return if the engine answers now; see ``KernelApi``."""
        await self.control.health()

    async def engine_version(self) -> str:
        """Return the version that the active engine's own program names; it is run once for that."""
        return await self.control.version()

    async def engine_status(self) -> EngineStatus:
        """Return where the engine is and what it does, without starting it."""
        return await self.control.status()

    # -- models ----------------------------------------------------------------------------------------------------

    @property
    def aliases(self) -> Mapping[str, AliasSettings]:
        """The further names of models, as the config file has them now."""
        return self.live.now().aliases

    async def pull_model(
        self, model: str, *, model_type: str = "", refresh: bool = False, report: Report = _unheard
    ) -> LocalModel:
        """Fetch a model from its hub, or find that it is here and complete; see :meth:`Ingest.pull`."""
        ref = parse_model_ref(aliases.files_of(self.aliases, model))
        return await self.ingest.pull(ref, model_type=model_type, refresh=refresh, report=report)

    async def import_model(
        self,
        source: Path,
        model: str,
        *,
        model_type: str = "",
        options: Mapping[str, Any] | None = None,
        report: Report = _unheard,
    ) -> LocalModel:
        """Take a model in from a folder or archive on this machine; see :meth:`Ingest.import_`."""
        aliases.refuse(self.aliases, model)
        return await self.ingest.import_(source, model, model_type=model_type, options=options, report=report)

    async def delete_model(self, model: str) -> None:
        """Unload a model and remove it from disk."""
        aliases.refuse(self.aliases, model)
        await self.store.delete(model)

    async def list_models(self) -> list[LocalModel]:
        """Return the models on disk and their aliases, by id."""
        return aliases.listed(self.aliases, await anyio.to_thread.run_sync(self.store.served))

    async def running_models(self) -> list[LocalModel]:
        """Return the models that the engine serves now, and their aliases; none if it does not run."""
        return aliases.listed(self.aliases, await self.residency.running() if self.supervisor.info else [])

    async def resident_models(self) -> list[ResidentModel]:
        """Return what is loaded, being loaded or failed to load, by id."""
        elsewhere = self.supervisor.info is not None and self.supervisor.owned_pid is None
        return await self.residency.resident_models(elsewhere=elsewhere)

    async def load_model(self, model: str, *, keep_alive: float | None = None) -> LocalModel:
        """Make the engine serve a model; ``keep_alive`` as in ``Request``."""
        self.control.check_open()
        return (await self.residency.load(aliases.target(self.aliases, model), keep_alive=keep_alive)).model

    async def pin_model(self, model: str, *, pinned: bool = True) -> LocalModel:
        """Keep a model loaded, once it is, until a person unpins or unloads it; this outlives a restart."""
        return await self.residency.pin(aliases.target(self.aliases, model), pinned=pinned)

    def default_idle_unload(self, seconds: float) -> None:
        """Unload models that were idle for so long, where no setting says otherwise; each face says its own."""
        self.residency.default_idle_unload(seconds)

    async def unload_models(self, models: Sequence[str], reason: str = "asked to", *, hint: bool = False) -> None:
        """Unload models; see ``KernelApi``."""
        for model in (aliases.target(self.aliases, each) for each in models):
            if hint:
                self.residency.hint(model)
            else:
                await self.residency.unload(model, reason)

    # -- services --------------------------------------------------------------------------------------------------

    @property
    def services(self) -> Mapping[str, Service]:
        """The installed services by name."""
        return self.extensions.services

    @property
    def reports(self) -> Sequence[ExtensionReport]:
        """What became of each installed extension."""
        return self.extensions.reports

    def register(self, name: str, listener: object) -> None:
        """Have a listener's hooks called for the kernel's events, under a name such as ``faces.http``.

        :raises OvmsError: the listener has hooks that there are not.
        """
        if cause := self.events.register({name: listener}).get(name):
            raise OvmsError(f"The listener {name} cannot be registered: {cause}.")

    def service(self, name: str) -> Service:
        """Return the service of that name.

        :raises NotFound: there is none.
        """
        return self.extensions.service(name)

    async def invoke(self, service: str, request: Request) -> Answer:
        """Answer one request as a whole."""
        driver = self.service(service)
        self.control.check_open()
        async with Admission(self.events, service, request, streaming=False) as (admission, sent):
            call, engine = self._asked(admission)
            answer = await in_time(driver.invoke(call, engine), end_of(request), engine.late)
            sent.model = checked(answer, Answer, service).model
            sent.add(answer.body)
            return answer

    async def stream(self, service: str, request: Request) -> AsyncGenerator[bytes, None]:
        """Answer one request piece by piece; closing the iterator stops the generation."""
        driver = self.service(service)
        if not driver.definition.streaming:
            raise NotSupported(f"The service {service} does not stream; ask for the whole answer.")
        self.control.check_open()
        end = end_of(request)
        async with Admission(self.events, service, request, streaming=True) as (admission, sent):
            call, engine = self._asked(admission)
            async with aclosing(cast("StreamingService", driver).stream(call, engine)) as chunks:
                # The limit holds for each wait, as a scope must not span a generator's yields.
                while (chunk := await in_time(anext(chunks, None), end, engine.late)) is not None:
                    sent.add(checked(chunk, bytes, service))
                    yield chunk

    async def converse(self, service: str, inbound: AsyncIterator[Message]) -> AsyncGenerator[Message, None]:
        """Hold a session of messages, which counts as one request whose body is empty."""
        driver = self.service(service)
        if not driver.definition.bidirectional:
            raise NotSupported(f"The service {service} does not hold sessions; ask it with a single request.")
        self.control.check_open()
        async with (
            Admission(self.events, service, Request(), streaming=True) as (call, sent),
            aclosing(cast("ConversingService", driver).converse(inbound, self._asked(call)[1])) as messages,
        ):
            async for message in messages:
                sent.add(message.data)
                yield message

    def _asked(self, call: Call) -> tuple[Call, RequestEngine]:
        """Return what a service is asked: the call, and the engine, which the first thing that needs one starts.

        So what is wrong with a request, or with the model that it names, is said without starting anything.
        """
        if not self.supervisor.started:
            self.control.installed()
        named = self.aliases
        return aliases.with_fields(named, call), RequestEngine(
            self.control.client, self.residency, call.keep_alive, named, call.timeout
        )
