"""From settings to a wired kernel: the only place that connects parts.

Constructors have no side effects. What a part needs of another one is handed to it here, and what it listens to is
registered here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ovms_kernel.engine.control import EngineControl
from ovms_kernel.engine.host import driver_of, read_host
from ovms_kernel.engine.installation import Installations
from ovms_kernel.engine.probe import IdleProbe
from ovms_kernel.engine.supervisor import Supervisor
from ovms_kernel.events import Events
from ovms_kernel.extensions import compose
from ovms_kernel.kernel import Kernel
from ovms_kernel.live_settings import LiveSettings
from ovms_kernel.models.graph_writer import GraphWriter
from ovms_kernel.models.ingest import Ingest
from ovms_kernel.models.loader import Loader
from ovms_kernel.models.memory import Memory, engine_memory
from ovms_kernel.models.passport import Key, Passports
from ovms_kernel.models.residency import Residency
from ovms_kernel.models.servables import Servables
from ovms_kernel.models.store import Store
from ovms_kernel.models.vetting import Vetting, questions_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ovms_kernel.drivers import GraphTemplate, Hub
    from ovms_kernel.engine.client import EngineClient
    from ovms_kernel.extensions import Extensions
    from ovms_kernel.models.plan import Table
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import Host


class Models(NamedTuple):
    """What there is of models without an engine."""

    store: Store
    graphs: GraphWriter
    ingest: Ingest


def compose_kernel(settings: Settings, *, host: Host | None = None, extensions: Extensions | None = None) -> Kernel:
    """Return a kernel, which works once it is entered as an async context manager.

    :param host: instead of the machine that this runs on.
    :param extensions: instead of those that are installed.
    """
    host = host or read_host()
    events = Events(settings.hook_timeout)
    if extensions is None:
        extensions = compose(settings, host, events=events)
    else:
        events.register(extensions.listeners())
    table: Table = {}
    installations = Installations(settings, events)
    live = LiveSettings(settings)
    models = compose_models(settings, events, extensions.hubs, extensions.graphs, host, live.now)

    def key_of(device: str) -> Key:
        return Key(supervisor.info.version if supervisor.info else "", device, driver_of(device))

    async def connect() -> EngineClient:
        return await control.client()

    passports = Passports(settings.data_dir / "passports")
    questions = questions_of(extensions.services.values())
    vetting = Vetting(passports, questions, events, host.devices, key_of, connect)
    supervisor = Supervisor(settings, events, IdleProbe(vetting.probe, table))
    control = EngineControl(settings, host, extensions.platforms, installations, supervisor)

    servables, residency = _compose_residency(live, host, events, models, control, supervisor, vetting, table)
    events.register({"kernel.residency": residency})
    return Kernel(
        live,
        host,
        events,
        extensions,
        installations,
        *models,
        supervisor,
        control,
        servables,
        residency,
        passports,
    )


def compose_models(
    settings: Settings,
    events: Events,
    hubs: Mapping[str, Hub],
    drivers: Mapping[str, GraphTemplate],
    host: Host,
    live: Callable[[], Settings] | None = None,
) -> Models:
    """Return what there is of models without an engine.

    :param live: returns the settings that hold now; ``None`` = those given.
    """
    live = live or (lambda: settings)
    store = Store(settings, events, live)
    graphs = GraphWriter(events, store, drivers, host, live)
    following = _following(hubs, settings, host, live)
    return Models(store, graphs, Ingest(settings, events, store, graphs, following, live))


def _following(
    hubs: Mapping[str, Hub], settings: Settings, host: Host, live: Callable[[], Settings]
) -> Callable[[], Mapping[str, Hub]]:
    """Return a function that gives the hubs as the settings have them now; a changed one is constructed anew."""
    current, known = hubs, settings.sections.get("hubs", {})

    def now() -> Mapping[str, Hub]:
        nonlocal current, known
        found = live()
        if (sections := found.sections.get("hubs", {})) != known:
            current, known = compose(found, host, kinds=["hubs"]).hubs, sections
        return current

    return now


def _compose_residency(
    live: LiveSettings,
    host: Host,
    events: Events,
    models: Models,
    control: EngineControl,
    supervisor: Supervisor,
    vetting: Vetting,
    table: Table,
) -> tuple[Servables, Residency]:
    """Return what loads models, and what decides which are loaded."""
    settings = live.now()

    def known() -> dict[str, Path]:
        return {each.id: each.model.directory for each in residency.loaded() if each.model}

    servables = Servables(
        settings, control.client, supervisor.log, running=control.is_ready, known=known, live=live.now
    )
    memory = Memory(settings, usual="GPU" if "GPU" in host.devices else "CPU", live=live.now)
    loader = Loader(
        settings,
        events,
        models.store,
        models.graphs,
        servables,
        memory,
        table,
        engine_memory=lambda: engine_memory(supervisor.owned_pid),
        owns_engine=lambda: not control.runs_elsewhere(),
        place=vetting.place,
        live=live.now,
    )
    residency = Residency(
        settings, events, models.store, servables, memory, loader, connect=control.ready, engine_runs=control.runs
    )
    return servables, residency
