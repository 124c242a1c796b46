"""The AOG face over a kernel that does as it is told, and the plugin as a process of its own."""

import asyncio
import inspect
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc.aio
import psutil
import pytest

from ovms_face_aog.client import PluginHost, ProviderClient, connect, plugin_command
from ovms_face_aog.grpc_server import new_server, start
from ovms_face_aog.provider import SERVICE, Provider, rpc_handlers
from ovms_face_aog.quirks import AogProvider
from ovms_kernel.api.faces import Answer, KernelApi, LocalModel, NotFound, ServiceDefinition
from ovms_kernel.settings import Settings

TINY = LocalModel(
    "tiny/chat", Path(), "text_generation", 1234, "ab" * 32, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), family="qwen"
)
SERVICES = (
    ServiceDefinition("chat", "text_generation", "/v3/chat/completions", streaming=True),
    ServiceDefinition("embed", "embeddings", "/v3/embeddings", default_model="OpenVINO/bge-int8-ov"),
    ServiceDefinition("speech-to-text", "speech_to_text", "/v3/audio/transcriptions"),
    ServiceDefinition(
        "speech-to-text-ws", "speech_to_text", "/v3/audio/transcriptions", streaming=True, bidirectional=True
    ),
)


class FakeKernel:
    """A kernel whose methods do what ``does`` says by name: a value, an error to raise, or a function to call.

    It has the methods of ``KernelApi`` and takes what those take, so a call that no kernel understands fails.
    """

    def __init__(self) -> None:
        self.settings = Settings(Path("/data"))
        self.host = SimpleNamespace(devices=("CPU",))
        self.services = {each.name: SimpleNamespace(definition=each) for each in SERVICES}
        self.does: dict[str, Any] = {"check_engine": True, "engine_version": "2026.3", "load_model": TINY}
        self.does |= {"list_models": [TINY], "running_models": [TINY], "pull_model": TINY, "resident_models": []}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def asked(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for each, arguments in self.calls if each == name]

    def service(self, name: str) -> Any:
        try:
            return self.services[name]
        except KeyError:
            raise NotFound(f"There is no service {name!r}.") from None


def faked(name: str, declared: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of the fake that takes what the declared one takes."""
    signature = inspect.signature(declared)

    def check(self: FakeKernel, *arguments: Any, **named: Any) -> None:
        signature.bind(self, *arguments, **named)
        self.calls.append((name, arguments))

    async def call(self: FakeKernel, *arguments: Any, **named: Any) -> Any:
        check(self, *arguments, **named)
        answer = self.does.get(name)
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer(*arguments, **named)
        answer = await answer if inspect.isawaitable(answer) else answer
        return Answer(answer) if isinstance(answer, bytes) else answer

    def stream(self: FakeKernel, *arguments: Any, **named: Any) -> Any:
        check(self, *arguments, **named)
        return self.does[name](*arguments, **named)

    return call if inspect.iscoroutinefunction(declared) else stream


for _name, _declared in inspect.getmembers(KernelApi, inspect.isfunction):
    if not _name.startswith("_") and not hasattr(FakeKernel, _name):
        setattr(FakeKernel, _name, faked(_name, _declared))


class Face(ProviderClient):
    """A client of the face, and the kernel behind it."""

    def __init__(self, kernel: FakeKernel, composed: "asyncio.Future[Any]", channel: grpc.aio.Channel) -> None:
        self.kernel = kernel
        self.composed = composed
        self.channel = channel


@asynccontextmanager
async def serve(make: Callable[[Any], Provider]) -> AsyncIterator[Face]:
    kernel = FakeKernel()
    composed = asyncio.get_running_loop().create_future()
    folder = tempfile.mkdtemp(prefix="ovms-")
    server = new_server()
    async with make(composed) as provider:
        server.add_registered_method_handlers(SERVICE, rpc_handlers(provider))
        unix = f"unix:{folder}/s"
        port = server.add_insecure_port(unix if os.name == "posix" else "127.0.0.1:0")
        await start(server, Path(folder))
        channel = connect(unix if os.name == "posix" else f"127.0.0.1:{port}")
        try:
            yield Face(kernel, composed, channel)
        finally:
            await channel.close()
            await server.stop(0)
            shutil.rmtree(folder)


@pytest.fixture
async def aog() -> AsyncIterator[Face]:
    """The face as AOG sees it."""
    async with serve(AogProvider) as face:
        face.composed.set_result(face.kernel)
        yield face


@pytest.fixture
async def full() -> AsyncIterator[Face]:
    """The face as AOG sees it after ``deploy --bodies full``."""
    async with serve(lambda kernel: AogProvider(kernel, lambda: {"chat", "embed"})) as face:
        face.composed.set_result(face.kernel)
        yield face


@pytest.fixture
async def other() -> AsyncIterator[Face]:
    """The face as any other host sees it."""
    async with serve(Provider) as face:
        face.composed.set_result(face.kernel)
        yield face


@pytest.fixture
async def uncomposed() -> AsyncIterator[Face]:
    """The face before there is a kernel."""
    async with serve(AogProvider) as face:
        yield face


# -- the plugin as a process ---------------------------------------------------------------------------------------


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for temporary files of plugins, short enough for sockets in it."""
    folder = Path(tempfile.mkdtemp(prefix="ovms-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def environment(tmp_path: Path, short_path: Path) -> dict[str, str | None]:
    """What plugin processes get beside what AOG sets: a data folder of the test's own and an engine that is a stub."""
    ours: dict[str, str | None] = {
        name: None for name in os.environ if name.startswith(("OVMS_PLUGIN_", "AOG_DATA", "PLUGIN_"))
    }
    add_extension(
        tmp_path / "site", "stub", "ovms.platforms", "misbehaving = ovms_kernel.testing.platform:MisbehavingPlatform"
    )
    return ours | {
        "OVMS_PLUGIN_DATA_DIR": str(tmp_path / "data"),
        "OVMS_PLUGIN_PLATFORM": "misbehaving",
        "OVMS_PLUGIN_REST_PORT": "18766",
        "OVMS_PLUGIN_GRPC_PORT": "18790",
        "PYTHONPATH": str(tmp_path / "site"),
        "TMPDIR": str(short_path),
    }


def add_extension(site: Path, name: str, group: str, entry: str, source: str = "") -> None:
    """Install an extension into a folder of ``PYTHONPATH``."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    if source:
        (site / f"{name}.py").write_text(source)


@pytest.fixture
async def plugin(environment: dict[str, str | None]) -> AsyncIterator[PluginHost]:
    """A plugin process with the stub engine, started as AOG does."""
    async with PluginHost(plugin_command(), environment) as host:
        yield host


def left_of(data: Path, folder: Path) -> list[str]:
    """Return the processes that were started for a data folder, and what plugins left in their temporary folder."""
    left = [str(each) for each in folder.iterdir()]
    for process in psutil.process_iter():
        try:
            named = any(str(data) in each for each in process.cmdline())
            if named and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):  # it has just ended, which psutil puts in its own words on few systems
            continue
    return left
