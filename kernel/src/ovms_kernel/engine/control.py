"""The engine as a whole: which one, whether it is installed, started, stopped and asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ovms_kernel.engine import launch
from ovms_kernel.engine.group import connect_to
from ovms_kernel.engine.installation import try_version
from ovms_kernel.engine.platform_selection import candidates, explain, install_engine
from ovms_kernel.errors import PreconditionFailed, Unavailable
from ovms_kernel.values import EngineStatus, Ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ovms_kernel.drivers import Platform
    from ovms_kernel.engine.client import EngineClient
    from ovms_kernel.engine.installation import Installations
    from ovms_kernel.engine.platform_selection import Choice
    from ovms_kernel.engine.supervisor import Supervisor
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import EngineInfo, Finding, Host, Installation, Progress

HEALTH_LIMIT = 3.0
"""Seconds that a question about health may take."""


class EngineControl:
    """One engine of one data folder; it is started by the first thing that needs it.

    :param platforms: platform drivers by name.
    """

    def __init__(
        self,
        settings: Settings,
        host: Host,
        platforms: Mapping[str, Platform],
        installations: Installations,
        supervisor: Supervisor,
    ) -> None:
        self._settings = settings
        self._host = host
        self._platforms = platforms
        self._installations = installations
        self._supervisor = supervisor
        self._client: EngineClient | None = None
        self._versions: dict[str, str] = {}
        self._closed = False
        self.installing = anyio.Lock()
        """Held while a version is installed or changed."""

    # -- which one -------------------------------------------------------------------------------------------------

    def choice(self) -> Choice:
        """Return the platform driver by setting, else that of the engine in use, else the one that fits best.

        :raises NotSupported: there is none; the sentence says what to install.
        """
        active = self._installations.active()
        return candidates(self._host, self._platforms, self._settings.platform, active)[0]

    def explain(self) -> Finding:
        """Return which platform is chosen and why, and which comes next."""
        return explain(self._host, self._platforms, self._settings.platform, self._installations.active())

    def installed(self) -> Installation:
        """Return the active version.

        :raises PreconditionFailed: there is none.
        """
        if installation := self._installations.active():
            return installation
        raise PreconditionFailed("The engine is not installed; run `ovms-plugin engine install`.")

    async def install(
        self, version: str, platform: str, *, retry: bool, report: Callable[[Progress], None]
    ) -> Installation:
        """Install an engine and make it the active one; see ``platform_selection.install_engine``."""
        async with self.installing:
            return await install_engine(
                self._installations,
                self._host,
                self._platforms,
                version=version or self._settings.engine_version,
                platform=platform or self._settings.platform,
                retry=retry,
                report=report,
            )

    async def version(self) -> str:
        """Return the version that the active engine's own program names; it is run once for that."""
        installation = self.installed()
        if installation.version not in self._versions:
            self._versions[installation.version] = await try_version(self.choice().platform, installation)
        return self._versions[installation.version]

    async def status(self) -> EngineStatus:
        """Return where the engine is and what it does, without starting it."""
        active = await anyio.to_thread.run_sync(self._installations.active)
        info = self._supervisor.info
        rest = info.endpoint.rest if info else f"http://127.0.0.1:{self._settings.rest_port}"
        plan = self.choice().platform.launch(active, Ports(0, 0)) if active else None
        program = Path(plan.argv[0]) if plan and plan.argv else None
        return EngineStatus("ready" if info else self._supervisor.describe(), rest, active, program)

    # -- running ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engine if it does not run; return before it is ready."""
        self.check_open()
        await self._supervisor.start(self.choice().platform, self.installed())

    async def stop(self, reason: str) -> None:
        """Stop the engine; nothing happens if it does not run."""
        await self._supervisor.stop(reason)
        await self._drop_client()

    def close(self) -> None:
        """Start no engine any more."""
        self._closed = True

    def check_open(self) -> None:
        """Refuse new work while the plugin stops.

        :raises Unavailable: it does.
        """
        if self._closed:
            raise Unavailable("The plugin is stopping; start it again.")

    async def ready(self) -> EngineInfo:
        """Return the running engine, starting it if it does not run and waiting until it is ready."""
        self.check_open()
        if not self._supervisor.started:
            await self.start()
        return await self._supervisor.ensure_ready()

    async def client(self) -> EngineClient:
        """Return the connection to the running engine, starting the engine if need be."""
        info = await self.ready()
        if self._client is None or self._client.endpoint != info.endpoint:
            await self._drop_client()
            self._client = connect_to(info.endpoint)
        return self._client

    async def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def health(self) -> None:
        """Return if the engine answers now; see ``KernelApi``."""
        self.installed()
        if self._supervisor.info is None:
            raise Unavailable(f"The engine is {self._supervisor.describe()}.")
        client = await self.client()
        with anyio.move_on_after(HEALTH_LIMIT):
            if await client.live() and await client.grpc_live():
                return
        raise Unavailable(f"The engine runs but did not answer within {HEALTH_LIMIT:g} s; try again, or restart it.")

    # -- whose it is -----------------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Tell whether this process uses an engine that answers."""
        return self._supervisor.started and self._supervisor.info is not None

    def runs(self) -> bool:
        """Tell whether there is an engine already: here, of another process on this data folder, or elsewhere."""
        return self._supervisor.started or self.runs_elsewhere()

    def runs_elsewhere(self) -> bool:
        """Tell whether another process runs an engine for this data folder, or a user runs one somewhere."""
        engine = launch.read_running(self._settings)
        if engine and engine.owner != os.getpid() and launch.is_alive(engine):
            return True
        active = self._installations.active()
        return active is not None and not self.choice().platform.launch(active, Ports(0, 0)).argv
