"""An engine that goes wrong on demand, supervised for real."""

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from ovms_kernel.engine.supervisor import Supervisor
from ovms_kernel.settings import Settings, read_settings
from ovms_kernel.testing.contract import configured
from ovms_kernel.testing.events import EventRecorder
from ovms_kernel.testing.platform import MisbehavingPlatform
from ovms_kernel.values import Installation

INSTALLATION = Installation("1.0", Path(), "misbehaving")


class Engine:
    """A supervisor and what it is asked in a test."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.events = EventRecorder()
        self.supervisor = Supervisor(settings, self.events)
        self.platform = configured(MisbehavingPlatform)

    async def start(self, how: str = "") -> None:
        self.platform.how = how
        await self.supervisor.start(self.platform, INSTALLATION)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    data = tmp_path / "data folder"  # a path with a space, as on many machines
    rest, grpc = free_ports(2)
    settings = read_settings({}, data_dir=data, start_timeout=20, stop_timeout=5, rest_port=rest, grpc_port=grpc)
    settings.models_dir.mkdir(parents=True)
    settings.config_json.write_text('{"model_config_list": []}')
    return settings


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[Engine]:
    engine = Engine(settings)
    async with engine.supervisor:
        yield engine


@pytest.fixture(autouse=True)
def nothing_is_left(settings: Settings) -> Iterator[None]:
    yield
    left = engines_of(settings)
    assert not left, left


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def engines_of(settings: Settings) -> list[psutil.Process]:
    """Return the processes that were started for a data folder."""

    def belongs(process: psutil.Process) -> bool:
        try:
            return str(settings.config_json) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if belongs(process)]
