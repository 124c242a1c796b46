"""The driver of AOG's face, which the kernel constructs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_face_aog.settings import AogSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ovms_face_aog.process import PluginProcess
    from ovms_kernel.api.faces import KernelApi, ServiceDefinition


class AogFace:
    """Serves the go-plugin host that started this process.

    :param process: what this process has of its host; ``None`` means that it is taken from the process when served.
    """

    settings_type = AogSettings

    def __init__(self, settings: AogSettings, process: PluginProcess | None = None) -> None:
        del settings  # read for each request, from the kernel
        self._process = process

    async def serve(self, kernel: Awaitable[KernelApi]) -> None:
        """Serve from the handshake until the host ends or asks for the end."""
        from ovms_face_aog.process import take_process
        from ovms_face_aog.serve import serve

        await serve(self._process or take_process(), kernel)

    def why_not(self, definition: ServiceDefinition) -> str:
        """Return why AOG is not offered a service; empty if it is."""
        from ovms_face_aog.manifest import why_not_offered

        return why_not_offered(definition)
