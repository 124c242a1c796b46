"""The driver of the HTTP face, which the kernel constructs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_face_http.config import HttpSettings, checked, report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ovms_kernel.api.faces import KernelApi, RunningServer, Settings


class HttpFace:
    """Serves HTTP at the address of its settings."""

    settings_type = HttpSettings

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = checked(settings)

    async def serve(
        self, kernel: Awaitable[KernelApi], *, ready: Callable[[RunningServer], object] | None = None
    ) -> None:
        """Serve until cancelled; then answers that have begun are sent to their end.

        :param ready: called once when requests are answered.
        """
        from ovms_face_http.running import serve

        await serve(self.settings, kernel, ready)

    def status(self, settings: Settings) -> Mapping[str, Any]:
        """Return where it listens, or would listen, and where the key is."""
        return report(settings, self.settings)
