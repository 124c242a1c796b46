"""What the author of a face or a dialect imports: a way for requests to arrive at the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ovms_kernel.errors import *
from ovms_kernel.on_demand import on_demand

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from ovms_kernel.admission import decode_request as decode_request
    from ovms_kernel.blame import blame as blame
    from ovms_kernel.declared import read_struct as read_struct
    from ovms_kernel.drivers import Dialect as Dialect
    from ovms_kernel.drivers import Face as Face
    from ovms_kernel.drivers import Service as Service
    from ovms_kernel.extensions import ExtensionReport as ExtensionReport
    from ovms_kernel.extensions import compose as compose
    from ovms_kernel.files import patiently as patiently
    from ovms_kernel.files import refused_by_system as refused_by_system
    from ovms_kernel.hookspecs import hookimpl as hookimpl
    from ovms_kernel.models.model_card import context_length as context_length
    from ovms_kernel.models.report import ResidentModel as ResidentModel
    from ovms_kernel.processes import collect_rarely as collect_rarely
    from ovms_kernel.quantities import parse_duration as parse_duration
    from ovms_kernel.quantities import parse_size as parse_size
    from ovms_kernel.server import RunningServer as RunningServer
    from ovms_kernel.server import noted_server as noted_server
    from ovms_kernel.server import only_server as only_server
    from ovms_kernel.server import read_server as read_server
    from ovms_kernel.settings import Settings as Settings
    from ovms_kernel.sse import read_events as read_events
    from ovms_kernel.streams import reported as reported
    from ovms_kernel.values import Answer as Answer
    from ovms_kernel.values import EngineInfo as EngineInfo
    from ovms_kernel.values import EngineStatus as EngineStatus
    from ovms_kernel.values import Host as Host
    from ovms_kernel.values import Installation as Installation
    from ovms_kernel.values import LocalModel as LocalModel
    from ovms_kernel.values import Message as Message
    from ovms_kernel.values import Progress as Progress
    from ovms_kernel.values import Request as Request
    from ovms_kernel.values import ServiceDefinition as ServiceDefinition
    from ovms_kernel.values import Upload as Upload
else:
    __getattr__ = on_demand(
        __name__,
        {
            "admission": "decode_request",
            "blame": "blame",
            "declared": "read_struct",
            "drivers": "Dialect Face Service",
            "extensions": "ExtensionReport compose",
            "files": "patiently refused_by_system",
            "hookspecs": "hookimpl",
            "models.model_card": "context_length",
            "models.report": "ResidentModel",
            "processes": "collect_rarely",
            "quantities": "parse_duration parse_size",
            "server": "RunningServer noted_server only_server read_server",
            "settings": "Settings",
            "sse": "read_events",
            "streams": "reported",
            "values": (
                "Answer EngineInfo EngineStatus Host Installation LocalModel Message Progress Request "
                "ServiceDefinition Upload"
            ),
        },
        own="KernelApi StreamedAnswer",
    )


class StreamedAnswer(Protocol):
    """How a dialect sends an answer in pieces: ``scope["ovms.stream"]`` of its requests.

    An error before the first piece is raised, so that it becomes an answer with a status. The request's id, for the
    kernel, is ``scope["ovms.request"]``.
    """

    async def __call__(
        self,
        chunks: AsyncGenerator[bytes, None],
        failed: Callable[[Exception], bytes],
        content_type: bytes,
        ping: bytes,
    ) -> None:
        """Send the pieces as they come.

        :param failed: makes the last piece of an error in the middle.
        :param ping: sent while nothing comes, so that the client does not give up; empty = nothing.
        """
        ...


class KernelApi(Protocol):
    """The kernel as faces see it. Every method raises ``OvmsError`` with a code and one sentence."""

    @property
    def settings(self) -> Settings:
        """All settings; a face's own section is given to its constructor."""
        ...

    @property
    def host(self) -> Host:
        """The machine."""
        ...

    @property
    def reports(self) -> Sequence[ExtensionReport]:
        """What became of each installed extension."""
        ...

    @property
    def services(self) -> Mapping[str, Service]:
        """The installed services by name."""
        ...

    def service(self, name: str) -> Service:
        """Return one service.

        :raises NotFound: there is none of that name.
        """
        ...

    def register(self, name: str, listener: object) -> None:
        """Have a listener's hooks called for the kernel's events, under a name such as ``faces.http``."""
        ...

    # -- requests --------------------------------------------------------------------------------------------------

    async def invoke(self, service: str, request: Request) -> Answer:
        """Answer one request as a whole."""
        ...

    def stream(self, service: str, request: Request) -> AsyncGenerator[bytes, None]:
        """Answer one request piece by piece; closing the iterator stops the generation.

        The pieces are server-sent events, unless the service has a ``stream_content_type`` that says otherwise; see
        ``StreamingService``.
        """
        ...

    def converse(self, service: str, inbound: AsyncIterator[Message]) -> AsyncGenerator[Message, None]:
        """Hold a session of messages."""
        ...

    # -- models ----------------------------------------------------------------------------------------------------

    async def list_models(self) -> list[LocalModel]:
        """Return the models on disk, by id."""
        ...

    async def resident_models(self) -> list[ResidentModel]:
        """Return what is loaded, being loaded or failed to load, by id."""
        ...

    async def running_models(self) -> list[LocalModel]:
        """Return the models that the engine serves now; none if it does not run."""
        ...

    async def pull_model(
        self, model: str, *, model_type: str = "", refresh: bool = ..., report: Callable[[Progress], None] = ...
    ) -> LocalModel:
        """Fetch a model from its hub, or find that it is here and complete.

        :param refresh: fetch what has changed on the hub, even if a complete copy is here.
        """
        ...

    async def import_model(
        self,
        source: Path,
        model: str,
        *,
        model_type: str = "",
        options: Mapping[str, Any] | None = None,
        report: Callable[[Progress], None] = ...,
    ) -> LocalModel:
        """Copy a model from a folder or archive on this machine."""
        ...

    async def load_model(self, model: str, *, keep_alive: float | None = None) -> LocalModel:
        """Make the engine serve a model; ``keep_alive`` as in ``Request``."""
        ...

    async def pin_model(self, model: str, *, pinned: bool = ...) -> LocalModel:
        """Keep a model loaded, once it is, until a person unpins or unloads it; this outlives a restart."""
        ...

    def default_idle_unload(self, seconds: float) -> None:
        """Unload models that were idle for so long, where no setting says otherwise; each face says its own."""
        ...

    async def unload_models(self, models: Sequence[str], reason: str = ..., *, hint: bool = False) -> None:
        """Unload models; those that are not loaded are passed over.

        :param hint: they may go first when memory is needed, or after a while; models in use stay.
        """
        ...

    async def delete_model(self, model: str) -> None:
        """Unload a model and remove it from disk."""
        ...

    # -- the engine ------------------------------------------------------------------------------------------------

    async def check_engine(self) -> bool:
        """Tell whether an engine is installed."""
        ...

    async def install_engine(self, version: str = "", *, report: Callable[[Progress], None] = ...) -> Installation:
        """Install an engine version and make it the active one."""
        ...

    async def init_environment(self) -> None:
        """Make the folders and the engine's configuration file."""
        ...

    async def start_engine(self, device: str = "") -> None:
        """Start the engine if it does not run; return before it is ready.

        :param device: ``CPU`` or ``GPU`` for models that name none; empty means that the engine chooses.
        :raises PreconditionFailed: no engine is installed, or the machine has no such device.
        """
        ...

    async def stop_engine(self, reason: str = ...) -> None:
        """Stop the engine."""
        ...

    async def upgrade_engine(self, version: str = "", *, report: Callable[[Progress], None] = ...) -> Installation:
        """Bring the engine to the wanted version, or put the old one back."""
        ...

    async def engine(self) -> EngineInfo:
        """Return the running engine, started and ready."""
        ...

    async def engine_status(self) -> EngineStatus:
        """Return where the engine is and what it does, without starting it."""
        ...

    async def engine_version(self) -> str:
        """Return the version that the active engine's own program names."""
        ...

    async def health(self) -> None:
        """Return if the engine answers now.

        :raises Unavailable: it does not; the sentence says why.
        """
        ...

    async def stop(self, reason: str = ...) -> None:
        """Admit nothing more and stop the engine."""
        ...
