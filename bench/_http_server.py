"""The HTTP face over a kernel whose engine is at an address, for benchmarks: in a process of its own.

Prints its port on the first line and runs until its input ends. Its arguments are the engine's address and a data
folder.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ovms_face_http import HttpFace, config
from ovms_kernel.compose import compose_kernel
from ovms_kernel.settings import read_settings

if TYPE_CHECKING:
    from ovms_kernel.api.faces import KernelApi, RunningServer


async def main(engine: str, folder: str) -> None:
    kernel = compose_kernel(read_settings({}, data_dir=Path(folder), platforms={"remote": {"url": engine}}))
    face = HttpFace(config.read({"port": 0}))

    def ready(where: RunningServer) -> None:
        print(where.url.rpartition(":")[2], flush=True)

    async with kernel:
        await kernel.install_engine()  # which names the one that runs
        composed = asyncio.get_running_loop().create_future()
        composed.set_result(cast("KernelApi", kernel))
        serving = asyncio.create_task(face.serve(composed, ready=ready))
        await asyncio.to_thread(sys.stdin.read)
        serving.cancel()
        await asyncio.wait([serving])


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main(*sys.argv[1:]))
    except ImportError:
        asyncio.run(main(*sys.argv[1:]))
