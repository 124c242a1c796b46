"""What the tests of the HTTP face share: one server, as a person starts it, over the tiny models."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from ovms_face_http import HttpFace, config
from ovms_kernel.compose import compose_kernel
from ovms_kernel.settings import read_settings
from ovms_kernel.testing.stub import StubEngine
from tests.faces.http.ways import Aog, Terminal, aog_beside
from tests.processes import is_below

MODELS = {
    "tiny/chat": "text_generation",
    "tiny/vision": "vision_text_generation",
    "tiny/embeddings": "embeddings",
    "tiny/rerank": "rerank",
    "tiny/image": "image_generation",
    "tiny/listener": "speech_to_text",
    "tiny/speaker": "text_to_speech",
}
ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."
QUESTION = [{"role": "user", "content": "What is OpenVINO?"}]


@dataclass
class Served:
    """A running ``ovms-plugin serve``."""

    url: str
    key: str
    process: subprocess.Popen[str]
    data_dir: Path
    environment: dict[str, str]
    told: list[str]

    def client(self, **more: object) -> httpx.Client:
        options = {"headers": {"authorization": f"Bearer {self.key}"}, "timeout": 60, "trust_env": False} | more
        return httpx.Client(base_url=self.url, **options)  # type: ignore[arg-type]


def environment_of(data_dir: Path, **settings: object) -> dict[str, str]:
    """Return an environment without what a user of this machine may have set; ``settings`` are the face's."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OVMS_PLUGIN_", "AOG_", "OPENAI_", "ANTHROPIC_", "OLLAMA_"))
    }
    section = {
        f"OVMS_PLUGIN_FACES__HTTP__{name.upper()}": str(value) for name, value in ({"port": 0} | settings).items()
    }
    return kept | section | {"OVMS_PLUGIN_DATA_DIR": str(data_dir), "OVMS_PLUGIN_PLATFORM": "portable"}


@contextmanager
def serving(data_dir: Path, *words: str, **settings: object) -> Iterator[Served]:
    """Run ``ovms-plugin serve`` until the end of the block."""
    environment = environment_of(data_dir, **settings)
    executable = str(Path(sys.executable).with_name("ovms-plugin" + (".exe" if os.name == "nt" else "")))
    log = data_dir.with_name(f"{data_dir.name}.serve.log")
    with log.open("w") as stderr:
        process = subprocess.Popen([executable, "serve", *words], env=environment, stderr=stderr, text=True)
    try:
        where = data_dir / "run" / "http.json"
        with anyio_deadline(30) as waiting:
            while not (where.exists() and is_below(json.loads(where.read_text("utf-8"))["pid"], process)):
                assert process.poll() is None, log.read_text()
                waiting()
        found = json.loads(where.read_text("utf-8"))
        key = Path(found["key_file"]).read_text().strip() if found["key_file"] else "none"
        yield Served(found["url"], key, process, data_dir, environment, log.read_text().splitlines())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def anyio_deadline(seconds: float) -> Iterator[Callable[[], None]]:
    """Give a function to call between two looks at what another process does, which fails when it is too late."""
    import time

    end = time.monotonic() + seconds

    def wait() -> None:
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)

    yield wait


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory, fixtures: Path, inference: None) -> Path:
    """A data folder with the engine and the tiny models."""
    folder = tmp_path_factory.mktemp("http") / "data"

    async def fill() -> None:
        async with compose_kernel(read_settings({}, data_dir=folder, platform="portable")) as kernel:
            await kernel.install_engine()
            for model, source in MODELS.items():
                await kernel.import_model(fixtures / source, model)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(anyio.run, fill).result()  # this one may have an event loop already
    return folder


@pytest.fixture
def environment(data_dir: Path) -> Callable[..., dict[str, str]]:
    """Return an environment for the models of these tests, with settings of the face."""
    return lambda **settings: environment_of(data_dir, **settings)


@pytest.fixture(scope="session")
def server(data_dir: Path) -> Iterator[Served]:
    """The one server that most tests ask."""
    with serving(data_dir, allowed_origins="http://pages.example") as served:
        yield served


@pytest.fixture
def client(server: Served) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def aog(server: Served) -> Iterator[Aog]:
    """The plugin of AOG beside that server."""
    with aog_beside(server) as aog:
        yield aog


@pytest.fixture
def terminal(server: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Terminal:
    """Commands on the data folder of that server."""
    return Terminal(server, monkeypatch, capfd)


@pytest.fixture
def other_data_dir(data_dir: Path, tmp_path: Path) -> Path:
    """A data folder of the test's own with the same engine and models, as a folder has one server."""
    copy = tmp_path / "data"
    shutil.copytree(data_dir, copy, ignore=shutil.ignore_patterns("run", "logs", "http", "cache"), symlinks=True)
    return copy


@pytest.fixture
def start(other_data_dir: Path) -> Callable[..., AbstractContextManager[Served]]:
    """Start another server over the same models: one with settings of the test's own."""

    def run(*words: str, **settings: object) -> AbstractContextManager[Served]:
        return serving(other_data_dir, *words, **settings)

    return run


@dataclass
class Stubbed:
    """The face in this process, over an engine that answers what a test tells it to."""

    engine: StubEngine
    port: int
    key: str

    def client(self, **more: object) -> httpx.AsyncClient:
        options = {"headers": {"authorization": f"Bearer {self.key}"}, "timeout": 30, "trust_env": False} | more
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", **options)  # type: ignore[arg-type]

    def request(self, fields: object, path: str = "/v1/chat/completions") -> bytes:
        """Return a request as a client writes it."""
        body = json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {self.key}\r\ncontent-length: {len(body)}\r\n"
        return f"{head}content-type: application/json\r\n\r\n".encode() + body


@asynccontextmanager
async def over_stub(
    folder: Path, answers: dict[str, object], face: dict[str, object] | None = None, **settings: Any
) -> AsyncIterator[Stubbed]:
    """Serve the model ``m`` of an engine that answers as told, with settings of the face and of the whole."""
    ready: dict[str, object] = {
        "/v2/health/live": {},
        "/v2/health/ready": {},
        "/v2/models/m/ready": {},
        "/v1/config": {},
    }
    async with StubEngine(ready | answers) as engine:
        remote = {"url": engine.endpoint.rest, "api_key": engine.endpoint.api_key}
        async with compose_kernel(
            read_settings({}, data_dir=folder, platforms={"remote": remote}, **settings)
        ) as kernel:
            await kernel.install_engine()
            composed = asyncio.get_running_loop().create_future()
            composed.set_result(kernel)
            where = asyncio.get_running_loop().create_future()
            serving = asyncio.create_task(
                HttpFace(config.read({"port": 0} | (face or {}))).serve(composed, ready=where.set_result)
            )
            port = int((await where).url.rpartition(":")[2])
            try:
                key = folder / "http" / "key"
                yield Stubbed(engine, port, key.read_text().strip() if key.exists() else "none")
            finally:
                serving.cancel()
                await asyncio.wait([serving])


@pytest.fixture
def stubbed(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[Stubbed]]:
    """Serve over an engine that answers as told, with settings of the face and of the whole."""
    return lambda answers, **settings: over_stub(tmp_path, answers, **settings)
