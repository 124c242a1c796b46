"""What supervision costs, with the embedded engine and a tiny model.

Targets (issue 6): start to ready at most 100 ms above the engine's own time; from a crash until the model is served
again less than 2 s. The engine's own time is that of the same command started directly and asked in a tight loop, in
turn with ours; medians.
"""

import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import anyio
from _smoke import sized

from ovms_kernel.compose import compose_kernel
from ovms_kernel.drivers import Platform
from ovms_kernel.engine import launch
from ovms_kernel.engine.client import EngineClient
from ovms_kernel.engine.supervisor import Supervisor
from ovms_kernel.events import Events
from ovms_kernel.extensions import compose
from ovms_kernel.settings import Settings, read_settings
from ovms_kernel.values import Installation

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
MODEL = "tiny/model"
ROUNDS = sized(7, 1)


async def alone(settings: Settings, platform: Platform, installation: Installation) -> float:
    """Return how long the engine takes to answer REST and gRPC when nobody supervises it."""
    ports = launch.choose_ports(settings)
    plan = platform.launch(installation, ports)
    endpoint = launch.endpoint_of(ports, launch.write_key(settings))
    client = EngineClient(endpoint)
    began = time.perf_counter()
    process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [*plan.argv, *launch.engine_arguments(settings, ports)],
        env=dict(plan.env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (await client.live() and await client.grpc_live()):  # noqa: ASYNC110
        await anyio.sleep(0.002)
    took = time.perf_counter() - began
    await client.aclose()
    process.terminate()
    process.wait()
    return took


async def supervised(settings: Settings, platform: Platform, installation: Installation) -> float:
    """Return how long it takes under the supervisor."""
    async with Supervisor(settings, Events()) as supervisor:
        began = time.perf_counter()
        await supervisor.start(platform, installation)
        await supervisor.ensure_ready()
        return time.perf_counter() - began


async def recover(settings: Settings) -> float:
    """Return how long it takes from a killed engine until its model is served again."""
    async with compose_kernel(settings) as kernel:
        await kernel.install_engine()
        if not await kernel.list_models():
            await kernel.import_model(FIXTURES / "text_generation", MODEL)
        await kernel.load_model(MODEL)
        info = await kernel.engine()
        assert info.pid
        began = time.perf_counter()
        os.kill(info.pid, signal.SIGKILL)
        while True:
            now = kernel.supervisor.info
            if now and now.pid != info.pid:
                await kernel.load_model(MODEL)
                return time.perf_counter() - began
            await anyio.sleep(0.002)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = read_settings({}, data_dir=Path(folder), platform="portable")
        kernel = compose_kernel(settings)
        extensions = compose(settings, kernel.host)
        platform = extensions.platforms["portable"]
        installation = await kernel.installations.install("portable", platform, platform.release(kernel.host, ""))
        await kernel.init_environment()
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
        own: list[float] = []
        ours: list[float] = []
        for _ in range(ROUNDS):
            own.append(await alone(settings, platform, installation))
            ours.append(await supervised(settings, platform, installation))
        above = statistics.median(ours) - statistics.median(own)
        print(f"start to ready: engine alone {statistics.median(own) * 1000:.0f} ms, ", end="")
        print(f"supervised {statistics.median(ours) * 1000:.0f} ms, above it {above * 1000:.0f} ms (at most 100)")
        back = [await recover(settings) for _ in range(ROUNDS)]
        print(f"crash to served again: median {statistics.median(back):.2f} s, longest {max(back):.2f} s (under 2)")


if __name__ == "__main__":
    anyio.run(main)
