"""Plugin mode: from the exec by a host to the handshake line as fast as can be, then the kernel, then until the end."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ovms_kernel.kernel import Kernel

log = logging.getLogger(__name__)


def main() -> None:
    """Serve the host that started us and exit; without one, say what this program is and exit with 1."""
    # Threads of gRPC and forks do not mix; nothing of ours forks without an exec (aog-plugin.md A12).
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from ovms_kernel import log as logs
    from ovms_kernel.aog.goplugin import Handshake, NotStartedByHost, check_host, take_stdout

    aog = Handshake("AOG_PLUGIN", "aog-provider-plugin-v1", 1)
    try:
        version = check_host(aog, os.environ)
    except NotStartedByHost as error:
        print(error, file=sys.stderr)  # noqa: T201 - for the person who started it by hand, or for the host's log
        sys.exit(1)
    line = take_stdout()
    logs.set_up("INFO", hosted=True)
    try:
        asyncio.run(_serve(version, line))
    except NotStartedByHost as error:
        log.error("%s", error)
        sys.exit(1)
    # Whatever threads libraries have left must not keep a finished plugin alive.
    logging.shutdown()
    os._exit(0)


async def _serve(version: int, line: int) -> None:
    from ovms_kernel.aog.goplugin import PluginServer
    from ovms_kernel.aog.provider import Provider

    composed: asyncio.Future[Kernel] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()
    provider = Provider(composed, under_aog=bool(os.environ.get("AOG_VERSION")))
    running: list[asyncio.Task[None]] = []

    async def shut_down(reason: str) -> None:
        if composed.done() and not composed.exception():
            await composed.result().stop(reason)
        leave.set()
        await asyncio.wait(running)

    server = PluginServer([provider.handler()], shut_down)
    serving = asyncio.create_task(server.serve(version, line, dict(os.environ)))
    # The handshake line goes out first: composing takes longer than a host should have to wait for a sign of life.
    await asyncio.sleep(0)
    running.append(asyncio.create_task(_run_kernel(composed, leave)))
    await serving


async def _run_kernel(composed: asyncio.Future[Kernel], leave: asyncio.Event) -> None:
    """Compose the kernel and keep it until it is time to leave; a failure becomes the answer of every rpc."""
    from ovms_kernel import log as logs

    try:
        from ovms_kernel.kernel import Kernel
        from ovms_kernel.settings import read_settings

        settings = read_settings(os.environ, {"data_dir": "${AOG_DATA_DIR}/engine/ovms-plugin"})
        logs.set_up(settings.log_level, hosted=True, file=settings.logs_dir / "plugin.log")
        async with Kernel(settings) as kernel:
            composed.set_result(kernel)
            await leave.wait()
    except Exception as error:
        log.exception("The plugin could not be composed")
        if not composed.done():
            composed.set_exception(error)
            composed.exception()  # every rpc tells it; nobody may ask at all
