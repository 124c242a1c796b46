"""Two processes work on the same models and the same engine; ``OVMS_STRESS_SECONDS`` makes it longer."""

import asyncio
import json
import os
import shutil
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anyio
import pytest

from ovms_kernel.errors import OvmsError
from ovms_kernel.models.staging import TRASH

SECONDS = float(os.environ.get("OVMS_STRESS_SECONDS", "4"))
IDS = ("me/one", "me/two", "you/three")

WORK = """
import random, sys, time
from collections import Counter
from pathlib import Path
import anyio
from ovms_hub_modelscope import ModelScope
from ovms_kernel.engine.client import EngineClient
from ovms_kernel.errors import OvmsError
from ovms_kernel.testing.contract import configured
from ovms_kernel.compose import compose_models
from ovms_kernel.events import Events
from ovms_kernel.extensions import compose
from ovms_kernel.models.loader import Loader
from ovms_kernel.models.memory import Memory
from ovms_kernel.models.residency import Residency
from ovms_kernel.models.servables import Servables
from ovms_kernel.settings import Settings
from ovms_kernel.values import Endpoint, Host, ModelRef

data, hub, engine, seconds, seed, *ids = sys.argv[1:]
chance, done = random.Random(seed), Counter()

async def main():
    settings, host, events = Settings(Path(data)), Host(os="linux", machine="x86_64"), Events()
    drivers = compose(settings, host, kinds=("graphs",))
    modelscope = configured(ModelScope, **{"endpoint": hub, "part_size": 100_000, "retry_delay": 0.01})
    store, graphs, ingest = compose_models(settings, events, {"modelscope": modelscope}, drivers.graphs, host)
    client = EngineClient(Endpoint(rest=engine, grpc=""))
    async def connect():
        return client
    class Log:
        def position(self):
            return 0
        def about(self, subject, since=0):
            return ""
    servables = Servables(settings, connect, Log(), running=lambda: True)
    memory = Memory(settings)
    loader = Loader(settings, events, store, graphs, servables, memory, {}, owns_engine=lambda: False)
    residency = Residency(settings, events, store, servables, memory, loader, connect=connect, engine_runs=lambda: True)
    events.register({"residency": residency})
    end = time.monotonic() + float(seconds)

    async def one():
        while time.monotonic() < end:
            model = chance.choice(ids)
            what = chance.choice(["pull", "pull", "load", "load", "unload", "delete", "list"])
            try:
                if what == "pull":
                    await ingest.pull(ModelRef(model))
                elif what == "load":
                    await residency.load(model)
                elif what == "unload":
                    await residency.unload(model, "test")
                elif what == "delete":
                    await store.delete(model)
                else:
                    for each in await anyio.to_thread.run_sync(store.list):
                        assert each.size
                done[what] += 1
            except OvmsError as error:
                # What the other one just deleted is not there: nothing else may go wrong.
                assert error.code == 404, error
                done[what + " 404"] += 1

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(one)
    await client.aclose()
    print(dict(done))

anyio.run(main)
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    engine: Any = None
    loop: Any = None

    def log_message(self, format, *args):  # noqa: A002
        pass

    def answer(self, work):
        try:
            value, status = asyncio.run_coroutine_threadsafe(work, self.loop).result(), 200
        except OvmsError as error:
            value, status = {"error": error.message}, 500
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(self.engine.config())

    def do_POST(self):
        self.answer(self.engine.reload())


@pytest.mark.timeout(SECONDS + 60)
async def test_two_processes_end_in_a_consistent_state(make_puller, hub, repo, tmp_path):
    world = make_puller()
    (repo / "openvino_model.bin").write_bytes(os.urandom(900_000))
    for model_id in IDS:
        hub.add(model_id, repo)
    await world.servables.prepare()
    world.engine.seconds = 0.005
    handler = type("TrapHandler", (Handler,), {"engine": world.engine, "loop": asyncio.get_running_loop()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    script = tmp_path / "work.py"
    script.write_text(WORK)
    results = []

    async def run(seed: int) -> None:
        command = [
            sys.executable,
            str(script),
            str(world.settings.data_dir),
            hub.url,
            url,
            str(SECONDS),
            str(seed),
            *IDS,
        ]
        results.append(await anyio.run_process(command, check=False))

    async with anyio.create_task_group() as group:
        group.start_soon(run, 1)
        group.start_soon(run, 2)
    server.shutdown()
    server.server_close()
    for result in results:
        assert result.returncode == 0, result.stderr.decode(errors="replace")[-3000:]
    one, other = (Counter(eval(result.stdout)) for result in results)
    asked = {what.removesuffix(" 404") for what in one + other}
    assert asked >= {"pull", "load", "unload", "delete"}, (one, other)

    installed = {model.id for model in world.store.list()}
    entries = set(world.entries())
    served = {model.id for model in await world.residency.running()}
    assert entries <= installed
    assert served == entries
    for model_id in installed:
        assert await world.store.verify(model_id) == []
    assert world.store.staging() == []
    assert list(world.settings.staging_dir.glob(TRASH + "*")) == []
    assert list(world.settings.models_dir.glob("config.json.*")) == []
    shutil.rmtree(world.settings.data_dir)
