"""What the tests of models share: a store with real drivers, and an engine with all of OVMS's reload traps."""

import hashlib
import json
import random
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from ovms_hub_modelscope import ModelScope
from ovms_kernel.compose import compose_models
from ovms_kernel.errors import EngineFailed, Unavailable
from ovms_kernel.events import Events
from ovms_kernel.extensions import Extensions, compose
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.models.graph_writer import GraphWriter
from ovms_kernel.models.ingest import Ingest
from ovms_kernel.models.loader import Loader
from ovms_kernel.models.memory import Memory
from ovms_kernel.models.residency import Residency
from ovms_kernel.models.servables import Servables
from ovms_kernel.models.store import Store
from ovms_kernel.settings import Settings
from ovms_kernel.testing.contract import configured
from ovms_kernel.testing.hub import FakeHub
from ovms_kernel.values import Host

HOST = Host(os="linux", machine="x86_64", memory=16 << 30)


class Recorder:
    """Notes every event about models."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    @hookimpl
    async def ovms_pulled(self, model: Any) -> None:
        self.heard.append(("pulled", model.id))

    @hookimpl
    async def ovms_deleted(self, model: Any) -> None:
        self.heard.append(("deleted", model.id))

    @hookimpl
    async def ovms_model_ready(self, model: Any) -> None:
        self.heard.append(("ready", model.model.id))

    @hookimpl
    async def ovms_load_failed(self, model: Any, cause: str) -> None:
        self.heard.append(("failed", model.id))

    @hookimpl
    async def ovms_unloaded(self, model: Any, reason: str) -> None:
        self.heard.append(("unloaded", model.id))


@dataclass
class TrapEngine:
    """Behaves as OVMS does when it reloads its configuration, without serving anything.

    ``broken`` graphs fail with an error, ``throwing`` ones with the exception that hides all later entries.
    """

    config_json: Path
    broken: set[str] = field(default_factory=set)
    throwing: set[str] = field(default_factory=set)
    problems: dict[str, str] = field(default_factory=dict)
    """What it says of models that it serves all the same."""
    seconds: float = 0.0
    up: bool = True
    reloads: int = 0
    loads: list[str] = field(default_factory=list)
    _seen: bytes = b""
    _last_failed: bool = False
    _graphs: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    async def config(self) -> dict[str, Any]:
        if not self.up:
            raise Unavailable("The engine does not run.")
        return {name: self._status(*graph["state"]) for name, graph in self._graphs.items()}

    async def model_problem(self, name: str) -> str:
        return self.problems.get(name, "")

    async def model_ready(self, name: str) -> bool:
        return name in self._graphs and self._graphs[name]["state"][0] == "AVAILABLE"

    async def reload(self) -> dict[str, Any]:
        if not self.up:
            raise Unavailable("The engine does not run.")
        async with self._lock:
            self.reloads += 1
            data = self.config_json.read_bytes()
            if data == self._seen and not self._last_failed:
                return await self.config()
            self._seen, self._last_failed = data, False
            entries = {each["config"]["name"]: Path(each["config"]["base_path"]) for each in self._parse(data)}
            for name, graph in self._graphs.items():
                if name not in entries and graph["state"][0] != "END":
                    graph["state"] = ("END", "OK")
            for name, folder in entries.items():
                if not await self._load(name, folder):
                    break
            if self._last_failed:
                raise EngineFailed("Reloading config file failed. Check server logs for more info.")
        return await self.config()

    async def restart(self) -> None:
        self._graphs.clear()
        self._seen = b""
        with suppress(EngineFailed):
            await self.reload()

    def position(self) -> int:
        return 0

    def about(self, model: str, since: int = 0) -> str:
        return f"[2026-11-23 10:00:00.000][1][serving][error][x.cpp:1] Mediapipe: {model}: no such tensor"

    def state(self, name: str) -> str:
        return self._graphs[name]["state"][0] if name in self._graphs else ""

    def _parse(self, data: bytes) -> list[Any]:
        root = json.loads(data)
        assert set(root) == {"model_config_list"}, "OVMS refuses keys that are not in its schema"
        return root["model_config_list"]

    async def _load(self, name: str, folder: Path) -> bool:
        graph_file = folder / "graph.pbtxt"
        digest = hashlib.md5(graph_file.read_bytes()).hexdigest() if graph_file.exists() else ""
        known = self._graphs.get(name)
        if known and known["state"][0] != "END" and known["key"] == (str(folder), digest):
            return True  # a failed one with unchanged files counts as loaded
        self.loads.append(name)
        if known:
            known["state"] = ("LOADING", "OK")
        await anyio.sleep(self.seconds)
        short = name.rsplit("/", 1)[-1]
        if short in self.throwing:
            if known:
                known.update(state=("LOADING", "FAILED_PRECONDITION"), key=(str(folder), digest))
            return False
        failed = short in self.broken or not digest
        self._last_failed |= failed
        state = ("LOADING", "FAILED_PRECONDITION") if failed else ("AVAILABLE", "OK")
        self._graphs[name] = {"state": state, "key": (str(folder), digest)}
        return True

    @staticmethod
    def _status(state: str, code: str) -> dict[str, Any]:
        status = {"error_code": code, "error_message": code}
        return {"model_version_status": [{"version": "1", "state": state, "status": status}]}


@dataclass
class World:
    """Everything one process of the plugin has about models."""

    settings: Settings
    events: Events
    recorder: Recorder
    store: Store
    graphs: GraphWriter
    ingest: Ingest
    engine: TrapEngine
    servables: Servables
    memory: Memory
    residency: Residency

    async def use(self, name: str) -> None:
        """Use a model as a request does that is answered at once."""
        async with self.residency.use(self.store.find(name).model_type, name):
            pass

    def loaded(self) -> set[str]:
        return {each.id for each in self.residency.loaded()}

    @property
    def heard(self) -> list[tuple[str, Any]]:
        return self.recorder.heard

    def entries(self) -> list[str]:
        root = json.loads(self.settings.config_json.read_bytes())
        return [each["config"]["name"] for each in root["model_config_list"]]


@pytest.fixture(autouse=True)
def _look_at_files_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kernels of one test follow each other faster than two processes do."""
    monkeypatch.setattr("ovms_kernel.file_watch.PERIOD", 0.0)


