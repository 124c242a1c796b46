"""What loading through us costs beyond the engine's own time, with the embedded engine and a tiny model.

Targets (issue 4): a model that is served already in less than 5 ms; a load at most 100 ms above the engine's own.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import anyio
from _smoke import sized

from ovms_kernel.compose import compose_models
from ovms_kernel.engine.client import EngineClient
from ovms_kernel.errors import OvmsError
from ovms_kernel.events import Events
from ovms_kernel.extensions import compose
from ovms_kernel.models.loader import Loader
from ovms_kernel.models.memory import Memory
from ovms_kernel.models.residency import Residency
from ovms_kernel.models.servables import Servables
from ovms_kernel.settings import Settings
from ovms_kernel.values import Endpoint, Host

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
MODEL = "tiny/model"


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(config: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ovms_embedded", "--rest_port", str(port), "--rest_bind_address", "127.0.0.1"]
    command += ["--config_path", str(config), "--file_system_poll_wait_seconds", "0", "--log_level", "ERROR"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def connect_to(port: int) -> EngineClient:
    client = EngineClient(Endpoint(rest=f"http://127.0.0.1:{port}", grpc=""))
    with anyio.fail_after(30):
        while True:
            try:
                if await client.server_ready():
                    return client
            except OvmsError:
                pass
            await anyio.sleep(0.05)


def write(config: Path, *entries: dict[str, dict[str, str]]) -> None:
    config.write_text(json.dumps({"model_config_list": list(entries)}))


async def engine_alone(client: EngineClient, config: Path, folder: Path) -> float:
    """Return the seconds of the engine's own load: an entry written by hand, one reload."""
    write(config, {"config": {"name": MODEL, "base_path": str(folder)}})
    began = time.perf_counter()
    await client.reload()
    seconds = time.perf_counter() - began
    write(config)
    await client.reload()
    return seconds


class NoLog:
    """The log of an engine whose failures nobody explains."""

    def position(self) -> int:
        return 0

    def about(self, subject: str, since: int = 0) -> str:  # noqa: ARG002
        return ""


async def measure(model_type: str, repeat: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        settings, host, events = Settings(Path(name)), Host(os="linux", machine="x86_64", memory=16 << 30), Events()
        drivers = compose(settings, host, kinds=("graphs",)).graphs
        store, graphs, ingest = compose_models(settings, events, {}, drivers, host)
        model = await ingest.import_(FIXTURES / model_type, MODEL)
        write(settings.config_json)
        port = free_port()
        process = launch(settings.config_json, port)
        client = await connect_to(port)

        async def connect() -> EngineClient:
            return client

        servables = Servables(settings, connect, NoLog(), running=lambda: True)
        memory = Memory(settings)
        loader = Loader(settings, events, store, graphs, servables, memory, {})
        residency = Residency(
            settings, events, store, servables, memory, loader, connect=connect, engine_runs=lambda: True
        )
        alone, ours, again = [], [], []
        for _ in range(repeat):
            alone.append(await engine_alone(client, settings.config_json, model.directory))
            began = time.perf_counter()
            await residency.load(MODEL)
            ours.append(time.perf_counter() - began)
            for _ in range(20):
                began = time.perf_counter()
                await residency.load(MODEL)
                again.append(time.perf_counter() - began)
            await residency.unload(MODEL, "bench")
        await client.aclose()
        process.terminate()
        process.wait()
    above = statistics.median(x - y for x, y in zip(ours, alone, strict=True)) * 1e3
    print(
        f"{model_type}: already served {statistics.median(again) * 1e3:.2f} ms (target 5); load "
        f"{statistics.median(ours) * 1e3:.0f} ms, engine alone {statistics.median(alone) * 1e3:.0f} ms, "
        f"so {above:.0f} ms above (target 100); {repeat} pairs"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeat", type=int, default=sized(7, 1))
    chosen = options.parse_args()
    for model_type in sized(("text_generation", "embeddings"), ("embeddings",)):
        anyio.run(measure, model_type, chosen.repeat)


if __name__ == "__main__":
    main()
