from collections.abc import Awaitable, Mapping
from typing import Any

from ovms_kernel.api.faces import KernelApi


class Silent:
    def __init__(self, section: Mapping[str, Any]) -> None:
        pass

    async def serve(self, kernel: Awaitable[KernelApi]) -> None:
        await kernel
