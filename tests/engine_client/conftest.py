import pytest

from ovms_kernel.engine.client import EngineClient
from ovms_kernel.testing.stub import StubEngine


@pytest.fixture
async def engine():
    async with StubEngine() as stub:
        yield stub


@pytest.fixture
async def client(engine):
    client = EngineClient(engine.endpoint)
    yield client
    await client.aclose()