@pytest.fixture(scope="session")
def drivers() -> Extensions:
    """The installed graph drivers and hubs."""
    return compose(Settings(Path("unused")), HOST, kinds=("graphs", "hubs"))


@pytest.fixture
def make_world(tmp_path: Path, drivers: Extensions) -> Callable[..., World]:
    def make(hubs: Any = None, graphs: Any = drivers.graphs, **settings: Any) -> World:
        chosen = Settings(tmp_path / "data", **settings)
        events = Events(chosen.hook_timeout)
        recorder = Recorder()
        events.register({"recorder": recorder})
        models = compose_models(chosen, events, hubs or drivers.hubs, graphs, HOST)
        engine = TrapEngine(chosen.config_json)

        async def connect() -> TrapEngine:
            return engine

        servables = Servables(
            chosen,
            connect,
            engine,
            running=lambda: engine.up,
            known=lambda: {each.id: chosen.models_dir / each.id for each in residency.loaded()},
        )
        memory = Memory(chosen, available=lambda: 8 << 30, gpu=lambda: None)
        loader = Loader(chosen, events, models.store, models.graphs, servables, memory, {})
        residency = Residency(
            chosen, events, models.store, servables, memory, loader, connect=connect, engine_runs=lambda: True
        )
        events.register({"residency": residency})
        events.register({"kernel.residency": residency})
        return World(chosen, events, recorder, *models, engine, servables, memory, residency)

    return make


@pytest.fixture
async def world(make_world: Callable[..., World]) -> AsyncIterator[World]:
    world = make_world()
    async with world.residency:
        yield world


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def repo(tmp_path: Path, fixtures: Path) -> Path:
    """A repository with a model of 4 MB whose weights are noise that is always the same."""
    folder = tmp_path / "repo"
    shutil.copytree(fixtures / "text_generation", folder)
    (folder / "openvino_model.bin").write_bytes(random.Random(4).randbytes(4_000_000))
    (folder / ".gitattributes").write_text("hidden")
    (folder / "graph.pbtxt").write_text("of the author")
    return folder


@pytest.fixture
def make_puller(make_world: Callable[..., World], hub: FakeHub) -> Callable[..., World]:
    """Make a world that pulls from the local hub through the real driver and client."""

    def make(**section: Any) -> World:
        driver = configured(ModelScope, **({"endpoint": hub.url, "retry_delay": 0.01, "part_size": 500_000} | section))
        return make_world(hubs={"modelscope": driver})

    return make


@pytest.fixture
def puller(make_puller: Callable[..., World]) -> World:
    return make_puller()


@pytest.fixture
def tiny(tmp_path: Path, fixtures: Path) -> Callable[[str], Path]:
    """Make a model folder of a few small files: recognisable and quick to copy, but not loadable by a real engine."""

    def make(model_type: str) -> Path:
        folder = tmp_path / f"tiny-{model_type}"
        if not folder.exists():
            shutil.copytree(fixtures / model_type, folder, ignore=shutil.ignore_patterns("*.bin", "*.xml", "vocab*"))
            for name in ("openvino_model.xml", "openvino_model.bin"):
                (folder / name).write_bytes(b"x" * 1000)
        return folder

    return make
