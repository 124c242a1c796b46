import os
from pathlib import Path

import msgspec

from ovms_kernel.api.platforms import (
    EXACT,
    Host,
    Installation,
    LaunchPlan,
    NotFound,
    Ports,
    Release,
    Requirement,
)


class AcmeSettings(msgspec.Struct, frozen=True):
    program: str = "/opt/acme/bin/ovms"
    """The engine's program."""


class Acme:
    settings_type = AcmeSettings

    def __init__(self, settings: AcmeSettings) -> None:
        self._program = Path(settings.program)

    def matches(self, host: Host) -> int:
        return EXACT if host.distribution == "acme" else 0

    def release(self, host: Host, version: str) -> Release:
        if version not in ("", "system"):
            raise NotFound(f"Acme Linux has one engine, so {version} cannot be chosen; leave engine_version out.")
        return Release("system")  # without an archive: nothing is downloaded

    async def requirements(self, installation: Installation) -> list[Requirement]:
        if self._program.is_file():
            return []
        return [Requirement(f"{self._program} is missing", "run `sudo acme install ovms`")]

    def launch(self, installation: Installation, ports: Ports) -> LaunchPlan:
        # The whole environment of the engine; the kernel appends ports, configuration and key to the arguments.
        return LaunchPlan((str(self._program),), {"PATH": os.defpath, "HOME": str(Path.home())})
