"""Kill -9 of the host, the plugin and the engine at random moments: nothing is left, and the next start works."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc.aio
import psutil
import pytest

from ovms_face_aog.client import AOG, ProviderClient, connect, plugin_command
from tests.processes import end_by_force

VICTIMS = ("host", "plugin", "engine")
TIMES = int(os.environ.get("OVMS_KILLS", "1"))
"""How often each is killed after each step."""
WORKERS = 2
STEPS = ("started", "connected", "InstallEngine", "InitEnv", "StartEngine", "ready")
"""What a run reaches one after another: most of it is starting, which is where things can go wrong. A kill comes after
one of them and not at a time from the start, at which a busy machine has got nowhere yet."""
KILLS = [(victim, step) for victim in VICTIMS for step in STEPS if victim != "engine" or step in STEPS[-2:]]
"""Whom to kill, and after which step; an engine is there only after the last two."""
LATEST = 0.3
"""Seconds from the step to the kill; no step takes longer than that on an idle machine."""

PATIENCE = 20.0
"""Seconds for everything to be gone; less than two on an idle machine, but tests run on busy ones."""

# A host that only starts the plugin and reads its pipes: for the plugin, its death is that of a real one.
HOST = """
import subprocess, sys
plugin = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
print(plugin.pid, flush=True)
print(plugin.stdout.readline().decode().strip(), flush=True)
while plugin.stderr.read1(65536): pass
plugin.wait()
"""


class Run:
    """One start of the plugin below a host that can be killed."""

    def __init__(self, data: Path, environment: dict[str, str]) -> None:
        self.data = data
        self.reached = {step: asyncio.Event() for step in STEPS}
        # The name of a launcher in the data folder marks the plugin among all processes.
        command = [sys.executable, "-ISc", HOST, *plugin_command(), str(data / "launcher")]
        self.host = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    async def connect(self) -> None:
        assert self.host.stdout
        self.plugin = int(await asyncio.to_thread(self.host.stdout.readline))
        self.reached["started"].set()
        line = (await asyncio.to_thread(self.host.stdout.readline)).decode()
        if line.strip():  # otherwise it was killed before
            self.client = ProviderClient()
            network, address = line.split("|")[2:4]
            self.client.channel = connect(address if network == "tcp" else f"unix:{address}")
            self.reached["connected"].set()

    async def start_engine(self) -> None:
        for method in ("InstallEngine", "InitEnv", "StartEngine"):
            assert (await self.client.call(method)).code == 0
            self.reached[method].set()
        while (await self.client.call("HealthCheck")).code:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        self.reached["ready"].set()

    async def use(self) -> None:
        """Do what AOG does, as long as it goes."""
        with suppress(grpc.aio.AioRpcError):
            await self.connect()
            await self.start_engine()
            while True:
                await self.client.call("HealthCheck")
                await self.client.call("InvokeService", service_name="chat", request_data=b'{"messages":[]}')
                await asyncio.sleep(0.05)

    async def close(self, using: asyncio.Task[None]) -> None:
        self.host.kill()
        self.host.wait()
        using.cancel()
        await asyncio.gather(using, return_exceptions=True)
        if hasattr(self, "client"):
            await self.client.channel.close()
        assert self.host.stdout
        self.host.stdout.close()

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                marked = any(str(self.data) in each for each in process.cmdline())
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def engines(self) -> list[psutil.Process]:
        found = []
        for process in self.processes():
            with suppress(psutil.Error, OSError):
                if "--rest_port" in process.cmdline():
                    found.append(process)
        return found

    async def nothing_left(self) -> None:
        limit = asyncio.get_running_loop().time() + PATIENCE
        while left := self.processes():
            if asyncio.get_running_loop().time() > limit:
                path = self.data / "logs" / "plugin.log"
                log = path.read_text("utf-8").splitlines()[-20:] if path.exists() else []
                raise AssertionError("\n".join([*(str(each) for each in left), *log]))
            await asyncio.sleep(0.05)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ovms-", ignore_cleanup_errors=True) as name:
        yield Path(name)


async def kill_often(
    worker: int, kills: list[tuple[str, str]], folder: Path, environment: dict[str, str], rolls: random.Random
) -> None:
    temporary, data = folder / "t", folder / f"data{worker}"
    temporary.mkdir(exist_ok=True)
    ports = {"OVMS_PLUGIN_REST_PORT": str(19000 + worker), "OVMS_PLUGIN_GRPC_PORT": str(19100 + worker)}
    environment = environment | ports | {"OVMS_PLUGIN_DATA_DIR": str(data), "TMPDIR": str(temporary)}
    for victim, step in kills:
        run = Run(data, environment)
        using = asyncio.create_task(run.use())
        reached = asyncio.create_task(run.reached[step].wait())
        try:
            await asyncio.wait([reached, using], return_when=asyncio.FIRST_COMPLETED)
            assert not using.done(), f"It ended by itself before {step}: {using}"
            await asyncio.wait([using], timeout=rolls.uniform(0, LATEST))
            await kill(run, victim)
            await run.nothing_left()
        finally:
            reached.cancel()
            await run.close(using)
    await start_and_stop(Run(data, environment))


async def kill(run: Run, victim: str) -> None:
    """Kill the engine and then the host, or one of the others."""
    if victim == "plugin":
        end_by_force(run.plugin)
        return
    if victim == "engine":
        async with asyncio.timeout(15):
            while not (engine := next((each for each in run.engines() if killed(each)), None)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await comes_back(run, engine)
    run.host.kill()


def killed(process: psutil.Process) -> bool:
    """Kill a process; false if it has just ended by itself."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


async def comes_back(run: Run, ended: psutil.Process) -> None:
    """The plugin survives its engine's death and starts another one."""
    async with asyncio.timeout(15):
        while not [each for each in run.engines() if each.pid != ended.pid]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert psutil.Process(run.plugin).is_running()


async def start_and_stop(run: Run) -> None:
    """After all those deaths it starts, answers and ends as if nothing had been."""
    await run.connect()
    async with asyncio.timeout(20):
        await run.start_engine()
    os.kill(run.plugin, signal.SIGTERM)
    await run.nothing_left()
    run.host.kill()
    run.host.communicate()
    await run.client.channel.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent process that starts the plugin's own")
async def test_a_plugin_whose_parent_dies_before_it_serves_ends(
    environment: dict[str, str | None], folder: Path
) -> None:
    values = {**os.environ, **AOG, **environment}
    run = Run(folder / "data", {name: value for name, value in values.items() if value is not None})
    assert run.host.stdout
    parent = psutil.Process(int(await asyncio.to_thread(run.host.stdout.readline)))
    async with asyncio.timeout(PATIENCE):
        while not (started := parent.children()):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    parent.kill()
    await asyncio.to_thread(psutil.wait_procs, started, PATIENCE)
    await run.nothing_left()
    run.host.communicate()


@pytest.mark.timeout(600)  # dozens of starts, which a busy machine is slow at; each of their steps has its own limit
async def test_many_kills(environment: dict[str, str | None], folder: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    values = {**os.environ, **AOG, **environment}
    plain = {name: value for name, value in values.items() if value is not None}
    kills, rolls = KILLS * TIMES, random.Random(seed)
    rolls.shuffle(kills)
    each = [
        kill_often(number, kills[number::WORKERS], folder, plain, random.Random(seed + number))
        for number in range(WORKERS)
    ]
    await asyncio.gather(*each)
